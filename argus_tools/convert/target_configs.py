"""From an ArgusConfig back to a config.json that transformers' own classes load: SmolVLM, Idefics3 or InternVL (-hf).

Both majors' spellings of the rotary settings are written, since 4.57 does not read 5.x's. What the target cannot
represent is refused, with the field and its value.
"""

from typing import Any

from .errors import ConvertError

SMOLVLM_VISION = {
    "use_class_token": False, "use_layer_scale": False, "use_post_layernorm": True, "attention_bias": True,
}  # fmt: skip
INTERNVL_VISION = {"use_class_token": True, "use_layer_scale": True}
SMOLVLM_JOIN = {"connector_type": "linear", "connector_bias": False}
INTERNVL_JOIN = {"connector_type": "mlp", "connector_layer_norm_eps": 1e-5}

COPIED_VISION = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "hidden_act",
    "layer_norm_eps", "attention_dropout", "initializer_range",
)  # fmt: skip
COPIED_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_dropout",
    "initializer_range", "use_cache",
)  # fmt: skip


def _require(config, wanted: dict[str, Any], where: str, target: str) -> None:
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ConvertError(
                f"{where}{name} is {getattr(config, name)!r}, which {target} cannot represent; it has {value!r} only."
            )


def write_text(config, dtype: str) -> dict[str, Any]:
    """The text part: a Qwen2 config where query, key and value have a bias, a Llama config otherwise."""
    text = config.text_config
    fields = {name: getattr(text, name) for name in COPIED_TEXT}
    ids = {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    rope = dict(text.rope_parameters)
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {
        "model_type": "qwen2" if text.attention_bias else "llama",
        **fields,
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
        **({"use_sliding_window": False, "sliding_window": None} if text.attention_bias else {"attention_bias": False}),
        **{name: value for name, value in ids.items() if value is not None},
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "dtype": dtype,
    }


def write_smolvlm(config, dtype: str, target: str = "smolvlm") -> dict[str, Any]:
    """A SmolVLM config, or an Idefics3 one (the fields are the same)."""
    vision = config.vision_config
    name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[target]
    _require(config, SMOLVLM_JOIN, "", name)
    _require(vision, SMOLVLM_VISION, "vision_config.", name)
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        "model_type": target,
        "image_token_id": config.image_token_id,
        "scale_factor": config.pixel_unshuffle_factor,
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        **({"pad_token_id": config.pad_token_id} if config.pad_token_id is not None else {}),
        "dtype": dtype,
        "vision_config": {
            "model_type": f"{target}_vision",
            **{field: getattr(vision, field) for field in COPIED_VISION},
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        "text_config": write_text(config, dtype),
    }


def write_internvl(config, dtype: str) -> dict[str, Any]:
    """An InternVL config of the -hf layout."""
    vision = config.vision_config
    _require(config, INTERNVL_JOIN, "", "InternVL")
    _require(vision, INTERNVL_VISION, "vision_config.", "InternVL")
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "image_token_id": config.image_token_id,
        "image_seq_length": config.image_seq_length,
        "downsample_ratio": 1 / config.pixel_unshuffle_factor,
        "projector_hidden_act": config.connector_hidden_act,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "dtype": dtype,
        "vision_config": {
            "model_type": "internvl_vision",
            **{field: getattr(vision, field) for field in COPIED_VISION},
            "image_size": [vision.image_size] * 2,
            "patch_size": [vision.patch_size] * 2,
            "attention_bias": vision.attention_bias,
            "layer_scale_init_value": vision.layer_scale_init_value,
            "use_mean_pooling": not vision.use_post_layernorm,
            "use_qk_norm": False,
            "norm_type": "layer_norm",
        },
        "text_config": write_text(config, dtype),
    }
