"""Triton attention of one decoding step: split-KV flash-decoding with grouped query heads, its length on the device.

A program takes one tile of the keys of one key-value head, for all query heads that share it: the cache is read once
and nothing is repeated. There is no loop: tiles are programs, those past `slot` return at once, and a second kernel
merges what the others leave. The grid follows from `span` alone, so a captured graph serves every position. The merge
is a launch of its own (about 1.5 us): a counter for "the last program merges" would have to be cleared by another.
"""

from __future__ import annotations

import math

import torch

from .kernels_triton_argus import cdiv, jit, next_power_of_two, on_its_device, tl


@jit
def _attend_tile_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    bias_ptr,
    slot_ptr,
    parts_ptr,
    stats_ptr,
    out_ptr,
    scale,
    keys_batch,
    keys_head,
    keys_slot,
    values_batch,
    values_head,
    values_slot,
    bias_batch,
    KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    IEEE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Of one tile of keys, for each of GROUP heads: m = max(s), l = sum(2^(s - m)), sum(2^(s - m) v); s in base 2.

    16-bit values are exact in TF32, so the first product is too; its weights then have three bits more than bf16's.
    """
    split, key_head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    slot = tl.load(slot_ptr)
    if split * BLOCK_T > slot:
        return
    t = split * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    g = tl.arange(0, BLOCK_G)
    seen = t <= slot  # what lies behind was never written, and may be anything
    tile = seen[:, None] & (d < D)[None, :]
    steps = t.to(tl.int64)[:, None]
    k = tl.load(
        keys_ptr + b * keys_batch + key_head * keys_head + steps * keys_slot + d[None, :], mask=tile, other=0.0
    ).to(tl.float32)
    v = tl.load(
        values_ptr + b * values_batch + key_head * values_head + steps * values_slot + d[None, :], mask=tile, other=0.0
    ).to(tl.float32)
    head = (b * KEY_HEADS + key_head) * GROUP + g
    heads = (g < GROUP)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + head[:, None] * D + d[None, :], mask=heads, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + b * bias_batch + t, mask=seen, other=float("-inf")).to(tl.float32)

    precision: tl.constexpr = "ieee" if IEEE else "tf32"
    scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale + bias[None, :]
    top = tl.maximum(tl.max(scores, axis=1), -1e30)  # finite where a row sees nothing of this tile
    weights = tl.exp2(scores - top[:, None])
    total = tl.sum(weights, axis=1)
    out = tl.dot(weights, v, input_precision=precision)
    if SPLITS == 1:
        out = out / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out_ptr + head[:, None] * D + d[None, :], out.to(out_ptr.dtype.element_ty), mask=heads)
    else:
        part = head * SPLITS + split
        tl.store(parts_ptr + part[:, None] * D + d[None, :], out, mask=heads)
        tl.store(stats_ptr + 2 * part, top, mask=g < GROUP)
        tl.store(stats_ptr + 2 * part + 1, total, mask=g < GROUP)


@jit
def _merge_tiles_kernel(
    parts_ptr,
    stats_ptr,
    slot_ptr,
    out_ptr,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """sum(2^(m - M) part) / sum(2^(m - M) l) over the tiles of one head that hold keys, M the largest m."""
    head = tl.program_id(0).to(tl.int64)
    live = tl.load(slot_ptr) // TILE + 1
    s = tl.arange(0, BLOCK_S)
    stats = stats_ptr + head * (2 * SPLITS)
    tops = tl.load(stats + 2 * s, mask=s < live, other=-1e30)
    totals = tl.load(stats + 2 * s + 1, mask=s < live, other=0.0)
    top = tl.max(tops, axis=0)
    total = tl.sum(tl.exp2(tops - top) * totals, axis=0)
    d = tl.arange(0, BLOCK_D)
    out = tl.zeros([BLOCK_D], dtype=tl.float32)
    for start in range(0, live, CHUNK):
        tile = start + tl.arange(0, CHUNK)
        mask = tile < live
        weights = tl.exp2(tl.load(stats + 2 * tile, mask=mask, other=float("-inf")) - top)
        part = tl.load(
            parts_ptr + (head * SPLITS + tile)[:, None] * D + d[None, :],
            mask=mask[:, None] & (d < D)[None, :],
            other=0.0,
        )
        out += tl.sum(weights[:, None] * part, axis=0)
    out = out / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + head * D + d, out.to(out_ptr.dtype.element_ty), mask=d < D)


def _tile_size(batch: int, key_heads: int, span: int) -> int:
    """Keys a tile: 64, or 32 where that many would leave an H100's 132 SMs idle; short spans are one tile."""
    if span <= 32:
        return max(16, next_power_of_two(span))
    return 64 if batch * key_heads * cdiv(span, 64) >= 132 else 32


@on_its_device
def decode_attention(q, keys, values, bias, slot, span: int) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias) v over the keys 0..slot, each key-value head read once for its query heads.

    Shapes as kernels_argus.decode_attention has them; keys, values and bias may be views whose last dimension is
    contiguous. A row whose bias shows it no key at all gets zeros.

    Returns:
        float[B, Hq d].
    """
    B, query_heads, d = q.shape
    key_heads = keys.shape[1]
    q, out = q.contiguous(), q.new_empty(B, query_heads * d)
    group, block_d = query_heads // key_heads, max(16, next_power_of_two(d))
    tile = _tile_size(B, key_heads, span)
    splits = cdiv(span, tile)
    parts = stats = out
    if splits > 1:
        parts = q.new_empty(B * query_heads * splits * d, dtype=torch.float32)
        stats = q.new_empty(B * query_heads * splits * 2, dtype=torch.float32)
    _attend_tile_kernel[(splits, key_heads, B)](
        q,
        keys,
        values,
        bias,
        slot,
        parts,
        stats,
        out,
        math.log2(math.e) / math.sqrt(d),
        *keys.stride()[:3],
        *values.stride()[:3],
        bias.stride(0),
        KEY_HEADS=key_heads,
        GROUP=group,
        D=d,
        SPLITS=splits,
        IEEE=q.dtype == torch.float32 or torch.version.hip is not None,
        BLOCK_T=tile,
        BLOCK_G=max(16, next_power_of_two(group)),
        BLOCK_D=block_d,
        num_warps=4,
    )
    if splits > 1:
        block_s = next_power_of_two(splits)
        _merge_tiles_kernel[(B * query_heads,)](
            parts,
            stats,
            slot,
            out,
            D=d,
            SPLITS=splits,
            TILE=tile,
            BLOCK_S=block_s,
            CHUNK=min(block_s, max(1, 4096 // block_d)),
            BLOCK_D=block_d,
            num_warps=4,
        )
    return out
