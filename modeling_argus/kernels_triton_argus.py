"""Triton kernels over whole sequences, one launch each: RMSNorm, add + RMSNorm, rotary, SwiGLU. No backward passes.

Signatures and formulas are kernels_argus.py's. All are bound by memory: each value is read once and written once, in
wide loads, and everything between is fp32. Block sizes follow from shapes by a rule: tuning at run time would delay the
first call and could not run while a graph is captured. float64 has no kernels here.
"""

from __future__ import annotations

import functools

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # torch without a GPU, macOS, Windows
    triton = tl = None

HAS_TRITON = triton is not None
# Without Triton the kernels stay plain functions that nobody calls: the module imports everywhere.
jit = (lambda function: function) if triton is None else triton.jit


def on_its_device(function):
    """The function, run on the device of its first argument: Triton launches on the current one otherwise."""

    @functools.wraps(function)
    def run(x, *args, **kwargs):
        with torch.cuda.device_of(x):
            return function(x, *args, **kwargs)

    return run


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is not below n; Triton's blocks have no other sizes."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


# --- RMSNorm ----------------------------------------------------------------------------------------------------------


@jit
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    total_ptr,
    out_ptr,
    eps,
    D: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = weight * s / sqrt(mean(s^2) + eps) of one row, s = x, or residual + x (written to total) if ADD."""
    start = tl.program_id(0).to(tl.int64) * D
    columns = tl.arange(0, BLOCK)
    mask = columns < D
    x = tl.load(x_ptr + start + columns, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + start + columns, mask=mask, other=0.0).to(tl.float32)
        total = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + start + columns, total, mask=mask)
        x = total.to(tl.float32)  # what the next layer will read is what is normalised
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / D + eps)
    tl.store(out_ptr + start + columns, (x * scale * weight).to(out_ptr.dtype.element_ty), mask=mask)


def _norm_warps(block: int) -> int:
    """Eight values a thread (one 16-byte load in bf16) while a row is short, more where it is long."""
    return min(max(block // 256, 1), 8)


@on_its_device
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over float[..., D], the mean in fp32; a program a row."""
    x = x.contiguous()
    D = x.shape[-1]
    out, block = torch.empty_like(x), next_power_of_two(D)
    rows = x.numel() // D
    if rows:
        _rms_norm_kernel[(rows,)](
            x, x, weight, out, out, eps, D=D, ADD=False, BLOCK=block, num_warps=_norm_warps(block)
        )
    return out


@on_its_device
def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple:
    """(s, rms_norm(s)) with s = residual + x, both float[..., D]; s goes to memory once and is not read back."""
    x, residual = x.contiguous(), residual.contiguous()
    D = x.shape[-1]
    total, out, block = torch.empty_like(x), torch.empty_like(x), next_power_of_two(D)
    rows = x.numel() // D
    if rows:
        _rms_norm_kernel[(rows,)](
            x, residual, weight, total, out, eps, D=D, ADD=True, BLOCK=block, num_warps=_norm_warps(block)
        )
    return total, out


# --- rotary -----------------------------------------------------------------------------------------------------------


@jit
def _rotary_kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    out_ptr,
    T,
    x_batch,
    x_head,
    x_token,
    cos_batch,
    cos_token,
    out_batch,
    out_head,
    out_token,
    H: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """x cos + (x2, x1) sin for BLOCK_H heads of one token: its cosines and sines are read once for all of them."""
    token = tl.program_id(0)
    b, t = (token // T).to(tl.int64), (token % T).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    mask = (h < H) & (d < HALF)
    at = x_ptr + b * x_batch + t * x_token + h * x_head + d
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
    angle = b * cos_batch + t * cos_token + d
    cos1 = tl.load(cos_ptr + angle, mask=d < HALF, other=0.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + angle + HALF, mask=d < HALF, other=0.0).to(tl.float32)
    sin1 = tl.load(sin_ptr + angle, mask=d < HALF, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + angle + HALF, mask=d < HALF, other=0.0).to(tl.float32)
    to = out_ptr + b * out_batch + t * out_token + h * out_head + d
    tl.store(to, (first * cos1 + second * sin1).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(to + HALF, (second * cos2 + first * sin2).to(out_ptr.dtype.element_ty), mask=mask)


@on_its_device
def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x cos + (x2, x1) sin over float[B, H, T, D], halves (x1, x2); the first half of `sin` is negative already.

    x may be any view whose last dimension is contiguous: q and k are read out of the fused projection where they lie.
    cos, sin: float[B or 1, 1, T, D], of the same strides.
    """
    B, H, T, D = x.shape
    if x.stride(-1) != 1:
        x = x.contiguous()
    cos, sin = cos.contiguous(), sin.contiguous()
    out = torch.empty_like(x)  # keeps the order of the dimensions in memory, as elementwise operations do
    block_d = next_power_of_two(D // 2)
    block_h = min(next_power_of_two(H), max(1, 1024 // block_d))  # at most 16 values of each half a thread
    if x.numel():
        _rotary_kernel[(B * T, cdiv(H, block_h))](
            x,
            cos,
            sin,
            out,
            T,
            x.stride(0),
            x.stride(1),
            x.stride(2),
            cos.stride(0) if cos.shape[0] > 1 else 0,
            cos.stride(2),
            out.stride(0),
            out.stride(1),
            out.stride(2),
            H=H,
            HALF=D // 2,
            BLOCK_H=block_h,
            BLOCK_D=block_d,
            num_warps=2,
        )
    return out


@jit
def _rotary_cache_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    slot_ptr,
    keys_batch,
    keys_head,
    keys_slot,
    values_batch,
    values_head,
    values_slot,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One head of one row of q|k|v: turned, and to where it belongs. What large batches keep of norm_qkv_rotary."""
    TURNED: tl.constexpr = QUERY_HEADS + KEY_HEADS
    b, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    j = tl.arange(0, BLOCK)
    mask = j < HALF
    first = head * (2 * HALF) + j
    turned = mask & (first < TURNED * 2 * HALF)
    slot = tl.load(slot_ptr)
    at = qkv_ptr + b * ((TURNED + KEY_HEADS) * 2 * HALF) + first
    a = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    c = tl.load(at + HALF, mask=mask, other=0.0).to(tl.float32)
    angle = b * (2 * HALF) + j
    cos1 = tl.load(cos_ptr + angle, mask=turned, other=1.0).to(tl.float32)
    cos2 = tl.load(cos_ptr + angle + HALF, mask=turned, other=1.0).to(tl.float32)
    sin1 = tl.load(sin_ptr + angle, mask=turned, other=0.0).to(tl.float32)
    sin2 = tl.load(sin_ptr + angle + HALF, mask=turned, other=0.0).to(tl.float32)
    if head < QUERY_HEADS:
        to = q_ptr + b * (QUERY_HEADS * 2 * HALF) + first
    elif head < TURNED:
        to = keys_ptr + b * keys_batch + (head - QUERY_HEADS) * keys_head + slot * keys_slot + j
    else:
        to = values_ptr + b * values_batch + (head - TURNED) * values_head + slot * values_slot + j
    tl.store(to, (a * cos1 + c * sin1).to(q_ptr.dtype.element_ty), mask=mask)
    tl.store(to + HALF, (c * cos2 + a * sin2).to(q_ptr.dtype.element_ty), mask=mask)


def rotary_cache(qkv, cos, sin, keys, values, slot) -> torch.Tensor:
    """q and k of float[B, (Hq + 2 Hkv) d] turned, k and v written into the cache; gives q float[B, Hq, d].

    cos, sin, keys, values and slot as kernels_argus.norm_qkv_rotary has them.
    """
    (B, rows), key_heads, d = qkv.shape, keys.shape[1], keys.shape[3]
    q = qkv.new_empty(B, rows // d - 2 * key_heads, d)
    _rotary_cache_kernel[(B, rows // d)](
        qkv,
        cos.contiguous(),
        sin.contiguous(),
        q,
        keys,
        values,
        slot,
        *keys.stride()[:3],
        *values.stride()[:3],
        QUERY_HEADS=q.shape[1],
        KEY_HEADS=key_heads,
        HALF=d // 2,
        BLOCK=next_power_of_two(d // 2),
        num_warps=1,
    )
    return q


# --- SwiGLU -----------------------------------------------------------------------------------------------------------


@jit
def _swiglu_kernel(x_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """silu(gate) * up of BLOCK columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < WIDTH
    gate = tl.load(x_ptr + row * 2 * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * WIDTH + WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * WIDTH + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


@on_its_device
def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up over float[..., 2 I], gate before up -> float[..., I]; silu is not rounded in between."""
    gate_up = gate_up.contiguous()
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    block = min(next_power_of_two(width), 1024)
    if out.numel():
        _swiglu_kernel[(out.numel() // width, cdiv(width, block))](gate_up, out, WIDTH=width, BLOCK=block, num_warps=4)
    return out
