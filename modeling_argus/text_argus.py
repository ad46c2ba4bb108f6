"""One decoder that is Llama/SmolLM2 or Qwen2.5 by config, with fused projections and no buffers.

  x -> RMSNorm -> qkv_proj -> rotary -> attention -> o_proj -> (+) -> RMSNorm -> gate_up -> SwiGLU -> down_proj -> (+)
  |____________________________________________________________|   |________________________________________________|

Rotary cosines and sines are computed once a call, from positions alone: transformers 5 builds models on the meta
device, where a buffer that no checkpoint fills would hold whatever memory held.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from .base_argus import ArgusPreTrainedModel
from .checks_argus import reading_waits
from .compat_modeling_argus import causal_mask
from .configuration_argus import ArgusTextConfig
from .kernels_argus import TORCH, choose


class ArgusRMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), the mean in fp32; with a residual, of the sum, which comes first of two."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden_states, residual=None, kernels=TORCH):
        if residual is None:
            return kernels.rms_norm(hidden_states, self.weight, self.eps)
        return kernels.add_rms_norm(hidden_states, residual, self.weight, self.eps)

    def init_own_weights(self, std: float) -> None:
        nn.init.ones_(self.weight)


def rotary_frequencies(config: ArgusTextConfig, position_ids: torch.Tensor) -> torch.Tensor:
    """Inverse frequencies float32[head_dim / 2]; the positions int64[B, T] matter to "dynamic" alone."""
    rope = config.rope_parameters
    theta, kind = rope["rope_theta"], rope["rope_type"]
    if kind == "dynamic":  # NTK-aware: past the trained length the base grows with the sequence
        longest, factor = config.max_position_embeddings, rope["factor"]
        length = (position_ids.max() + 1).clamp(min=longest)
        theta = theta * (factor * length / longest - (factor - 1)) ** (config.head_dim / (config.head_dim - 2))
    indices = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=position_ids.device)
    frequencies = 1.0 / (theta ** (indices.float() / config.head_dim))
    if kind == "llama3":  # long wavelengths are stretched, short ones kept, smoothly between
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * frequencies / (2 * torch.pi)
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = (1 - smooth) * frequencies / rope["factor"] + smooth * frequencies
    return frequencies


@torch.no_grad()
def rotary_embeddings(config: ArgusTextConfig, position_ids: torch.Tensor, dtype) -> tuple:
    """Cosines and sines float[B, 1, T, head_dim] of int64[B, T] positions, computed in fp32 whatever autocast says.

    The first half of the sines is negative: kernels_argus.rotary has nothing left to negate.
    """
    with torch.autocast(device_type=position_ids.device.type, enabled=False):
        angles = position_ids[:, None, :, None].float() * rotary_frequencies(config, position_ids)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def eager_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """softmax(q k^T * scaling + mask) v with grouped heads; returns (float[B, T, H, D], weights)."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask[..., : key.shape[-2]]
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def padded_causal_mask(attention_mask: torch.Tensor, length: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Which of the keys int[B, past + T] (0: padding) each of the last T = `length` tokens sees, [B, 1, T, past + T].

    bool, or with a dtype what to add to the scores. Every token sees itself, so that no row of the softmax is empty.
    """
    keys = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    queries = keys[-length:, None]
    seen = (keys <= queries) & attention_mask[:, None, None, :].bool() | (keys == queries)
    if dtype is None:
        return seen
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)


# Not named *Attention, for the reason that vision_argus.py gives.
class ArgusTextAttn(nn.Module):
    def __init__(self, config: ArgusTextConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.heads) * self.head_dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.heads[0] * self.head_dim, config.hidden_size, bias=False)

    def forward(self, hidden_states, cos, sin, attention_mask, past_key_values, cache_position, kernels, **kwargs):
        B, T, _ = hidden_states.shape
        query_heads, key_heads, value_heads = self.heads
        qkv = self.qkv_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
        qk, v = qkv.split((query_heads + key_heads, value_heads), dim=1)
        q, k = kernels.rotary(qk, cos, sin).split((query_heads, key_heads), dim=1)  # both at once: half the launches
        if past_key_values is not None:
            # 4.57's static cache writes at cache_position, and at slot 0 if it is not told one.
            k, v = past_key_values.update(k, v, self.layer_idx, {"cache_position": cache_position})
        implementation = self.config._attn_implementation
        attention = eager_attention if implementation in (None, "eager") else ALL_ATTENTION_FUNCTIONS[implementation]
        dropout = self.config.attention_dropout if self.training else 0.0
        out, weights = attention(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(out.reshape(B, T, -1)), weights


class ArgusTextMLP(nn.Module):
    def __init__(self, config: ArgusTextConfig):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.act = ACT2FN[config.hidden_act]
        self.is_swiglu = config.hidden_act == "silu"
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states, kernels=TORCH):
        gate_up = self.gate_up_proj(hidden_states)
        if self.is_swiglu:
            return self.down_proj(kernels.swiglu(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        return self.down_proj(self.act(gate) * up)


class ArgusTextLayer(GradientCheckpointingLayer):
    def __init__(self, config: ArgusTextConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = ArgusRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = ArgusTextAttn(config, layer_idx)
        self.post_attention_layernorm = ArgusRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = ArgusTextMLP(config)

    def forward(
        self,
        hidden_states,
        cos=None,
        sin=None,
        attention_mask=None,
        past_key_values=None,
        cache_position=None,
        kernels=TORCH,
        **kwargs,
    ):
        x = self.input_layernorm(hidden_states, kernels=kernels)
        branch, weights = self.self_attn(
            x, cos, sin, attention_mask, past_key_values, cache_position, kernels, **kwargs
        )
        hidden_states, x = self.post_attention_layernorm(branch, hidden_states, kernels)
        return hidden_states + self.mlp(x, kernels), weights


class ArgusTextModel(ArgusPreTrainedModel):
    """Token ids int64[B, T] or embeddings float[B, T, D] -> hidden states float[B, T, D]."""

    config_class = ArgusTextConfig
    input_modalities = ("text",)

    def __init__(self, config: ArgusTextConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ArgusTextLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = ArgusRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def makes_own_masks(self) -> bool:
        """Whether this attention takes plain masks, which are made here without reading a value."""
        return self.config._attn_implementation in (None, "eager", "sdpa")

    def is_padded(self, attention_mask) -> bool | None:
        """Whether a mask int[B, past + T] holds zeros: one read. None: no such mask, or it is not to be read."""
        if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
            return None
        if torch.compiler.is_compiling() or attention_mask.device.type == "meta" or not self.makes_own_masks():
            return None
        return not attention_mask.all()

    def _mask(self, inputs_embeds, attention_mask, is_padded, past_key_values, position_ids, cache_position):
        """What the attention needs to know: None where causal is enough."""
        own = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 and self.makes_own_masks()
        if own and is_padded is None and not reading_waits(attention_mask):
            is_padded = self.is_padded(attention_mask)
        if own and is_padded is False:
            attention_mask = position_ids = None  # positions would be searched for packed sequences
        elif own and not getattr(past_key_values, "is_compileable", False):
            dtype = None if self.config._attn_implementation == "sdpa" else inputs_embeds.dtype
            return padded_causal_mask(attention_mask.to(inputs_embeds.device), inputs_embeds.shape[1], dtype)
        return causal_mask(self.config, inputs_embeds, attention_mask, past_key_values, position_ids, cache_position)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        is_padded: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Decodes.

        Args:
            attention_mask: int[B, past + T], 1 for tokens and 0 for padding (or a prepared 4D mask).
            is_padded: whether `attention_mask` holds zeros, for callers who know it. None: it is read where that is
                free, and taken to hold some on a GPU.
            position_ids: int64[B, T]; by default they count on from the cache.

        Raises:
            ValueError: neither or both of ids and embeddings, or a mask of another length.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        want_states, want_weights = self._wanted_outputs(output_hidden_states, output_attentions)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        B, T, _ = inputs_embeds.shape
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 and isinstance(past, int):
            if tuple(attention_mask.shape) != (B, past + T):
                raise ValueError(
                    f"attention_mask is {list(attention_mask.shape)}; {B} rows of {past} cached and {T} new tokens "
                    f"need [{B}, {past + T}]."
                )
        cache_position = kwargs.pop("cache_position", None)  # 4.57's generate hands it in; 5.x knows it no more
        if cache_position is None:
            cache_position = torch.arange(T, device=inputs_embeds.device) + past
        # Positions that nobody gave hold no packed sequences to look for.
        mask = self._mask(inputs_embeds, attention_mask, is_padded, past_key_values, position_ids, cache_position)
        if position_ids is None:
            position_ids = cache_position.unsqueeze(0)
        cos, sin = rotary_embeddings(self.config, position_ids, inputs_embeds.dtype)
        kernels = choose(self.config.kernels, inputs_embeds.device, torch.is_grad_enabled(), inputs_embeds.dtype)

        x = inputs_embeds
        states, all_weights = (), ()
        for layer in self.layers:
            if want_states:
                states += (x,)
            x, weights = layer(
                x,
                cos=cos,
                sin=sin,
                attention_mask=mask,
                past_key_values=past_key_values,
                cache_position=cache_position,
                position_ids=position_ids,
                kernels=kernels,
                **kwargs,
            )
            if want_weights:
                all_weights += (weights,)
        x = self.norm(x, kernels=kernels)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=(*states, x) if want_states else None,
            attentions=all_weights if want_weights else None,
        )


__all__ = ["ArgusTextModel"]
