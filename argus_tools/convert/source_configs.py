"""From a published config.json to an ArgusConfig. What Argus cannot represent is refused, with the field and its value.

Saved configs may leave out what equals the default of transformers' own class, so those defaults stand here as data
(a test compares them with both majors). Fields that only training reads (dropout, init) do not matter here.
"""

from typing import Any, Optional

from .checks import check_fields, is_number, section
from .errors import ConvertError

LLAMA_DEFAULTS = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "attention_dropout": 0.0, "initializer_range": 0.02, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
QWEN2_DEFAULTS = {
    **LLAMA_DEFAULTS,
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
SIGLIP_DEFAULTS = {
    "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0, "initializer_range": 0.02,
}  # fmt: skip
INTERNVIT_DEFAULTS = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_channels": 3, "image_size": 448, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0, "initializer_range": 0.02, "attention_bias": False, "layer_scale_init_value": 0.1,
}  # fmt: skip
# The original repository's InternVisionConfig has defaults of its own, those of InternViT-6B.
INTERNVIT_CHAT_DEFAULTS = {
    **INTERNVIT_DEFAULTS,
    "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 48, "num_attention_heads": 25,
    "image_size": 224, "qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm",
}  # fmt: skip
TEXT_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_dropout",
    "initializer_range",
)  # fmt: skip
VISION_FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "hidden_act",
    "layer_norm_eps", "attention_dropout", "initializer_range",
)  # fmt: skip

# Fields whose other values change what is computed in a way that Argus' classes do not have: the allowed values.
TEXT_ONLY = {
    "mlp_bias": (False, None),
    "qk_layer_norms": (False, None),
    "use_resampler": (False, None),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1.0, None),
    "pretraining_tp": (1, None),
}
INTERNVL_ONLY = {"vision_feature_layer": (-1, [-1], None), "vision_feature_select_strategy": ("default", None)}
INTERNVL_VISION_ONLY = {
    "use_qk_norm": (False, None),
    "norm_type": ("layer_norm", None),
    "use_mask_token": (False, None),
    "use_mean_pooling": (True, False, None),
    "use_absolute_position_embeddings": (True, None),
}
INTERNVL_CHAT_ONLY = {"select_layer": (-1, None), "ps_version": ("v2",), "pad2square": (False, None)}
INTERNVL_CHAT_VISION_ONLY = {"qk_normalization": (False,), "norm_type": ("layer_norm",)}


def refuse_unless(config: dict[str, Any], allowed: dict[str, tuple], where: str) -> None:
    """Raises ConvertError for the first field whose value is none of the allowed ones."""
    for name, values in allowed.items():
        value = config.get(name)
        if value not in values:
            meant = " or ".join(repr(one) for one in values if one is not None)
            raise ConvertError(f"{where}.{name} is {value!r}, which Argus cannot represent; it has {meant} only.")


def read_rope(raw: dict[str, Any], default_theta: float, where: str = "text_config") -> dict[str, Any]:
    """{"rope_theta", "rope_scaling"} from transformers 4's two fields or transformers 5's one."""
    parameters = dict(section(raw, "rope_parameters"))
    theta = parameters.pop("rope_theta", None) or raw.get("rope_theta") or default_theta
    scaling = dict(parameters or section(raw, "rope_scaling"))
    old_name = scaling.pop("type", None)
    kind = scaling.get("rope_type") or old_name or "default"
    if kind not in ("default", "llama3", "dynamic"):
        raise ConvertError(
            f"{where} has rope type {kind!r}, which Argus cannot represent; it has 'default', 'llama3' and 'dynamic'."
        )
    refuse_unless(scaling, {"partial_rotary_factor": (1.0, None)}, f"{where}.rope_parameters")
    scaling.pop("partial_rotary_factor", None)
    return {"rope_theta": theta, "rope_scaling": None if kind == "default" else {**scaling, "rope_type": kind}}


def read_text(raw: dict[str, Any], where: str = "text_config") -> dict[str, Any]:
    """ArgusTextConfig's fields from a Llama or Qwen2 config."""
    kind = raw.get("model_type")
    if kind is None and raw.get("architectures"):
        kind = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}.get(
            raw["architectures"][0], raw["architectures"][0]
        )
    if kind not in ("llama", "qwen2"):
        raise ConvertError(f"{where}.model_type is {kind!r}; Argus' decoder can be 'llama' or 'qwen2'.")
    refuse_unless(raw, TEXT_ONLY, where)
    defaults = LLAMA_DEFAULTS if kind == "llama" else QWEN2_DEFAULTS
    if kind == "llama" and raw.get("attention_bias"):
        raise ConvertError(
            f"{where}.attention_bias is True: Llama's output projection then has a bias, Argus' has none."
        )
    layers = raw.get("num_hidden_layers", defaults["num_hidden_layers"])
    sliding = [kind for kind in raw.get("layer_types") or [] if kind != "full_attention"]
    if raw.get("use_sliding_window") and raw.get("sliding_window") and raw.get("max_window_layers", 28) < layers:
        sliding = ["sliding_attention"]
    if sliding:
        raise ConvertError(
            f"{where} has {sliding[0]} layers (sliding_window {raw.get('sliding_window')!r}); Argus' attention is full."
        )
    fields = {name: raw.get(name, defaults[name]) for name in TEXT_FIELDS}
    check_fields(fields, config_class("ArgusTextConfig"), f"{where}.")
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    if fields["head_dim"] is None:
        fields["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]
    return {**fields, **read_rope(raw, defaults["rope_theta"], where), "attention_bias": kind == "qwen2"}


def read_token_ids(text: dict[str, Any], generation: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """pad, bos and eos: the text config's, else generation's, else the class's defaults; none outside the vocabulary.

    The top-level pad_token_id of SmolVLM configs is not read: it is 128002, left over from Idefics3, in a vocabulary of
    49280, and 4.57 copies it into generation_config.json.
    """
    defaults = LLAMA_DEFAULTS if text.get("model_type", "llama") == "llama" else QWEN2_DEFAULTS
    ids = {}
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        found = [place[name] for place in (text, generation, defaults) if in_vocabulary(place.get(name), vocab_size)]
        ids[name] = found[0] if found else None
    return ids


def in_vocabulary(value: Any, vocab_size: int) -> bool:
    """Whether a token id (or each of a list) exists."""
    ids = value if isinstance(value, list) else [value]
    return bool(ids) and all(type(one) is int and 0 <= one < vocab_size for one in ids)


def config_class(name: str) -> type:
    """ArgusVisionConfig or ArgusTextConfig, imported when it is needed: transformers takes its time."""
    import modeling_argus

    return getattr(modeling_argus, name)


def _square(value: Any, name: str) -> int:
    """One side from an int or a [height, width] pair."""
    sides = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(sides) != 2 or sides[0] != sides[1]:
        raise ConvertError(f"vision_config.{name} is {value!r}; Argus' tiles and patches are square.")
    return sides[0]


def _vision_fields(full: dict[str, Any]) -> dict[str, Any]:
    fields = {
        **{name: full[name] for name in VISION_FIELDS},
        "image_size": _square(full["image_size"], "image_size"),
        "patch_size": _square(full["patch_size"], "patch_size"),
    }
    check_fields(fields, config_class("ArgusVisionConfig"), "vision_config.")
    return fields


def _factor(ratio: Any) -> int:
    factor = round(1 / ratio) if is_number(ratio) and ratio else 0
    if not factor or factor * ratio != 1:
        raise ConvertError(f"downsample_ratio is {ratio!r}; it must be one over a whole number.")
    return factor


def read_siglip(raw: dict[str, Any]) -> dict[str, Any]:
    """ArgusVisionConfig's fields from SmolVLM's, Idefics3's or SigLIP's tower."""
    full = {**SIGLIP_DEFAULTS, **raw}
    return {**_vision_fields(full), "attention_bias": True}


def read_internvit(raw: dict[str, Any]) -> dict[str, Any]:
    """ArgusVisionConfig's fields from transformers' InternVLVisionConfig."""
    refuse_unless(raw, INTERNVL_VISION_ONLY, "vision_config")
    full = {**INTERNVIT_DEFAULTS, **raw}
    return {
        **_vision_fields(full),
        "attention_bias": full["attention_bias"],
        "use_class_token": True,
        "use_layer_scale": True,
        "layer_scale_init_value": full["layer_scale_init_value"],
        "use_post_layernorm": not raw.get("use_mean_pooling", True),
    }


def read_internvit_chat(raw: dict[str, Any]) -> dict[str, Any]:
    """ArgusVisionConfig's fields from the original repository's InternVisionConfig."""
    full = {**INTERNVIT_CHAT_DEFAULTS, **raw}
    refuse_unless(full, INTERNVL_CHAT_VISION_ONLY, "vision_config")
    fields = read_internvit({name: full[name] for name in INTERNVIT_DEFAULTS})
    return {**fields, "attention_bias": full["qkv_bias"]}


def _tied(raw: dict[str, Any], text: dict[str, Any], default: bool) -> Optional[bool]:
    """Whether the head is the embedding; None where the two flags disagree, as the two majors then do."""
    for where, flags in (("config", raw), ("text_config", text)):
        refuse_unless(flags, {"tie_word_embeddings": (True, False, None)}, where)
    top = raw.get("tie_word_embeddings", default)
    inner = text.get("tie_word_embeddings", False)
    return top if bool(top) == bool(inner) else None


def read_smolvlm(raw: dict[str, Any]) -> tuple[dict[str, Any], Optional[bool]]:
    """(ArgusConfig's fields, tied or None) from a SmolVLM or Idefics3 config."""
    text = {"model_type": "llama", **section(raw, "text_config")}
    vision = section(raw, "vision_config")
    for where, part in (("text_config", text), ("vision_config", vision), ("config", raw)):
        refuse_unless(part, {"use_resampler": (False, None), "qk_layer_norms": (False, None)}, where)
    fields = {
        "vision_config": read_siglip(vision),
        "text_config": read_text(text),
        "image_token_id": raw.get("image_token_id", 128257),
        "pixel_unshuffle_factor": raw.get("scale_factor", 2),
        "connector_type": "linear",
        "connector_bias": False,
    }
    return fields, _tied(raw, text, False)


def read_internvl(raw: dict[str, Any]) -> tuple[dict[str, Any], Optional[bool]]:
    """(ArgusConfig's fields, tied or None) from an InternVL config of the -hf layout."""
    refuse_unless(raw, INTERNVL_ONLY, "config")
    text = {"model_type": "qwen2", **section(raw, "text_config")}
    fields = {
        "vision_config": read_internvit(section(raw, "vision_config")),
        "text_config": read_text(text),
        "image_token_id": raw.get("image_token_id", 151667),
        "pixel_unshuffle_factor": _factor(raw.get("downsample_ratio", 0.5)),
        "connector_type": "mlp",
        "connector_hidden_act": raw.get("projector_hidden_act", "gelu"),
        "connector_layer_norm_eps": 1e-5,  # torch's default, which both layouts use
    }
    return fields, _tied(raw, text, True)


def read_internvl_chat(raw: dict[str, Any], image_token_id: int) -> tuple[dict[str, Any], Optional[bool]]:
    """(ArgusConfig's fields, tied or None) from an original InternVLChatModel config, which names no image token."""
    refuse_unless({"ps_version": "v1", **raw}, INTERNVL_CHAT_ONLY, "config")
    vision = read_internvit_chat(section(raw, "vision_config"))
    forced = raw.get("force_image_size")
    if forced and forced != vision["image_size"]:
        raise ConvertError(
            f"force_image_size is {forced} and vision_config.image_size {vision['image_size']}: the position "
            "embeddings would have to be interpolated, which Argus does not do."
        )
    text = section(raw, "llm_config")
    fields = {
        "vision_config": vision,
        "text_config": read_text(text, "llm_config"),
        "image_token_id": image_token_id,
        "pixel_unshuffle_factor": _factor(raw.get("downsample_ratio", 0.5)),
        "connector_type": "mlp",
        "connector_hidden_act": "gelu",
        "connector_layer_norm_eps": 1e-5,
    }
    inner = bool(text.get("tie_word_embeddings", False))  # the top-level flag is not read by the original code
    return fields, inner
