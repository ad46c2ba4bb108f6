"""Tiny Argus models with random weights, built in milliseconds, for every test that needs a model."""

import torch

from modeling_argus import ArgusConfig, ArgusForConditionalGeneration

SIGLIP_LLAMA = {
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    },
    "text_config": {
        "vocab_size": 300,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
    },
    "pixel_unshuffle_factor": 2,
    "image_token_id": 7,
    "tie_word_embeddings": True,
}

INTERNVIT_QWEN = {
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 28,
        "patch_size": 7,
        "hidden_act": "gelu",
        "use_class_token": True,
        "use_layer_scale": True,
        "use_post_layernorm": False,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    "text_config": {
        "vocab_size": 301,
        "hidden_size": 40,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_theta": 1000000.0,
        "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
        "attention_bias": True,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.2,
    },
    "pixel_unshuffle_factor": 2,
    "image_token_id": 7,
    "connector_type": "mlp",
}

SHAPES = {"siglip_llama": SIGLIP_LLAMA, "internvit_qwen": INTERNVIT_QWEN}


def tiny_config(shape: str = "siglip_llama", **changes) -> ArgusConfig:
    """A tiny configuration; `changes` are of the top level, or dicts merged into `vision_config` and `text_config`."""
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in SHAPES[shape].items()}
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return ArgusConfig(**values)


def tiny_model(shape: str = "siglip_llama", seed: int = 0, **changes) -> ArgusForConditionalGeneration:
    """A tiny model in evaluation mode, its weights drawn from `seed`."""
    torch.manual_seed(seed)
    return ArgusForConditionalGeneration(tiny_config(shape, **changes)).eval()


def tiny_inputs(model, tiles_per_row=(2, 1), text_length: int = 6, seed: int = 0) -> dict:
    """Left-padded rows with some tiles each: input_ids, attention_mask and uint8 pixel_values."""
    generator = torch.Generator().manual_seed(seed)
    config, rows = model.config, []
    for row, tiles in enumerate(tiles_per_row):
        words = torch.randint(10, config.text_config.vocab_size, (text_length + row,), generator=generator)
        image = torch.full((tiles * config.image_seq_length,), config.image_token_id)
        rows.append(torch.cat((words[:2], image, words[2:])))
    longest = max(map(len, rows))
    input_ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=0) for row in rows])
    attention_mask = torch.stack([torch.nn.functional.pad(torch.ones_like(r), (longest - len(r), 0)) for r in rows])
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    S = config.vision_config.image_size
    if sum(tiles_per_row):
        pixels = torch.randint(0, 256, (sum(tiles_per_row), 3, S, S), generator=generator)
        inputs["pixel_values"] = pixels.to(torch.uint8)
    return inputs
