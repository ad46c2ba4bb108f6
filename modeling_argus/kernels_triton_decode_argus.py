"""Triton kernels of one decoding step, B rows of one token each: its products, with norm, SiLU and residual inside.

At batch 1 a step reads every weight once and computes next to nothing, so a product is laid out for its reads, as
`tile_of` says. Every program computes the norm again (x is a few KB, out of L2), and nothing goes to memory between
norm, product and what follows. Up to MAX_ROWS rows of x meet a program's weights while those are in L1; above it the
products are cuBLAS's and the rest elementwise kernels: chosen by shape, so fixed inside a CUDA graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .kernels_triton_argus import cdiv, jit, on_its_device, rms_norm, rotary_cache, swiglu, tl

MAX_ROWS = 4
# An H100 has 132 SMs: programs shrink until there are nearly two for each.
ENOUGH_PROGRAMS = 240


def tile_of(units: int, K: int, x: torch.Tensor, most: int) -> dict:
    """Rows of W (or pairs of rows) of one program, and how many of their columns it reads at once.

    The warps of a program stand side by side along K, 16 bytes a lane and row, so x is read and normalised once for all
    of its rows. Each lane has one read a row in flight, 3 to 6 with x and the norm: at two programs of 8 warps an SM
    that is 24 KB and more, and 3 TB/s x 0.7 us of latency ask for 16. It is split-K inside a program; over programs it
    would need a second pass, and the fewest rows of a down-projection in the family, 576, are 288 programs without it.
    """
    rows = most
    while rows > 1 and units < rows * ENOUGH_PROGRAMS:
        rows //= 2
    lanes = 512 // x.element_size()  # what one warp reads at once
    warps = 4 if K <= 4 * lanes else 8
    return {"ROWS": rows, "BLOCK_K": warps * lanes, "num_warps": warps}


@jit
def dot_rows(
    x_ptr,
    norm_ptr,
    w_ptr,
    first,
    second,
    mask,
    eps,
    K: tl.constexpr,
    NORM: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(W[first] . y, W[second] . y) with y = x, or rms_norm(x) if NORM; the second is the first unless PAIRS.

    The norm's factor 1 / sqrt(mean(x^2) + eps) is one number, applied to the sums: x is read once for both. `eps >= 0`
    always holds, but the assembler does not know: left alone, ptxas saves registers by moving half of the loads behind
    the arithmetic on the others, which costs one more latency of memory; over a branch it does not.
    """
    a = tl.zeros([ROWS, BLOCK_K], dtype=tl.float32)
    c = tl.zeros([ROWS, BLOCK_K], dtype=tl.float32)
    squares = tl.zeros([1, BLOCK_K], dtype=tl.float32)
    first_row = w_ptr + first.to(tl.int64)[:, None] * K
    second_row = w_ptr + second.to(tl.int64)[:, None] * K
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)[None, :]
        inside = columns < K
        w1 = tl.load(first_row + columns, mask=mask[:, None] & inside, other=0.0).to(tl.float32)
        if PAIRS:
            w2 = tl.load(second_row + columns, mask=mask[:, None] & inside, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            norm = tl.load(norm_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        if eps >= 0.0:
            if NORM:
                squares += x * x
                x *= norm
            a += w1 * x
            if PAIRS:
                c += w2 * x
    a = tl.sum(a, axis=1)
    if PAIRS:
        c = tl.sum(c, axis=1)
    else:
        c = a
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, axis=1) / K + eps)
        a *= scale
        c *= scale
    return a, c


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


@on_its_device
def norm_qkv_rotary(x, norm_weight, eps, qkv_weight, qkv_bias, cos, sin, keys, values, slot) -> torch.Tensor:
    """q, k, v = split(rms_norm(x) W^T + b); q and k turned; k and v written into the cache at `slot`. Gives q.

    Shapes as kernels_argus.norm_qkv_rotary has them; keys and values may be views whose last dimension is contiguous.
    """
    B, K = x.shape
    key_heads, d = keys.shape[1], keys.shape[3]
    query_heads = qkv_weight.shape[0] // d - 2 * key_heads
    if B > MAX_ROWS:
        qkv = F.linear(rms_norm(x, norm_weight, eps), qkv_weight, qkv_bias)
        return rotary_cache(qkv, cos, sin, keys, values, slot)
    q = x.new_empty(B, query_heads, d)
    tile = tile_of((query_heads + 2 * key_heads) * d // 2, K, x, most=2)
    grid = ((query_heads + 2 * key_heads) * cdiv(d // 2, tile["ROWS"]),)
    has_bias = qkv_bias is not None
    _norm_qkv_rotary_kernel[grid](
        x.contiguous(),
        norm_weight,
        qkv_weight,
        qkv_bias if has_bias else qkv_weight,
        cos.contiguous(),
        sin.contiguous(),
        q,
        keys,
        values,
        slot,
        eps,
        *keys.stride()[:3],
        *values.stride()[:3],
        B=B,
        QUERY_HEADS=query_heads,
        KEY_HEADS=key_heads,
        HALF=d // 2,
        K=K,
        BIAS=has_bias,
        **tile,
    )
    return q


@jit
def _linear_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    residual_ptr,
    out_ptr,
    eps,
    B: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """ROWS numbers of y W^T, y = x or rms_norm(x) if NORM, to which the residual is added if ADD."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = n < N
    for b in tl.static_range(B):
        if ADD:
            residual = tl.load(residual_ptr + b * N + n, mask=mask, other=0.0).to(tl.float32)
        out, _ = dot_rows(x_ptr + b * K, norm_ptr, w_ptr, n, n, mask, eps, K, NORM, False, ROWS, BLOCK_K)
        if ADD:
            out += residual
        tl.store(out_ptr + b * N + n, out.to(out_ptr.dtype.element_ty), mask=mask)


def _linear(x, norm_weight, eps, weight, residual) -> torch.Tensor:
    (B, K), N = x.shape, weight.shape[0]
    x, out = x.contiguous(), x.new_empty(B, N)
    norm, add = norm_weight is not None, residual is not None
    tile = tile_of(N, K, x, most=4 if B == 1 else 2)  # four rows of W for four of x leave no registers
    _linear_kernel[(cdiv(N, tile["ROWS"]),)](
        x,
        norm_weight if norm else x,
        weight,
        residual.contiguous() if add else x,
        out,
        eps,
        B=B,
        N=N,
        K=K,
        NORM=norm,
        ADD=add,
        **tile,
    )
    return out


@on_its_device
def linear_add(x, weight, residual) -> torch.Tensor:
    """residual + x W^T: float[B, N] of x float[B, K], W float[N, K], residual float[B, N]."""
    if x.shape[0] > MAX_ROWS:
        return torch.addmm(residual, x, weight.t())
    return _linear(x, None, 0.0, weight, residual)


@on_its_device
def norm_linear(x, norm_weight, eps, weight) -> torch.Tensor:
    """rms_norm(x) W^T: float[B, N] of x float[B, D], W float[N, D]; the output head."""
    if x.shape[0] > MAX_ROWS:
        return F.linear(rms_norm(x, norm_weight, eps), weight)
    return _linear(x, norm_weight, eps, weight, None)


@jit
def _norm_gate_up_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    out_ptr,
    eps,
    B: tl.constexpr,
    WIDTH: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """ROWS numbers of silu(gate) * up: a gate's row of W and its up's are read by one program."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = i < WIDTH
    for b in tl.static_range(B):
        gate, up = dot_rows(x_ptr + b * K, norm_ptr, w_ptr, i, i + WIDTH, mask, eps, K, True, True, ROWS, BLOCK_K)
        out = gate * tl.sigmoid(gate) * up
        tl.store(out_ptr + b * WIDTH + i, out.to(out_ptr.dtype.element_ty), mask=mask)


@on_its_device
def norm_gate_up(x, norm_weight, eps, gate_up_weight) -> torch.Tensor:
    """swiglu(rms_norm(x) W^T): float[B, I] of x float[B, D], W float[2 I, D] with the gate's rows first."""
    B, K = x.shape
    if B > MAX_ROWS:
        return swiglu(F.linear(rms_norm(x, norm_weight, eps), gate_up_weight))
    width = gate_up_weight.shape[0] // 2
    out = x.new_empty(B, width)
    tile = tile_of(width, K, x, most=2)
    _norm_gate_up_kernel[(cdiv(width, tile["ROWS"]),)](
        x.contiguous(),
        norm_weight,
        gate_up_weight,
        out,
        eps,
        B=B,
        WIDTH=width,
        K=K,
        **tile,
    )
    return out
