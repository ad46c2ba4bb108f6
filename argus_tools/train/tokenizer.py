"""argus-nano's tokenizer: a byte-level BPE trained on the scenes' grammar, with special and location tokens.

Every byte has a token, so any text can be written and read back; what the grammar never says costs about a token a
letter. Ids: special tokens, then bytes and merges, then `<loc_0>` ... `<loc_{K-1}>` in order.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from argus_tools.scenes.text import vocabulary_text
from processing_argus.locations_argus import location_tokens

BOS, EOS, PAD = "<|im_start|>", "<end_of_utterance>", "<pad>"
IMAGE, IMAGE_START, IMAGE_END = "<image>", "<image_start>", "<image_end>"
SPECIAL_TOKENS = (PAD, BOS, EOS, IMAGE, IMAGE_START, IMAGE_END)
# 100 bins are 1.4 pixels of a 144-pixel tile and 4.3 of an image of three: below what boxes of this model are worth,
# and each bin is seen often enough to be learnt in hours.
NUM_LOCATION_BINS = 100


def train_tokenizer(vocab_size: int = 2048, num_location_bins: int = NUM_LOCATION_BINS) -> Tokenizer:
    """Train on `vocabulary_text()`: at most `vocab_size` tokens with the special ones, then the location tokens.

    The grammar is small and fixed, so the same arguments give the same tokenizer. Raises ValueError where
    `vocab_size` has no room for 256 bytes and the special tokens.
    """
    if vocab_size < 256 + len(SPECIAL_TOKENS):
        raise ValueError(f"vocab_size must be at least {256 + len(SPECIAL_TOKENS)}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE(fuse_unk=False, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(vocabulary_text(), trainer)
    # As processing_argus adds them: single tokens, but not special ones, so a decoded answer keeps its boxes.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in location_tokens(num_location_bins)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, model_max_length: int = 2048) -> None:
    """Write tokenizer.json and tokenizer_config.json in the form that transformers 4.57 and 5.x both read."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model_max_length,
        "padding_side": "left",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
