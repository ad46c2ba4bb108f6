"""The shape and the starting weights of argus-nano, the embedded default model."""

import math

import torch
from tokenizers import Tokenizer

from modeling_argus import ArgusConfig, ArgusForConditionalGeneration

from .tokenizer import BOS, EOS, IMAGE, PAD


def nano_config(tokenizer: Tokenizer) -> ArgusConfig:
    """2.0M parameters: 144-pixel tiles, 12 x 12 patches of 12 pixels, pixel-unshuffle 2, 36 tokens a tile.

    Patches of 12 pixels are as coarse as boxes of small pictograms allow; finer ones cost more time than they teach.
    """
    ids = {
        "pad_token_id": tokenizer.token_to_id(PAD),
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": 144,
        "patch_size": 12,
    }
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        **ids,
    }
    return ArgusConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.token_to_id(IMAGE),
        pixel_unshuffle_factor=2,
        tie_word_embeddings=True,
        **ids,
    )


def build_nano(tokenizer: Tokenizer, config: ArgusConfig | None = None, seed: int = 0) -> ArgusForConditionalGeneration:
    """A fresh model in fp32. Positions of patches and of location tokens start as sines and cosines, so that near is
    alike from the first step on; the rest starts as the model's own initialisation has it."""
    torch.manual_seed(seed)
    config = config or nano_config(tokenizer)
    model = ArgusForConditionalGeneration(config)
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
