"""Triton kernels of a decoding step's first launch: RMSNorm, the fused projection, its bias, rotary and the cache.

Up to MAX_ROWS rows one kernel does it all, and q, k and v never lie in memory unturned. Above, the norm and the product
are two launches, the product cuBLAS's, and a small kernel turns q and k and writes the cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .kernels_triton_argus import cdiv, jit, next_power_of_two, on_its_device, rms_norm, tl
from .kernels_triton_decode_argus import MAX_ROWS, dot_rows, tile_of


@jit
def _norm_qkv_rotary_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    bias_ptr,
    cos_ptr,
    sin_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    slot_ptr,
    eps,
    keys_batch,
    keys_head,
    keys_slot,
    values_batch,
    values_head,
    values_slot,
    B: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """ROWS pairs (j, j + d/2) of one head: rotary turns a pair, so both of its numbers are made in one program."""
    CHUNKS: tl.constexpr = (HALF + ROWS - 1) // ROWS
    TURNED: tl.constexpr = QUERY_HEADS + KEY_HEADS
    head = tl.program_id(0) // CHUNKS
    j = (tl.program_id(0) % CHUNKS) * ROWS + tl.arange(0, ROWS)
    mask = j < HALF
    first = head * (2 * HALF) + j
    slot = tl.load(slot_ptr)
    turned = mask & (first < TURNED * 2 * HALF)  # the values' rows get cosine 1 and sine 0
    for b in tl.static_range(B):
        angle = b * (2 * HALF) + j
        cos1 = tl.load(cos_ptr + angle, mask=turned, other=1.0).to(tl.float32)
        cos2 = tl.load(cos_ptr + angle + HALF, mask=turned, other=1.0).to(tl.float32)
        sin1 = tl.load(sin_ptr + angle, mask=turned, other=0.0).to(tl.float32)
        sin2 = tl.load(sin_ptr + angle + HALF, mask=turned, other=0.0).to(tl.float32)
        a, c = dot_rows(x_ptr + b * K, norm_ptr, w_ptr, first, first + HALF, mask, eps, K, True, True, ROWS, BLOCK_K)
        if BIAS:
            a += tl.load(bias_ptr + first, mask=mask, other=0.0).to(tl.float32)
            c += tl.load(bias_ptr + first + HALF, mask=mask, other=0.0).to(tl.float32)
        out1 = (a * cos1 + c * sin1).to(q_ptr.dtype.element_ty)
        out2 = (c * cos2 + a * sin2).to(q_ptr.dtype.element_ty)
        if head < QUERY_HEADS:
            to = q_ptr + b * (QUERY_HEADS * 2 * HALF) + first
        elif head < TURNED:
            to = keys_ptr + b * keys_batch + (head - QUERY_HEADS) * keys_head + slot * keys_slot + j
        else:
            to = values_ptr + b * values_batch + (head - TURNED) * values_head + slot * values_slot + j
        tl.store(to, out1, mask=mask)
        tl.store(to + HALF, out2, mask=mask)


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
    """One head of one row of q|k|v: turned, and to where it belongs. What large batches keep of the kernel above."""
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


@on_its_device
def norm_qkv_rotary(x, norm_weight, eps, qkv_weight, qkv_bias, cos, sin, keys, values, slot) -> torch.Tensor:
    """q, k, v = split(rms_norm(x) W^T + b); q and k turned; k and v written into the cache at `slot`. Gives q.

    Shapes as kernels_argus.norm_qkv_rotary has them; keys and values may be views whose last dimension is contiguous.
    """
    B, K = x.shape
    key_heads, d = keys.shape[1], keys.shape[3]
    query_heads = qkv_weight.shape[0] // d - 2 * key_heads
    q = x.new_empty(B, query_heads, d)
    cos, sin = cos.contiguous(), sin.contiguous()
    cache = (*keys.stride()[:3], *values.stride()[:3])
    heads = {"QUERY_HEADS": query_heads, "KEY_HEADS": key_heads, "HALF": d // 2}
    if B > MAX_ROWS:
        qkv = F.linear(rms_norm(x, norm_weight, eps), qkv_weight, qkv_bias)
        block = next_power_of_two(d // 2)
        _rotary_cache_kernel[(B, query_heads + 2 * key_heads)](
            qkv, cos, sin, q, keys, values, slot, *cache, **heads, BLOCK=block, num_warps=1
        )
        return q
    tile = tile_of((query_heads + 2 * key_heads) * d // 2, K, x, most=2)
    grid = ((query_heads + 2 * key_heads) * cdiv(d // 2, tile["ROWS"]),)
    has_bias = qkv_bias is not None
    _norm_qkv_rotary_kernel[grid](
        x.contiguous(),
        norm_weight,
        qkv_weight,
        qkv_bias if has_bias else qkv_weight,
        cos,
        sin,
        q,
        keys,
        values,
        slot,
        eps,
        *cache,
        **heads,
        B=B,
        K=K,
        BIAS=has_bias,
        **tile,
    )
    return q
