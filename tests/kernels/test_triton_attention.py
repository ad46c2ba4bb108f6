"""Triton's attention of one decoding step against the formula in float64: tiles, groups, padding, what lies behind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import DEVICE, DTYPES, check, double, random

pytest.importorskip("triton")
from modeling_argus import kernels_triton_attention_argus as kernels


def _case(dtype, batch, key_heads, group, size, capacity, slot, padding=0, strided=False):
    """Random q, keys, values, bias and slot; row b is padded with b * `padding` slots on the left."""
    q = random(batch, key_heads * group, size, dtype=dtype)
    if strided:  # q as the first heads of a fused projection, the cache with its tokens before its heads
        q = random(batch, key_heads * group + 2, size, dtype=dtype)[:, :-2]
        keys, values = random(2, batch, capacity, key_heads, size, dtype=dtype).transpose(2, 3).unbind()
    else:
        keys, values = (random(batch, key_heads, capacity, size, dtype=dtype) for _ in range(2))
    places = torch.arange(capacity, device=DEVICE)
    hidden = (places > slot) | (places < padding * torch.arange(batch, device=DEVICE)[:, None])
    bias = torch.zeros(batch, capacity, device=DEVICE, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return q, keys, values, bias, torch.tensor([slot], device=DEVICE)


def _formula(q, keys, values, bias, slot, span):
    """softmax(q k^T / sqrt(d) + bias) v in float64, by repetition of the shared heads."""
    q, keys, values, bias = double(q, keys[:, :, :span], values[:, :, :span], bias[:, :span])
    group = q.shape[1] // keys.shape[1]
    keys, values = (t[:, :, : int(slot) + 1].repeat_interleave(group, dim=1) for t in (keys, values))
    scores = torch.einsum("bhd,bhtd->bht", q, keys) / q.shape[-1] ** 0.5 + bias[:, None, : int(slot) + 1]
    return torch.einsum("bht,bhtd->bhd", scores.softmax(-1), values).flatten(1)


def _check(case, span):
    dtype = case[0].dtype
    # On a GPU the weights of 16-bit values are rounded to TF32's eleven bits before they meet the values.
    absolute = 1e-5 if dtype == torch.float32 or DEVICE.type == "cpu" else 2e-3
    check(kernels.decode_attention(*case, span), _formula(*case, span), dtype, absolute=absolute)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "key_heads", "group", "size", "capacity", "slot", "padding"),
    [
        (1, 3, 3, 64, 70, 41, 0),  # SmolLM2's heads; the last tile holds nothing, the middle one a part
        (2, 1, 6, 128, 33, 32, 30),  # Qwen2.5's; a tile of one key, a row whose first tile is padding
        (3, 2, 1, 48, 100, 64, 20),
        (1, 1, 17, 6, 20, 0, 0),  # one tile, one key
        (1, 2, 2, 16, 200, 31, 0),  # exactly one tile of seven
    ],
)
def test_decode_attention(dtype, batch, key_heads, group, size, capacity, slot, padding):
    torch.manual_seed(0)
    _check(_case(dtype, batch, key_heads, group, size, capacity, slot, padding, strided=batch > 1), capacity)


def test_what_lies_behind_the_slot_is_never_used():
    torch.manual_seed(0)
    case = _case(torch.float32, 2, 2, 3, 16, 90, 40)
    wanted = kernels.decode_attention(*case, 90)
    case[1][:, :, 41:] = float("nan")
    case[2][:, :, 41:] = float("nan")
    assert torch.equal(kernels.decode_attention(*case, 90), wanted)
    assert torch.equal(kernels.decode_attention(*case, 64), wanted)


@pytest.mark.parametrize("capacity", [20, 80])
def test_a_row_that_sees_nothing_gets_zeros(capacity):
    torch.manual_seed(0)
    case = _case(torch.float32, 2, 1, 2, 16, capacity, capacity - 1)
    case[3][1] = float("-inf")
    out = kernels.decode_attention(*case, capacity)
    assert out[1].eq(0).all() and out[0].ne(0).any()


def test_large_scores_do_not_overflow():
    torch.manual_seed(0)
    q, keys, values, bias, slot = _case(torch.float32, 1, 1, 2, 16, 70, 69)
    _check((q * 60, keys * 10, values, bias, slot), 70)


@pytest.mark.parametrize("tile", [16, 64])
def test_other_tiles(tile, monkeypatch):
    monkeypatch.setattr(kernels, "_tile_size", lambda *args: tile)
    torch.manual_seed(0)
    _check(_case(torch.float32, 1, 2, 2, 16, 150, 140), 150)


def test_tiles_grow_with_the_work():
    assert kernels._tile_size(1, 3, 20) == 32 and kernels._tile_size(1, 3, 7) == 16
    assert kernels._tile_size(1, 3, 1024) == 32 and kernels._tile_size(4, 3, 4096) == 64


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 2), st.integers(1, 2), st.integers(1, 5), st.integers(1, 20), st.sampled_from(DTYPES))
def test_any_shape_and_position(data, batch, key_heads, group, half, dtype):
    capacity = data.draw(st.integers(1, 140), "capacity")
    slot = data.draw(st.integers(0, capacity - 1), "slot")
    span = data.draw(st.integers(slot + 1, capacity), "span")
    padding = data.draw(st.integers(0, slot // max(batch - 1, 1)), "padding")
    torch.manual_seed(data.draw(st.integers(0, 99), "seed"))
    _check(_case(dtype, batch, key_heads, group, 2 * half, capacity, slot, padding), span)
