"""LoRA (PEFT) on an Argus model, its location tokens trainable, its tied embeddings kept tied.

The targets are the decoder's fused weights: q, k and v share one rank, gate and up too. `trainable_token_indices`
trains the location tokens' rows alone, in the embeddings and, as one and the same parameter, in a tied output head.
After `merge_and_unload()` the head is tied as before, and the model is a plain one.
"""

from processing_argus.locations_argus import location_token_ids

TEXT_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
VISION_TARGETS = ("qkv_proj", "out_proj", "fc1", "fc2")


def lora_config(
    model, processor, *, rank: int = 16, alpha: int | None = None, dropout: float = 0.05, vision: bool = False
):
    """The peft.LoraConfig for a model and its processor.

    Args:
        model: an ArgusForConditionalGeneration, of this project or of a hub folder.
        rank, alpha, dropout: LoRA's; alpha is twice the rank by default.
        vision: adapt the vision tower too.

    Its location tokens are trainable where the processor writes boxes with them, else none are.
    Raises ImportError without peft, ValueError for a rank below 1.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install peft") from error
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")
    targets = rf".*text_model\..*\.({'|'.join(TEXT_TARGETS)})"
    if vision:
        targets += rf"|.*vision_model\..*\.({'|'.join(VISION_TARGETS)})"
    tokens = None
    if processor.num_location_bins is not None and processor.box_format == "location_tokens":
        ids = location_token_ids(processor.tokenizer, processor.num_location_bins)
        # Tied, PEFT finds the head by itself and shares the rows; named as well, it would get rows of its own.
        names = ["embed_tokens"] if model.config.tie_word_embeddings else ["embed_tokens", "lm_head"]
        tokens = dict.fromkeys(names, ids)
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=targets,
        trainable_token_indices=tokens,
        task_type="CAUSAL_LM",
    )


def add_lora(model, config):
    """`model` with fresh adapters (its logits are the same at first), ready for transformers' and TRL's trainers.

    TRL 1.16 asks the output head for its bias, which PEFT 0.21's wrapper around a head with trainable tokens does not
    have: it is given the head's own.
    """
    from peft import get_peft_model

    model = get_peft_model(model, config)
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = head.original_module.bias
    return model
