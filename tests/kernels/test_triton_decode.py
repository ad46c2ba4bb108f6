"""Triton's products of one decoding step against the torch formulas in float64: odd sizes, few rows and many."""

import pytest
import torch
from kernel_checks import DEVICE, DTYPES, ULP, check, double, random

from modeling_argus import kernels_argus as reference

pytest.importorskip("triton")
from modeling_argus import kernels_triton_decode_argus as kernels

EPS = 1e-5
BATCHES = (1, 3, kernels.MAX_ROWS + 2)


def _tolerance(batch, dtype):
    """Many rows go through F.linear, which rounds the norm and the product on the way."""
    return {"ulps": 4, "absolute": 4 * ULP[dtype]} if batch > kernels.MAX_ROWS else {}


def _cache(batch, heads, capacity, size, dtype, strided):
    """Keys and values of random numbers; strided as one slice of a buffer that holds the tokens before the heads."""
    if not strided:
        return random(batch, heads, capacity, size, dtype=dtype), random(batch, heads, capacity, size, dtype=dtype)
    both = random(2, batch + 1, capacity + 3, heads, size, dtype=dtype)[:, 1:, :capacity].transpose(2, 3)
    return both[0], both[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("width", "query_heads", "key_heads", "size", "bias"),
    [(50, 3, 1, 6, True), (48, 2, 1, 16, False), (7, 2, 1, 2, True)],
)
def test_norm_qkv_rotary(dtype, batch, width, query_heads, key_heads, size, bias):
    torch.manual_seed(0)
    rows = (query_heads + 2 * key_heads) * size
    x, norm = random(batch, width, dtype=dtype), random(width, dtype=dtype)
    weight = random(rows, width, dtype=dtype, scale=width**-0.5)
    added = random(rows, dtype=dtype) if bias else None
    angles = torch.rand(batch, size // 2) * 6.3
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(DEVICE, dtype)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(DEVICE, dtype)
    keys, values = _cache(batch, key_heads, 9, size, dtype, strided=batch % 2 == 1)
    slot = torch.tensor([5], device=DEVICE)

    args = double(x, norm, weight, added, cos, sin, keys, values)
    expected = reference.norm_qkv_rotary(args[0], args[1], EPS, *args[2:], slot.cpu())
    q = kernels.norm_qkv_rotary(x, norm, EPS, weight, added, cos, sin, keys, values, slot)
    assert q.shape == (batch, query_heads, size)
    for actual, wanted in ((q, expected), (keys, args[6]), (values, args[7])):  # every other slot is as it was
        check(actual, wanted, dtype, **_tolerance(batch, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("inputs", "outputs"), [(50, 13), (64, 16), (1200, 3), (3, 1)])
def test_linear_add_and_norm_linear(dtype, batch, inputs, outputs):
    torch.manual_seed(0)
    x, weight = random(batch, inputs, dtype=dtype), random(outputs, inputs, dtype=dtype, scale=inputs**-0.5)
    norm, residual = random(inputs, dtype=dtype), random(batch, outputs, dtype=dtype)
    tolerance = _tolerance(batch, dtype)
    check(
        kernels.linear_add(x, weight, residual), reference.linear_add(*double(x, weight, residual)), dtype, **tolerance
    )
    expected = reference.norm_linear(*double(x, norm), EPS, *double(weight))
    check(kernels.norm_linear(x, norm, EPS, weight), expected, dtype, **tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("inputs", "width"), [(50, 21), (16, 5)])
def test_norm_gate_up(dtype, batch, inputs, width):
    torch.manual_seed(0)
    x, norm = random(batch, inputs, dtype=dtype), random(inputs, dtype=dtype)
    weight = random(2 * width, inputs, dtype=dtype, scale=inputs**-0.5)
    expected = reference.norm_gate_up(*double(x, norm), EPS, *double(weight))
    check(kernels.norm_gate_up(x, norm, EPS, weight), expected, dtype, **_tolerance(batch, dtype))


def test_rows_longer_than_a_tile_and_more_rows_than_programs():
    """A tile ends inside K, K spans several tiles, and rows are few or many enough for another tile."""
    torch.manual_seed(0)
    assert kernels.tile_of(49280, 576, torch.empty(1, dtype=torch.bfloat16), 4)["ROWS"] == 4
    assert kernels.tile_of(576, 1536, torch.empty(1, dtype=torch.bfloat16), 4)["ROWS"] == 2
    for inputs, outputs in ((2 * 1024 + 5, 3), (20, 481)):
        x, weight = random(1, inputs), random(outputs, inputs, scale=inputs**-0.5)
        residual = random(1, outputs)
        expected = reference.linear_add(*double(x, weight, residual))
        check(kernels.linear_add(x, weight, residual), expected, torch.float32)
