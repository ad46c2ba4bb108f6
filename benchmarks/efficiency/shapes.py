"""The models that are measured, as data: the published configurations as far as they matter, and tiny ones for tests.

`new_tokens` is what the last rows of Tables 1 and 2 imply: (E2E - TTFT) x throughput is 33 tokens for SmolVLM-256M and
13 for InternVL3-2B. The vocabularies have the published sizes, so the output heads cost what they cost; the ids of the
image token are those of the offline tokenizers.
"""

import copy
from dataclasses import dataclass

MEAN_STD = {
    "smolvlm": ([0.5] * 3, [0.5] * 3),
    "internvl": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "qwen3_vl": ([0.5] * 3, [0.5] * 3),
}


@dataclass(frozen=True)
class Shape:
    """One model.

    Attributes:
        kind: "smolvlm", "internvl" or "qwen3_vl": which of transformers' classes it is.
        config: the arguments of the configuration class.
        tile_size, tokens_per_tile: side of a tile in pixels, visual tokens that it becomes.
        longest_edge: of SmolVLM's tiling; max_tiles: of InternVL's, thumbnail not counted.
        new_tokens: tokens that an answer has.
    """

    name: str
    kind: str
    config: dict
    tile_size: int
    tokens_per_tile: int
    longest_edge: int = 2048
    max_tiles: int = 12
    new_tokens: int = 33

    def at_most(self, max_tiles: int) -> "Shape":
        """The same model with another tile budget (Figure 6 compares a 2B at one tile)."""
        return Shape(**{**self.__dict__, "max_tiles": max_tiles})


def _smolvlm(name: str, text: dict) -> Shape:
    config = {
        "scale_factor": 4,
        "tie_word_embeddings": False,
        "vision_config": {"hidden_size": 768, "image_size": 512, "num_attention_heads": 12, "patch_size": 16},
        "text_config": {
            "model_type": "llama",
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-05,
            "rope_theta": 100000.0,
            "tie_word_embeddings": False,
            "vocab_size": 49280,
            **text,
        },
    }
    return Shape(name, "smolvlm", config, tile_size=512, tokens_per_tile=64)


SMOLVLM_256M = _smolvlm(
    "SmolVLM-256M",
    {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
)
SMOLVLM_500M = _smolvlm(
    "SmolVLM-500M",
    {
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
    },
)
INTERNVL3_2B = Shape(
    "InternVL3-2B",
    "internvl",
    {
        "tie_word_embeddings": False,
        "downsample_ratio": 0.5,
        "image_seq_length": 256,
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": [448, 448],
            "patch_size": [14, 14],
            "attention_bias": True,
        },
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "rope_scaling": {"rope_type": "dynamic", "factor": 2.0},
            "tie_word_embeddings": False,
            "vocab_size": 151674,
        },
    },
    tile_size=448,
    tokens_per_tile=256,
    new_tokens=13,
)
# No tiles: an image keeps its own resolution, 640x480 becomes 40 x 30 patches and 300 tokens.
QWEN3_VL_2B = Shape(
    "Qwen3-VL-2B",
    "qwen3_vl",
    {
        "tie_word_embeddings": True,
        "vision_config": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "patch_size": 16,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        "text_config": {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 262144,
            "rope_theta": 5000000.0,
            "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
            "tie_word_embeddings": True,
            "vocab_size": 151936,
        },
    },
    tile_size=448,
    tokens_per_tile=256,
    new_tokens=13,
)
SHAPES = {
    "256m": SMOLVLM_256M,
    "500m": SMOLVLM_500M,
    "2b": INTERNVL3_2B,
    "qwen3-vl-2b": QWEN3_VL_2B,
}


def _tiny(shape: Shape, tile_size: int, tokens_per_tile: int, vision: dict, text: dict, **top) -> Shape:
    config = copy.deepcopy(shape.config)
    config["vision_config"] |= vision
    config["text_config"] |= {"vocab_size": 900, **text}
    return Shape(
        f"tiny {shape.name}",
        shape.kind,
        {**config, **top},
        tile_size,
        tokens_per_tile,
        longest_edge=4 * tile_size,
        max_tiles=shape.max_tiles,
        new_tokens=3,
    )


# The same layouts and layer kinds in miniature: for the tests, and to try a script in seconds.
_TEXT = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6}


def _tiny_smolvlm(shape: Shape) -> Shape:
    vision = {"hidden_size": 24, "image_size": 32, "patch_size": 4, "num_attention_heads": 3}
    vision |= {"intermediate_size": 40, "num_hidden_layers": 2}
    return _tiny(shape, 32, 4, vision, {**_TEXT, "num_key_value_heads": 2, "head_dim": 8})


TINY = {
    "256m": _tiny_smolvlm(SMOLVLM_256M),
    "500m": _tiny_smolvlm(SMOLVLM_500M),
    "2b": _tiny(
        INTERNVL3_2B,
        28,
        4,
        {"hidden_size": 24, "image_size": [28, 28], "patch_size": [7, 7], "num_attention_heads": 3}
        | {"intermediate_size": 40, "num_hidden_layers": 2},
        {**_TEXT, "num_key_value_heads": 2},
        image_seq_length=4,
    ),
    "qwen3-vl-2b": _tiny(
        QWEN3_VL_2B,
        28,
        4,
        {"depth": 3, "hidden_size": 24, "num_heads": 3, "intermediate_size": 40, "out_hidden_size": 48}
        | {"deepstack_visual_indexes": [0, 1]},
        {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
        | {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}},
    ),
}
