"""Configurations of the ArgusVLM family (Section 4.1): vision, text, and the two joined by a connector.

One class each covers every member: a shape is data in config.json, never code. Every value that the model derives from
another (head sizes, tokens per tile) is a property here and is computed nowhere else.
"""

import copy

from transformers import PretrainedConfig

KERNELS = ("auto", "triton", "liger", "torch")


def _same(config, other) -> bool:
    # transformers 5 gives every subclass a dataclass __eq__ that compares declared fields only: two different shapes
    # would be equal. Each class below binds this one instead.
    if not isinstance(other, PretrainedConfig):
        return False
    unlike = {"_name_or_path", "transformers_version"}  # where it was loaded from, not what it is
    mine, theirs = ({k: v for k, v in c.to_dict().items() if k not in unlike} for c in (config, other))
    return mine == theirs


def _positive(**values) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def _layers(number: int) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= 1000:
        raise ValueError(f"num_hidden_layers must be an integer from 0 to 1000, got {number!r}.")


class ArgusVisionConfig(PretrainedConfig):
    """A ViT that is SigLIP-B/16 (the defaults) or InternViT-300M (class token, layer scale, no final norm).

    Args:
        image_size: side of a square tile in pixels; tiles are always full, so positions are static.
        patch_size: side of a patch in pixels; a tile has `image_size // patch_size` of them a side.
        attention_bias: bias of the fused query/key/value projection.
        use_class_token: a learned token before the patches (InternViT); it is dropped before the connector.
        use_layer_scale: a learned scale per channel on both residual branches (InternViT).
        use_post_layernorm: a LayerNorm after the last layer (SigLIP).
        image_mean, image_std: per-channel normalisation of pixels in [0, 1], folded into the patch embedding.

    Raises:
        ValueError: sizes that do not divide, with the values.
    """

    model_type = "argus_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_channels: int = 3,
        image_size: int = 512,
        patch_size: int = 16,
        hidden_act: str = "gelu_pytorch_tanh",
        layer_norm_eps: float = 1e-6,
        attention_bias: bool = True,
        attention_dropout: float = 0.0,
        use_class_token: bool = False,
        use_layer_scale: bool = False,
        layer_scale_init_value: float = 0.1,
        use_post_layernorm: bool = True,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        _positive(
            hidden_size=hidden_size,
            num_attention_heads=num_attention_heads,
            image_size=image_size,
            patch_size=patch_size,
        )
        _layers(num_hidden_layers)
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"vision hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}."
            )
        if image_size < patch_size:
            raise ValueError(f"image_size {image_size} is smaller than patch_size {patch_size}.")
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_channels = num_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.use_class_token = use_class_token
        self.use_layer_scale = use_layer_scale
        self.layer_scale_init_value = layer_scale_init_value
        self.use_post_layernorm = use_post_layernorm
        self.image_mean = list(image_mean) if image_mean is not None else [0.5] * num_channels
        self.image_std = list(image_std) if image_std is not None else [0.5] * num_channels
        if len(self.image_mean) != num_channels or len(self.image_std) != num_channels or 0 in self.image_std:
            raise ValueError(
                f"image_mean {self.image_mean} and image_std {self.image_std} need {num_channels} values each, and no "
                "standard deviation may be 0."
            )
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    __eq__ = _same

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size


class ArgusTextConfig(PretrainedConfig):
    """A decoder that is Llama/SmolLM2 (the defaults: SmolLM2-135M) or Qwen2.5 (`attention_bias=True`).

    Args:
        head_dim: size of one attention head; None means `hidden_size // num_attention_heads`.
        rope_theta: base of the rotary frequencies.
        rope_scaling: None, or {"rope_type": "llama3", ...} (Llama 3.1), or {"rope_type": "dynamic", "factor": f}
            (InternVL3). Kept, with `rope_theta`, as transformers 5's `rope_parameters`, which is read too.
        attention_bias: bias of the fused query/key/value projection (Qwen2); the output projection never has one.
        kernels: "auto" takes the fastest that may run here; "triton", "liger" and "torch" are those alone.

    Raises:
        ValueError: sizes that do not divide, a rotary scaling or kernels that are not one of those above.
    """

    model_type = "argus_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 49280,
        hidden_size: int = 576,
        intermediate_size: int = 1536,
        num_hidden_layers: int = 30,
        num_attention_heads: int = 9,
        num_key_value_heads: int | None = 3,
        head_dim: int | None = None,
        hidden_act: str = "silu",
        max_position_embeddings: int = 8192,
        rms_norm_eps: float = 1e-5,
        rope_theta: float = 100000.0,
        rope_scaling: dict | None = None,
        attention_bias: bool = False,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        kernels: str = "auto",
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        **kwargs,
    ):
        if num_key_value_heads is None:
            num_key_value_heads = num_attention_heads
        _positive(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
        )
        _layers(num_hidden_layers)
        if head_dim is None and hidden_size % num_attention_heads:
            raise ValueError(
                f"text hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}; "
                "say head_dim if that is meant."
            )
        if num_attention_heads % num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {num_attention_heads} is not a multiple of "
                f"num_key_value_heads {num_key_value_heads}."
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim if head_dim is not None else hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_parameters = _read_rope(rope_theta, rope_scaling, kwargs.pop("rope_parameters", None))
        self.rope_theta = self.rope_parameters["rope_theta"]
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.kernels = _known_kernels(kernels)
        super().__init__(**kwargs)
        # After super(): transformers 4 would overwrite these with its defaults, 5 no longer has them on the base.
        self.tie_word_embeddings = tie_word_embeddings
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id

    __eq__ = _same


def _known_kernels(kernels: str) -> str:
    if kernels not in KERNELS:
        raise ValueError(f"kernels {kernels!r} is unknown; it can be {', '.join(map(repr, KERNELS))}.")
    return kernels


def _read_rope(theta: float, scaling: dict | None, parameters: dict | None) -> dict:
    """transformers 4's two fields, or transformers 5's one, as the latter: {"rope_type", "rope_theta", ...}."""
    rope = {"rope_theta": theta, **(parameters or scaling or {})}
    kind = rope.pop("type", "default")  # the older spelling
    kind = rope.setdefault("rope_type", kind)
    needed = {
        "default": (),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        "dynamic": ("factor",),
    }
    if kind not in needed:
        raise ValueError(f"rope_type {kind!r} is not supported; it can be 'default', 'llama3' or 'dynamic'.")
    missing = [name for name in needed[kind] if name not in rope]
    if missing:
        raise ValueError(f"a rotary scaling of type {kind!r} needs {missing}, got {rope}.")
    return rope


class ArgusConfig(PretrainedConfig):
    """The whole model (Figure 5): a vision tower, a connector, a text decoder.

    Args:
        vision_config, text_config: the parts, as configurations or as dicts.
        image_token_id: id of the placeholder that stands once for each visual token in `input_ids`.
        pixel_unshuffle_factor: r; each r x r neighbourhood of patches becomes one visual token (Section 4.1).
        connector_type: "linear" is the paper's single layer; "mlp" is InternVL's LayerNorm and two layers.
        connector_bias: bias of the single layer ("mlp" always has biases).
        connector_hidden_act, connector_layer_norm_eps: of "mlp" alone.
        tie_word_embeddings: the output head is the token embedding; None takes the text configuration's word.
        kernels: the text configuration's, by which it can be set from here: `from_pretrained(path, kernels="torch")`.

    Raises:
        ValueError: a factor that does not divide the patch grid, an image token outside the vocabulary, an unknown
            connector, with the values.
    """

    model_type = "argus"
    sub_configs = {"vision_config": ArgusVisionConfig, "text_config": ArgusTextConfig}

    def __init__(
        self,
        vision_config: dict | ArgusVisionConfig | None = None,
        text_config: dict | ArgusTextConfig | None = None,
        image_token_id: int = 49190,
        pixel_unshuffle_factor: int = 4,
        connector_type: str = "linear",
        connector_bias: bool = False,
        connector_hidden_act: str = "gelu",
        connector_layer_norm_eps: float = 1e-5,
        tie_word_embeddings: bool | None = None,
        initializer_range: float = 0.02,
        kernels: str | None = None,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        **kwargs,
    ):
        self.vision_config = _sub_config(vision_config, ArgusVisionConfig)
        self.text_config = _sub_config(text_config, ArgusTextConfig)
        if kernels is not None:
            self.kernels = kernels
        _positive(pixel_unshuffle_factor=pixel_unshuffle_factor)
        side = self.vision_config.patches_per_side
        if side % pixel_unshuffle_factor:
            raise ValueError(
                f"pixel_unshuffle_factor {pixel_unshuffle_factor} does not divide the {side} x {side} patches "
                f"of a tile (image_size {self.vision_config.image_size}, patch_size {self.vision_config.patch_size})."
            )
        if not 0 <= image_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"image_token_id {image_token_id} is outside the vocabulary of {self.text_config.vocab_size} tokens."
            )
        if connector_type not in ("linear", "mlp"):
            raise ValueError(f"connector_type {connector_type!r} is unknown; it can be 'linear' or 'mlp'.")
        self.image_token_id = image_token_id
        self.pixel_unshuffle_factor = pixel_unshuffle_factor
        self.connector_type = connector_type
        self.connector_bias = connector_bias
        self.connector_hidden_act = connector_hidden_act
        self.connector_layer_norm_eps = connector_layer_norm_eps
        self.initializer_range = initializer_range
        super().__init__(**kwargs)
        # transformers 4 ties by the text config, 5 by this one: the two are kept equal. After super(), as above.
        tied = self.text_config.tie_word_embeddings if tie_word_embeddings is None else tie_word_embeddings
        self.tie_word_embeddings = self.text_config.tie_word_embeddings = tied
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id

    __eq__ = _same

    def to_dict(self) -> dict:
        """As transformers', but that `pipeline()` leaves classes in `custom_pipelines`, which JSON cannot hold."""
        result = super().to_dict()
        for task in (result.get("custom_pipelines") or {}).values():
            for key in {"pt", "tf"} & set(task):  # one class or several; "tf" is transformers 4's, and empty
                names = task.pop(key)
                names = [getattr(c, "__name__", c) for c in ([names] if isinstance(names, str) else names)]
                task.update({key: names} if names else {})
        return result

    @property
    def kernels(self) -> str:
        """Which kernels the decoder runs; see ArgusTextConfig."""
        return self.text_config.kernels

    @kernels.setter
    def kernels(self, kernels: str) -> None:
        self.text_config.kernels = _known_kernels(kernels)

    @property
    def image_seq_length(self) -> int:
        """Visual tokens of one tile, after pixel-unshuffle."""
        return (self.vision_config.patches_per_side // self.pixel_unshuffle_factor) ** 2


def _sub_config(config, config_class):
    if config is None:
        return config_class()
    if isinstance(config, dict):
        return config_class(**{key: value for key, value in config.items() if key != "model_type"})
    return copy.deepcopy(config)  # the caller's own stays as it is


__all__ = ["ArgusConfig", "ArgusTextConfig", "ArgusVisionConfig"]
