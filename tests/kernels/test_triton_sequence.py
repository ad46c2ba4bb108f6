"""Triton's RMSNorm, add + RMSNorm, rotary and SwiGLU against the torch formulas in float64, in odd shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import DEVICE, DTYPES, ULP, check, double, random

from modeling_argus import kernels_argus as reference

pytest.importorskip("triton")
from modeling_argus import kernels_triton_argus as kernels

EPS = 1e-5


def _angles(rows, tokens, size, dtype):
    angles = torch.rand(rows, 1, tokens, size // 2) * 6.3
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).to(DEVICE, dtype), torch.cat((-sin, sin), -1).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 64), (3, 5, 50), (2, 576), (7, 1)])
def test_norms(dtype, shape):
    torch.manual_seed(0)
    x, residual, weight = random(*shape, dtype=dtype), random(*shape, dtype=dtype), random(shape[-1], dtype=dtype)
    check(kernels.rms_norm(x, weight, EPS), reference.rms_norm(*double(x, weight), EPS), dtype)
    total, norm = kernels.add_rms_norm(x, residual, weight, EPS)
    expected_total = sum(double(x, residual))
    check(total, expected_total, dtype)
    check(norm, reference.rms_norm(*double(total, weight), EPS), dtype)  # of the sum as it was rounded


def test_norms_take_strided_rows_and_nothing():
    torch.manual_seed(0)
    x, weight = random(4, 3, 20)[:, 1, ::2], random(10)
    check(kernels.rms_norm(x, weight, EPS), reference.rms_norm(*double(x, weight), EPS), torch.float32)
    assert kernels.rms_norm(x[:0], weight, EPS).shape == (0, 10)
    assert kernels.add_rms_norm(x[:0], x[:0], weight, EPS)[1].shape == (0, 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "heads", "unused", "tokens", "size"),
    [(1, 12, 3, 2, 64), (2, 4, 3, 3, 48), (3, 5, 0, 1, 6), (2, 1, 2, 2, 2)],
)
@pytest.mark.parametrize("shared", [True, False])
def test_rotary_on_the_heads_of_a_fused_projection(dtype, batch, heads, unused, tokens, size, shared):
    torch.manual_seed(0)
    projected = random(batch, tokens, (heads + unused) * size, dtype=dtype)
    x = projected.view(batch, tokens, -1, size).transpose(1, 2)[:, :heads]
    before = projected.clone()
    cos, sin = _angles(1 if shared else batch, tokens, size, dtype)
    out = kernels.rotary(x, cos, sin)
    check(out, reference.rotary(*double(x, cos, sin)), dtype)
    assert out.shape == x.shape and torch.equal(projected, before)


def test_rotary_whose_last_dimension_is_not_contiguous():
    torch.manual_seed(0)
    x = random(2, 3, 8, 5).transpose(2, 3)
    cos, sin = _angles(2, 5, 8, torch.float32)
    check(kernels.rotary(x, cos, sin), reference.rotary(*double(x, cos, sin)), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 144), (2, 3, 10), (4, 3000)])
def test_swiglu(dtype, shape):
    torch.manual_seed(0)
    x = random(*shape, dtype=dtype, scale=4)
    check(kernels.swiglu(x), reference.swiglu(*double(x)), dtype)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
def test_any_shape(batch, tokens, heads, half, dtype, seed):
    torch.manual_seed(seed)
    projected = random(batch, tokens, heads * 2 * half, dtype=dtype)
    weight = random(projected.shape[-1], dtype=dtype)
    check(kernels.rms_norm(projected, weight, EPS), reference.rms_norm(*double(projected, weight), EPS), dtype)
    x = projected.view(batch, tokens, heads, 2 * half).transpose(1, 2)
    cos, sin = _angles(batch, tokens, 2 * half, dtype)
    check(kernels.rotary(x, cos, sin), reference.rotary(*double(x, cos, sin)), dtype)
    check(kernels.swiglu(projected), reference.swiglu(*double(projected)), dtype)


def test_the_tolerance_tells_a_wrong_answer():
    """A sine's sign, the norm's eps and the order of gate and up are all far outside one unit in the last place."""
    torch.manual_seed(0)
    x = random(1, 2, 2, 8, dtype=torch.bfloat16)
    cos, sin = _angles(1, 2, 8, torch.bfloat16)
    for wrong in (kernels.rotary(x, cos, -sin), kernels.rotary(x, cos, sin) * (1 + 4 * ULP[torch.bfloat16])):
        with pytest.raises(AssertionError):
            check(wrong, reference.rotary(*double(x, cos, sin)), torch.bfloat16)
    with pytest.raises(AssertionError):
        check(kernels.swiglu(x.roll(4, -1)), reference.swiglu(*double(x)), torch.bfloat16)
