"""The shape and the starting weights of argus-nano, the embedded default model: a checkpoint folder to train from."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from modeling_argus import ArgusConfig, ArgusTextConfig, ArgusVisionConfig
from processing_argus import CHAT_TEMPLATE, ArgusImageProcessor, ArgusProcessor
from processing_argus.locations_argus import BOX_FORMATS

from .saving import save_checkpoint
from .tokenizer import BOS, EOS, IMAGE, NUM_LOCATION_BINS, PAD, train_tokenizer
from .training_model import ArgusForTraining
from .typed import at_least, build, one_of

# 12 x 12 patches of 12 pixels: as coarse as boxes of small pictograms allow; finer ones cost more time than they teach.
VISION = {
    "hidden_size": 160,
    "intermediate_size": 640,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "image_size": 144,
    "patch_size": 12,
}
TEXT = {
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}


def nano_config(tokenizer: Tokenizer, vision: dict | None = None, text: dict | None = None) -> ArgusConfig:
    """3 million parameters: 144-pixel tiles, pixel-unshuffle 2, 36 tokens a tile. `vision` and `text` change fields."""
    ids = {
        "pad_token_id": tokenizer.token_to_id(PAD),
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
    }
    return ArgusConfig(
        vision_config={**VISION, **(vision or {})},
        text_config={**TEXT, **(text or {}), "vocab_size": tokenizer.get_vocab_size(), **ids},
        image_token_id=tokenizer.token_to_id(IMAGE),
        pixel_unshuffle_factor=2,
        tie_word_embeddings=True,
        **ids,
    )


def make_nano(
    out: str | Path,
    *,
    seed: int = 0,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    num_location_bins: int = NUM_LOCATION_BINS,
    box_format: str = "location_tokens",
    max_tiles: int = 6,
) -> Path:
    """Write a fresh model with its tokenizer and processor to `out`.

    vision, text: fields of the two configurations that differ from nano's. num_location_bins, box_format: Section 4.2.
    max_tiles: the processor's tile budget. Raises ValueError for fields that do not fit.
    """
    vision, text = (
        None if fields is None else _typed(kind.__init__, fields, place)
        for kind, fields, place in ((ArgusVisionConfig, vision, "nano.vision"), (ArgusTextConfig, text, "nano.text"))
    )
    at_least(num_location_bins, 1, "nano.num_location_bins")
    at_least(max_tiles, 1, "nano.max_tiles")
    one_of(box_format, BOX_FORMATS, "nano.box_format")
    tokenizer = train_tokenizer(num_location_bins=num_location_bins)
    config = nano_config(tokenizer, vision, text)
    model = build_nano(tokenizer, config, seed)
    images = ArgusImageProcessor(
        tiling="aspect_ratio",
        tile_size=config.vision_config.image_size,
        min_tiles=1,
        max_tiles=max_tiles,
        max_upscale=1.0,
        use_thumbnail=True,
        image_mean=config.vision_config.image_mean,
        image_std=config.vision_config.image_std,
    )
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=config.text_config.max_position_embeddings,
    )
    processor = ArgusProcessor(
        images,
        words,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        image_seq_length=config.image_seq_length,
        num_location_bins=num_location_bins,
        box_format=box_format,
    )
    model.generation_config.update(do_sample=False, max_new_tokens=128)
    return save_checkpoint(model, processor, out)


def nano_options(raw: dict[str, Any]) -> dict[str, Any]:
    """A configuration's `nano` as options of `make_nano`. Raises ValueError for unknown ones and for other types."""
    return _typed(make_nano, raw, "nano")


def _typed(function: Callable, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Values of the function's parameters as their annotations say."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    others = {inspect.Parameter.empty, str | Path}  # self, **kwargs; the folder
    known = {each.name: each.annotation for each in parameters if each.annotation not in others and each.name != "seed"}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{where} has an unknown key {unknown[0]!r}; it can have {', '.join(known)}.")
    return {name: build(known[name], value, f"{where}.{name}") for name, value in values.items()}


def build_nano(tokenizer: Tokenizer, config: ArgusConfig | None = None, seed: int = 0) -> ArgusForTraining:
    """A fresh model in fp32. Positions of patches and of location tokens start as sines and cosines, so that near is
    alike from the first step on; the rest starts as the model's own initialisation has it."""
    torch.manual_seed(seed)
    config = config or nano_config(tokenizer)
    model = ArgusForTraining(config)
    vision = model.model.vision_model
    side, D = config.vision_config.patches_per_side, config.vision_config.hidden_size
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    halves = [_waves(v.flatten().float() / side, D // 2) for v in (rows, columns)]
    embeddings = model.get_input_embeddings().weight
    locations = [i for t, i in tokenizer.get_vocab().items() if t.startswith("<loc_")]
    first, bins = min(locations), len(locations)
    with torch.no_grad():
        # Wider than the usual 0.02, which suits layers ten times as wide: what the image says reaches the loss sooner.
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
                module.weight.normal_(std=module.in_features**-0.5)
        for layers in (vision.layers, model.model.text_model.layers):
            for name, module in layers.named_modules():
                if name.endswith(("out_proj", "o_proj", "fc2", "down_proj")):  # what ends a residual branch
                    module.weight.mul_((2 * len(layers)) ** -0.5)
        vision.position_embedding.weight[-side * side :] = 0.2 * torch.cat(halves, dim=1)
        embeddings[first : first + bins] += 0.03 * _waves(torch.arange(bins).float() / bins, embeddings.shape[1])
    return model


def _waves(positions: torch.Tensor, width: int) -> torch.Tensor:
    """float[N, width]: sines and cosines of positions in [0, 1), from half a turn up to 16 turns."""
    turns = 0.5 * torch.exp(torch.linspace(0, math.log(32.0), -(-width // 2)))
    angles = 2 * math.pi * positions[:, None] * turns
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
