"""A tiny random Florence-2 as a checkpoint folder, and what its processor needs, built offline."""

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WORDS = "a cat sits near the dog red car What does the image describe? Locate the objects with category name in. their"
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]


def tokenizer():
    """A byte-level BPE with BART's special tokens and the thousand location tokens of Florence-2."""
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    tokens = [AddedToken(t, special=True, normalized=False) for t in SPECIAL]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=tokens, initial_alphabet=sorted(alphabet), show_progress=False
    )
    built.train_from_iterator([WORDS], trainer)
    built.add_tokens([AddedToken(f"<loc_{i}>", normalized=False) for i in range(1000)])
    built.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>"}
    # 4.57's processor insists on BART's own class.
    four = transformers.__version__.startswith("4.")
    kind = transformers.BartTokenizerFast if four else transformers.PreTrainedTokenizerFast
    return kind(tokenizer_object=built, **names, sep_token="</s>", extra_special_tokens={"image_token": "<image>"})


def processor():
    size = {"height": 64, "width": 64}
    images = transformers.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False, resample=3)
    images.image_seq_length = 5
    rules = {name: {} for name in ("pure_text", "description_with_bboxes")}
    return transformers.Florence2Processor(
        images, tokenizer(), num_additional_image_tokens=0, post_processor_config=rules
    )


def model(vocabulary):
    """Two stages of vision, two layers of BART; deterministic."""
    ids = {name: vocabulary.convert_tokens_to_ids(t) for name, t in (("bos", "<s>"), ("pad", "<pad>"), ("eos", "</s>"))}
    text = {
        "model_type": "bart",
        "vocab_size": len(vocabulary),
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 128,
        "bos_token_id": ids["bos"],
        "pad_token_id": ids["pad"],
        "eos_token_id": ids["eos"],
        "decoder_start_token_id": ids["eos"],
        "forced_eos_token_id": None,
        "init_std": 0.4,
    }
    vision = {
        "depths": (1, 1),
        "patch_size": (7, 3),
        "patch_stride": (8, 4),
        "patch_padding": (3, 1),
        "patch_prenorm": (False, True),
        "embed_dim": (16, 32),
        "num_heads": (2, 2),
        "num_groups": (2, 2),
        "window_size": 2,
        "projection_dim": 32,
        "drop_path_rate": 0.0,
    }
    config = transformers.Florence2Config(
        text_config=text, vision_config=vision, image_token_id=vocabulary.convert_tokens_to_ids("<image>")
    )
    torch.manual_seed(0)
    return transformers.Florence2ForConditionalGeneration(config).eval()
