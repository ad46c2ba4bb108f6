"""One ViT that is SigLIP or InternViT by config. Tiles are always full: no masks, static positions (recipe 10).

uint8 tiles are normalised by the patch embedding itself (recipes 6 and 8): with x = pixel - 128, which bf16 holds
exactly, conv((pixel / 255 - mean) / std) = x @ (W / (255 std)) + b + sum W (128 / 255 - mean) / std. The fold is done
in fp32 at each call from the convolution's own weights, so nothing can go stale in training, loading or saving.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple

from .configuration_argus import ArgusVisionConfig


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """softmax(q k^T * scaling) v over float[B, H, N, D]; returns (float[B, N, H, D], weights)."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


# Not named *Attention: transformers decides by a regular expression over this file, and by a different one in each
# major, whether set_attn_implementation() may be used. Without such a class both say yes.
class ArgusVisionAttn(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states):
        B, N, D = hidden_states.shape
        q, k, v = self.qkv_proj(hidden_states).view(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        implementation = self.config._attn_implementation
        attention = eager_attention if implementation in (None, "eager") else ALL_ATTENTION_FUNCTIONS[implementation]
        dropout = self.config.attention_dropout if self.training else 0.0
        out, weights = attention(self, q, k, v, None, dropout=dropout, scaling=self.scaling, is_causal=False)
        return self.out_proj(out.reshape(B, N, D)), weights


class ArgusVisionMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.fc2(self.act(self.fc1(hidden_states)))


class ArgusVisionLayer(GradientCheckpointingLayer):
    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ArgusVisionAttn(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ArgusVisionMLP(config)
        self.layer_scale_init_value = config.layer_scale_init_value
        self.layer_scale1 = self.layer_scale2 = None
        if config.use_layer_scale:
            self.layer_scale1 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init_value))
            self.layer_scale2 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init_value))

    def forward(self, hidden_states):
        branch, weights = self.self_attn(self.layer_norm1(hidden_states))
        hidden_states = hidden_states + (branch if self.layer_scale1 is None else self.layer_scale1 * branch)
        branch = self.mlp(self.layer_norm2(hidden_states))
        return hidden_states + (branch if self.layer_scale2 is None else self.layer_scale2 * branch), weights


class ArgusVisionModel(PreTrainedModel):
    """Encodes each tile on its own: uint8[tiles, 3, S, S] -> float[tiles, N, D], class token dropped."""

    config_class = ArgusVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ArgusVisionLayer"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(self, config: ArgusVisionConfig):
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        num_positions = config.patches_per_side**2 + int(config.use_class_token)
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size)) if config.use_class_token else None
        self.position_embedding = nn.Embedding(num_positions, config.hidden_size)
        self.layers = nn.ModuleList(ArgusVisionLayer(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.use_post_layernorm else None
        )
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module):
        init_weights(module, self.config.initializer_range)

    def get_input_embeddings(self):
        return self.patch_embedding

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encodes tiles.

        Args:
            pixel_values: uint8[tiles, C, S, S], or floating point of the same shape that is normalised already.

        Raises:
            ValueError: another shape or dtype, or floats that cannot be normalised pixels.
        """
        want_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        want_weights = self.config.output_attentions if output_attentions is None else output_attentions
        if want_weights and self.config._attn_implementation not in (None, "eager"):
            raise ValueError(
                "attention weights exist only with attn_implementation='eager', not "
                f"{self.config._attn_implementation!r}."
            )
        x = self._embed(pixel_values)
        if self.class_embedding is not None:
            x = torch.cat((self.class_embedding.expand(x.shape[0], 1, -1), x), dim=1)
        x = x + self._positions(x.device)
        states, all_weights = (x,), ()
        for layer in self.layers:
            x, weights = layer(x)
            if want_states:
                states += (x,)
            if want_weights:
                all_weights += (weights,)
        if self.post_layernorm is not None:
            x = self.post_layernorm(x)
        return BaseModelOutputWithPooling(
            last_hidden_state=x if self.class_embedding is None else x[:, 1:],
            hidden_states=states if want_states else None,
            attentions=all_weights if want_weights else None,
        )

    def _positions(self, device) -> torch.Tensor:
        if not hasattr(self.position_embedding, "_hf_hook"):
            return self.position_embedding.weight
        # accelerate brings an offloaded weight in only when its module is called
        return self.position_embedding(torch.arange(self.position_embedding.num_embeddings, device=device))

    def _embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        config, conv = self.config, self.patch_embedding
        S, P, side = config.image_size, config.patch_size, config.patches_per_side
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (config.num_channels, S, S):
            raise ValueError(
                f"pixel_values must be [tiles, {config.num_channels}, {S}, {S}], all tiles of the batch in one flat "
                f"dimension, got {list(pixel_values.shape)}. ArgusImageProcessor makes them so."
            )
        # A wrapped convolution (LoRA) or one whose weights an accelerate hook brings in has to be called as a module.
        plain = type(conv) is nn.Conv2d and not hasattr(conv, "_hf_hook")
        if pixel_values.dtype == torch.uint8 and plain:
            pixels = pixel_values[..., : side * P, : side * P].reshape(-1, config.num_channels, side, P, side, P)
            patches = pixels.permute(0, 2, 4, 1, 3, 5).reshape(-1, side * side, config.num_channels * P * P)
            weight, bias = self._fold()
            return F.linear(patches.to(weight.dtype) - 128, weight, bias)
        if pixel_values.dtype == torch.uint8:
            mean, std = self._normalisation(pixel_values.device)
            pixel_values = (pixel_values.float() / 255 - mean) / std
        elif not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values must be uint8 or floating point, got {pixel_values.dtype}.")
        elif not torch.compiler.is_compiling() and pixel_values.device.type != "meta":
            self._refuse_raw_floats(pixel_values)
        return conv(pixel_values.to(self.position_embedding.weight.dtype)).flatten(2).transpose(1, 2)

    def _fold(self) -> tuple[torch.Tensor, torch.Tensor]:
        """float[D, C * P * P] and float[D]: the patch embedding of centred uint8 pixels."""
        conv = self.patch_embedding
        mean, std = self._normalisation(conv.weight.device)
        weight = conv.weight.float()
        offset = ((128 / 255 - mean) / std * weight).sum((1, 2, 3)) + conv.bias.float()
        dtype = conv.weight.dtype
        return (weight / (255 * std)).flatten(1).to(dtype), offset.to(dtype)

    def _normalisation(self, device) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = self.config.image_mean, self.config.image_std
        return tuple(torch.tensor(v, device=device, dtype=torch.float32).view(1, -1, 1, 1) for v in (mean, std))

    def _refuse_raw_floats(self, pixel_values: torch.Tensor) -> None:
        # (0 - mean) / std .. (1 - mean) / std, with half a unit of room for resampling that was not clamped.
        pairs = list(zip(self.config.image_mean, self.config.image_std))
        low, high = min(-m / s for m, s in pairs) - 0.5, max((1 - m) / s for m, s in pairs) + 0.5
        smallest, largest = (v.item() for v in pixel_values.aminmax()) if pixel_values.numel() else (0.0, 0.0)
        if not (low <= smallest and largest <= high):
            raise ValueError(
                f"floating point pixel_values hold values in [{smallest:g}, {largest:g}], which normalised pixels "
                f"cannot have (about {low + 0.5:.3g} to {high - 0.5:.3g}). Pass the uint8 tiles as they are (do not "
                "cast them), or tiles made with do_normalize=True."
            )


def init_weights(module: nn.Module, std: float) -> None:
    """Initialises the parameters that `module` itself holds; one rule for every part of the model."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
        nn.init.normal_(module.weight, mean=0.0, std=std)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, ArgusVisionLayer) and module.layer_scale1 is not None:
        nn.init.constant_(module.layer_scale1, module.layer_scale_init_value)
        nn.init.constant_(module.layer_scale2, module.layer_scale_init_value)
    elif isinstance(module, ArgusVisionModel) and module.class_embedding is not None:
        nn.init.normal_(module.class_embedding, mean=0.0, std=std)
    elif "RMSNorm" in type(module).__name__:
        nn.init.ones_(module.weight)


__all__ = ["ArgusVisionModel"]
