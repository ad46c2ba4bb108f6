"""The decoder's kernels: for each its formula and a plain-torch reference, and the one place that chooses among them.

Two families. The first four work on whole sequences, in the modules of text_argus.py, with gradients. The others are
one decoding step, one token a row: together with an embedding and a choice of token they are all that it launches,
five of them a layer. `choose` takes the fastest that may run; Triton's and Liger's have the signatures of those here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F

from .configuration_argus import KERNELS
from .kernels_liger_argus import HAS_LIGER
from .kernels_liger_argus import add_rms_norm as liger_add_rms_norm
from .kernels_liger_argus import rms_norm as liger_rms_norm
from .kernels_liger_argus import rotary as liger_rotary
from .kernels_liger_argus import swiglu as liger_swiglu
from .kernels_triton_argus import HAS_TRITON
from .kernels_triton_argus import add_rms_norm as triton_add_rms_norm
from .kernels_triton_argus import rms_norm as triton_rms_norm
from .kernels_triton_argus import rotary as triton_rotary
from .kernels_triton_argus import swiglu as triton_swiglu
from .kernels_triton_attention_argus import decode_attention as triton_decode_attention
from .kernels_triton_decode_argus import linear_add as triton_linear_add
from .kernels_triton_decode_argus import norm_gate_up as triton_norm_gate_up
from .kernels_triton_decode_argus import norm_linear as triton_norm_linear
from .kernels_triton_decode_argus import norm_qkv_rotary as triton_norm_qkv_rotary
from .quantized_argus import Int8Weight


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
        x: float[B, D]; norm_weight: float[D]; qkv_weight: float[(Hq + 2 Hkv) d, D], rows q|k|v; qkv_bias: the same
            rows, or None.
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
            None on a CPU, where `span` ends with the last token and nothing is padded: all slots are seen.
        slot: int64[1] on the device, the last slot that holds a token.
        span: no slot from here on is looked at; slot < span <= C.

    Returns:
        float[B, Hq d].
    """
    B, query_heads, d = q.shape
    # Heads that share keys are rows of one query: on a CPU four times as fast as `enable_gqa`.
    mask = None if bias is None else bias[:, None, None, :span]
    out = F.scaled_dot_product_attention(
        q.reshape(B, keys.shape[1], -1, d), keys[:, :, :span], values[:, :, :span], attn_mask=mask
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
TRITON = Kernels(
    "triton",
    rms_norm=triton_rms_norm,
    add_rms_norm=triton_add_rms_norm,
    rotary=triton_rotary,
    swiglu=triton_swiglu,
    norm_qkv_rotary=triton_norm_qkv_rotary,
    decode_attention=triton_decode_attention,
    linear_add=triton_linear_add,
    norm_gate_up=triton_norm_gate_up,
    norm_linear=triton_norm_linear,
)
# Liger has nothing for one token; a decoding step needs no gradients.
LIGER = replace(
    TRITON,
    name="liger",
    rms_norm=liger_rms_norm,
    add_rms_norm=liger_add_rms_norm,
    rotary=liger_rotary,
    swiglu=liger_swiglu,
)
# torch's own RMSNorm is one kernel on CUDA from 2.8 on, and costs less to launch than one of Triton's.
HAS_FUSED_RMS_NORM = hasattr(torch.ops.aten, "_fused_rms_norm")
FASTEST = replace(TRITON, name="auto", rms_norm=rms_norm) if HAS_FUSED_RMS_NORM else replace(TRITON, name="auto")


@cache
def _why_not_triton(device: torch.device) -> str | None:
    """What keeps Triton's kernels from running on the device; None: nothing does."""
    if device.type != "cuda":
        return f"the model is on {device.type!r}, and they need 'cuda'"
    if not HAS_TRITON:
        return "triton is not installed"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "they need a GPU of compute capability 8.0 or newer"
    return None


def choose(kernels: str, device: torch.device, needs_grad: bool, dtype: torch.dtype = torch.float32) -> Kernels:
    """The one place that chooses: "auto" takes the fastest that may run on the device.

    "auto" is TORCH on a CPU; on CUDA Triton's, or with gradients Liger's where it is installed and TORCH where not.
    TORCH also while torch.compile traces, whatever was named: it fuses these formulas itself.

    Args:
        kernels: one of KERNELS, from the text config.
        needs_grad: whether autograd records; Triton's kernels here have no backward pass.
        dtype: of what is computed; the kernels accumulate in fp32, so float64 is torch's.

    Raises:
        ValueError: kernels is none of KERNELS, or was named and cannot run here.
    """
    if kernels == "torch" or torch.compiler.is_compiling():
        return TORCH
    if kernels not in KERNELS:
        raise ValueError(f"kernels={kernels!r} is not one of {', '.join(map(repr, KERNELS))}")
    why_not = _why_not_triton(device)  # Liger's kernels are Triton's too
    if dtype == torch.float64:
        why_not = why_not or "they accumulate in fp32, and the model is in float64"
    if kernels == "auto":
        if why_not is not None:
            return TORCH
        if needs_grad:
            return LIGER if HAS_LIGER else TORCH
        return FASTEST
    if why_not is None and kernels == "liger" and not HAS_LIGER:
        why_not = "liger-kernel 0.6.3 or newer is not installed"
    if why_not is None and kernels == "triton" and needs_grad:
        why_not = "they have no backward pass, and gradients are on (torch.no_grad() turns them off)"
    if why_not is not None:
        raise ValueError(f"kernels={kernels!r} cannot run here: {why_not}; kernels='auto' takes what can")
    return TRITON if kernels == "triton" else LIGER
