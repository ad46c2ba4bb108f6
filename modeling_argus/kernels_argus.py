"""The decoder's kernels: for each its formula and a plain-torch reference, and the one place that chooses among them.

Two families. The first four work on whole sequences, in the modules of text_argus.py, with gradients. The others are one
decoding step, one token a row: together with an embedding and a choice of token they are all that it launches, five of
them a layer. `choose` takes the fastest that may run; Triton's and Liger's have the signatures of the functions here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .quantized_argus import Int8Weight

KERNELS = ("auto", "triton", "liger", "torch")


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over float[..., D], the mean in fp32."""
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple:
    """(s, rms_norm(s)) with s = residual + x, both float[..., D]."""
    total = residual + x
    return total, rms_norm(total, weight, eps)


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x cos + (x2, x1) sin over float[B, H, T, D], halves (x1, x2); the first half of `sin` is negative already.

    cos, sin: float[B or 1, 1, T, D], as `rotary_embeddings` makes them.
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up over float[..., 2 I], gate before up -> float[..., I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


# --- one decoding step: B rows of one token each ----------------------------------------------------------------------


def linear(x: torch.Tensor, weight: "torch.Tensor | Int8Weight", bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b over float[B, K]; W float[N, K], or int8 with a scale a row."""
    if isinstance(weight, Int8Weight):
        out = torch._weight_int8pack_mm(x, weight.values, weight.scales)
        return out if bias is None else out + bias
    if x.shape[0] <= 4 and x.dtype == torch.float32 and x.device.type == "cpu" and torch.backends.mkl.is_available():
        out = _few_rows(x, weight)
        return out if bias is None else out + bias
    return F.linear(x, weight, bias)


def _few_rows(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T of up to four rows in fp32 by MKL. For one row F.linear is MKL's product with a vector, which runs on one
    thread; batched products run on all: 26 GB/s in place of 15 on two cores, and the same sums. For two to four rows
    W x^T takes half or a third of F.linear's time. (In bf16 neither gains anything over F.linear.)"""
    rows, (N, K) = x.shape[0], weight.shape
    parts = math.gcd(N, 32)
    if rows == 1 and parts > 1:
        return torch.bmm(x.expand(parts, 1, K), weight.view(parts, N // parts, K).transpose(1, 2)).view(1, N)
    return torch.mm(weight, x.t()).t().contiguous()


def norm_qkv_rotary(x, norm_weight, eps, qkv_weight, qkv_bias, cos, sin, keys, values, slot) -> torch.Tensor:
    """q, k, v = split(rms_norm(x) W^T + b); q and k turned; k and v written into the cache. Gives q.

    Args:
        x: float[B, D]; norm_weight: float[D]; qkv_weight: float[(Hq + 2 Hkv) d, D], rows q|k|v; qkv_bias: the same rows,
            or None.
        cos, sin: float[B, d], each row's position, the first half of the sines negative.
        keys, values: float[B, Hkv, C, d], written in place at `slot` int64[1], on the device.

    Returns:
        float[B, Hq, d].
    """
    B, key_heads, d = x.shape[0], keys.shape[1], keys.shape[3]
    qkv = linear(rms_norm(x, norm_weight, eps), qkv_weight, qkv_bias).view(B, -1, d)
    qk, v = qkv[:, :-key_heads], qkv[:, -key_heads:]
    qk = rotary(qk, cos[:, None], sin[:, None])
    keys.index_copy_(2, slot, qk[:, -key_heads:, None])
    values.index_copy_(2, slot, v[:, :, None])
    return qk[:, :-key_heads]


def decode_attention(q, keys, values, bias, slot, span: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, each key-value head serving Hq / Hkv query heads without being repeated.

    Args:
        q: float[B, Hq, d]; keys, values: float[B, Hkv, C, d].
        bias: float[B, C], 0 for the slots that a row sees and -inf for the others: those behind `slot` among them.
        slot: int64[1] on the device, the last slot that holds a token.
        span: no slot from here on is looked at; slot < span <= C.

    Returns:
        float[B, Hq d].
    """
    B, query_heads, d = q.shape
    # Heads that share keys are rows of one query: on a CPU four times as fast as `enable_gqa`.
    out = F.scaled_dot_product_attention(
        q.reshape(B, keys.shape[1], -1, d), keys[:, :, :span], values[:, :, :span], attn_mask=bias[:, None, None, :span]
    )
    return out.reshape(B, query_heads * d)


def linear_add(x, weight, residual) -> torch.Tensor:
    """residual + x W^T: float[B, N] of x float[B, K], W float[N, K], residual float[B, N]."""
    return residual + linear(x, weight)


def norm_gate_up(x, norm_weight, eps, gate_up_weight) -> torch.Tensor:
    """swiglu(rms_norm(x) W^T): float[B, I] of x float[B, D], W float[2 I, D] with the gate's rows first."""
    return swiglu(linear(rms_norm(x, norm_weight, eps), gate_up_weight))


def norm_linear(x, norm_weight, eps, weight) -> torch.Tensor:
    """rms_norm(x) W^T: float[B, N] of x float[B, D], W float[N, D]; the output head."""
    return linear(rms_norm(x, norm_weight, eps), weight)


# --- the choice -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernels:
    """One function for each formula above."""

    name: str
    rms_norm: Callable = rms_norm
    add_rms_norm: Callable = add_rms_norm
    rotary: Callable = rotary
    swiglu: Callable = swiglu
    norm_qkv_rotary: Callable = norm_qkv_rotary
    decode_attention: Callable = decode_attention
    linear_add: Callable = linear_add
    norm_gate_up: Callable = norm_gate_up
    norm_linear: Callable = norm_linear


TORCH = Kernels("torch")


def choose(kernels: str, device: torch.device, needs_grad: bool) -> Kernels:
    """The one place that chooses: "auto" takes the fastest that may run on the device.

    Raises:
        ValueError: kernels is none of KERNELS, or was named and cannot run here.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels={kernels!r} is not one of {', '.join(map(repr, KERNELS))}")
    if kernels in ("auto", "torch") or torch.compiler.is_compiling():  # compilers fuse these formulas themselves
        return TORCH
    raise ValueError(f"kernels={kernels!r} cannot run on {device.type!r} here: set kernels='auto'")
