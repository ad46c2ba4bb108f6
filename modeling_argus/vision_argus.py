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
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from .base_argus import ArgusPreTrainedModel
from .checks_argus import reading_waits, require
from .configuration_argus import ArgusVisionConfig

_CACHED_ACTIVATIONS = 2**22  # values of one MLP's hidden layer that a CPU encodes at a time


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """softmax(q k^T * scaling) v over float[B, H, N, D]; returns (float[B, N, H, D], weights)."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attention_by_heads(query, key, value, scaling: float) -> torch.Tensor:
    """softmax(q k^T * scaling) v over [B, H, N, D] as [B, N, H, D], for 16-bit floats on a CPU.

    Two heads at a time, so that their scores stay in the cache: 2.3 times as fast as torch's flash attention there,
    with the rounding of the eager path (the scores are 16-bit before the softmax).
    """
    B, H, N, D = query.shape
    out = query.new_empty(B, N, H, D)
    heads = out.transpose(1, 2)
    query, key, value = (query * scaling).contiguous(), key.contiguous(), value.contiguous()
    for b in range(B):
        for h in range(0, H, 2):
            pair = slice(h, h + 2)
            scores = torch.bmm(query[b, pair], key[b, pair].transpose(1, 2))
            heads[b, pair] = torch.bmm(F.softmax(scores, dim=-1), value[b, pair])
    return out


def _is_inference_on_cpu(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def is_plain(module: nn.Module, kind: type) -> bool:
    """Whether the weights of `module` may be used without calling it: it is no adapter around one, and nothing hooks
    into its call, as accelerate does to bring offloaded weights in, and checkpointing to start adapters' gradients."""
    return type(module) is kind and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hasattr(module, "_hf_hook")
    )


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
        if implementation == "sdpa" and _is_inference_on_cpu(q) and q.dtype in (torch.bfloat16, torch.float16):
            out, weights = attention_by_heads(q, k, v, self.scaling), None
        else:
            attention = (
                eager_attention if implementation in (None, "eager") else ALL_ATTENTION_FUNCTIONS[implementation]
            )
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

    def init_own_weights(self, std: float) -> None:
        for scale in (self.layer_scale1, self.layer_scale2):
            if scale is not None:
                nn.init.constant_(scale, self.layer_scale_init_value)


class ArgusVisionModel(ArgusPreTrainedModel):
    """Encodes each tile on its own: uint8[tiles, 3, S, S] -> float[tiles, N, D], class token dropped."""

    config_class = ArgusVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

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

    def init_own_weights(self, std: float) -> None:
        if self.class_embedding is not None:
            nn.init.normal_(self.class_embedding, mean=0.0, std=std)

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
        want_states, want_weights = self._wanted_outputs(output_hidden_states, output_attentions)
        pixel_values = self._checked(pixel_values)
        at_once = self._tiles_at_once(pixel_values, want_states or want_weights)
        if at_once < pixel_values.shape[0]:
            parts = [self._encode(tiles, False, False)[0] for tiles in pixel_values.split(at_once)]
            x, states, all_weights = torch.cat(parts), None, None
        else:
            x, states, all_weights = self._encode(pixel_values, want_states, want_weights)
        return BaseModelOutputWithPooling(
            last_hidden_state=x if self.class_embedding is None else x[:, 1:],
            hidden_states=states,
            attentions=all_weights,
        )

    def _encode(self, pixel_values: torch.Tensor, want_states: bool, want_weights: bool) -> tuple:
        """Tiles -> (float[tiles, N, D] with the class token, hidden states or None, attention weights or None)."""
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
        return x, states if want_states else None, all_weights if want_weights else None

    def _tiles_at_once(self, pixel_values: torch.Tensor, want_more: bool) -> int:
        """How many tiles go through the layers together: on a CPU as many as its caches hold, else all."""
        tiles = pixel_values.shape[0]
        if want_more or not _is_inference_on_cpu(pixel_values) or hasattr(self.layers[0], "_hf_hook"):
            return tiles  # accelerate's hooks bring offloaded weights in anew at each call of a layer
        activations = self.config.patches_per_side**2 * self.config.intermediate_size
        return max(1, _CACHED_ACTIVATIONS // activations)

    def _positions(self, device) -> torch.Tensor:
        if is_plain(self.position_embedding, nn.Embedding):
            return self.position_embedding.weight
        config = self.config
        return self.position_embedding(
            torch.arange(config.patches_per_side**2 + int(config.use_class_token), device=device)
        )

    def _checked(self, pixel_values: torch.Tensor) -> torch.Tensor:
        C, S = self.config.num_channels, self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (C, S, S):
            raise ValueError(
                f"pixel_values must be [tiles, {C}, {S}, {S}], all tiles of the batch in one flat "
                f"dimension, got {list(pixel_values.shape)}. ArgusImageProcessor makes them so."
            )
        if pixel_values.is_floating_point():
            return self._refuse_raw_floats(pixel_values)
        if pixel_values.dtype != torch.uint8:
            raise ValueError(f"pixel_values must be uint8 or floating point, got {pixel_values.dtype}.")
        return pixel_values

    def _embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tiles, uint8 or normalised already -> float[tiles, N, D]."""
        if not pixel_values.is_floating_point():
            if is_plain(self.patch_embedding, nn.Conv2d):
                return self._embed_folded(pixel_values)
            mean, std = self._normalisation(pixel_values.device)
            pixel_values = (pixel_values.float() / 255 - mean) / std
        return self.patch_embedding(pixel_values.to(self.dtype)).flatten(2).transpose(1, 2)

    def _embed_folded(self, pixel_values: torch.Tensor) -> torch.Tensor:
        C, P, side = self.config.num_channels, self.config.patch_size, self.config.patches_per_side
        pixels = pixel_values[..., : side * P, : side * P].reshape(-1, C, side, P, side, P)
        patches = pixels.permute(0, 2, 4, 1, 3, 5).reshape(-1, side * side, C * P * P)
        conv = self.patch_embedding
        mean, std = self._normalisation(conv.weight.device)
        weight = conv.weight.float()
        offset = ((128 / 255 - mean) / std * weight).sum((1, 2, 3)) + conv.bias.float()
        weight, dtype = (weight / (255 * std)).flatten(1), conv.weight.dtype
        return F.linear(patches.to(dtype) - 128, weight.to(dtype), offset.to(dtype))

    def _normalisation(self, device) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of pixels in [0, 1], float32[1, C, 1, 1] each."""
        return tuple(
            # filled there: a tensor made of a list would be a copy to the device, and the host would wait for it
            torch.cat([torch.full((1, 1, 1, 1), value, device=device, dtype=torch.float32) for value in values], dim=1)
            for values in (self.config.image_mean, self.config.image_std)
        )

    def _refuse_raw_floats(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if not pixel_values.numel():
            return pixel_values
        # (0 - mean) / std .. (1 - mean) / std, with half a unit of room for resampling that was not clamped.
        pairs = list(zip(self.config.image_mean, self.config.image_std))
        low, high = min(-m / s for m, s in pairs) - 0.5, max((1 - m) / s for m, s in pairs) + 0.5
        smallest, largest = pixel_values.aminmax()
        fits = (smallest >= low) & (largest <= high)
        require(
            fits,
            "floating point pixel_values are no normalised pixels",
            lambda: (
                f"they hold values in [{smallest.item():g}, {largest.item():g}], expected about {low + 0.5:.3g} to "
                f"{high - 0.5:.3g}. Pass the uint8 tiles as they are (do not cast them), or tiles made with "
                "do_normalize=True."
            ),
        )
        # Until the refusal is raised nothing may fail on what such values become: sampling from NaN would break a GPU.
        return torch.where(fits, pixel_values, 0) if reading_waits(pixel_values) else pixel_values


__all__ = ["ArgusVisionModel"]
