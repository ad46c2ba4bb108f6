"""That Liger's functions are called as they are meant: by stand-ins of their signatures on a CPU, by Liger on a GPU.

Liger's kernels do not run in Triton's interpreter (they call methods of their scalar arguments, and ask for the number
of a GPU's processors), so on a CPU only our side of the call is tested: order, signs, shapes and gradients.
"""

import pytest
import torch
from kernel_checks import check, double, random
from torch.testing import assert_close

from modeling_argus import kernels_argus as reference
from modeling_argus import kernels_liger_argus as kernels

EPS = 1e-5


def _function(forward):
    """An object whose `apply` is this function, as torch.autograd.Function's."""
    return type("Function", (), {"apply": staticmethod(forward)})


def _rms_norm(x, weight, eps, offset=0.0, casting_mode="llama", in_place=True):
    assert (offset, casting_mode, in_place) == (0.0, "gemma", False)
    return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def _add_rms_norm(x, residual, weight, eps, offset=0.0, casting_mode="llama", in_place=False):
    return _rms_norm(x + residual, weight, eps, offset, casting_mode, in_place), x + residual


class _Rope(torch.autograd.Function):
    """Liger's contract: [B, H, T, D] in and out, first halves of float[B or 1, T, D] used, contiguous q overwritten."""

    @staticmethod
    def forward(ctx, q, k, cos, sin):
        assert k.shape == (q.shape[0], 1, *q.shape[2:]) and cos.shape == sin.shape == (cos.shape[0], *q.shape[2:])
        half = q.shape[-1] // 2
        cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
        ctx.save_for_backward(cos, sin)
        rows = q.transpose(1, 2).contiguous()  # the very storage of q where that is laid out so
        first, second = rows.transpose(1, 2).chunk(2, dim=-1)
        rows.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), -1).transpose(1, 2))
        return rows.transpose(1, 2), k.clone()

    @staticmethod
    def backward(ctx, dq, dk):
        cos, sin = ctx.saved_tensors
        first, second = dq.chunk(2, dim=-1)
        return torch.cat((first * cos + second * sin, second * cos - first * sin), -1), dk, None, None


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    if kernels.HAS_LIGER:
        return
    monkeypatch.setattr(kernels, "LigerRMSNormFunction", _function(_rms_norm))
    monkeypatch.setattr(kernels, "LigerFusedAddRMSNormFunction", _function(_add_rms_norm))
    monkeypatch.setattr(kernels, "LigerRopeFunction", _Rope)
    monkeypatch.setattr(kernels, "LigerSiLUMulFunction", _function(lambda a, b: torch.nn.functional.silu(a) * b))


def _compare(function, formula, *tensors):
    """Answers and gradients of fp32 against float64's."""
    tensors = [t.requires_grad_() for t in tensors]
    exact = [t.requires_grad_() for t in double(*tensors)]
    out, wanted = function(*tensors), formula(*exact)
    out, wanted = (out, wanted) if isinstance(out, tuple) else ((out,), (wanted,))
    weights = [torch.randn(t.shape, dtype=torch.float64) for t in wanted]
    sum((t * w.to(t)).sum() for t, w in zip(out, weights)).backward()
    sum((t * w).sum() for t, w in zip(wanted, weights)).backward()
    for a, b in zip(out, wanted):
        check(a, b.detach(), torch.float32)
    for a, b in zip(tensors, exact):
        assert_close(a.grad.cpu().double(), b.grad, rtol=1e-5, atol=1e-4)


def test_norms():
    torch.manual_seed(0)
    x, residual, weight = random(2, 3, 50), random(2, 3, 50), random(50)
    _compare(lambda x, w: kernels.rms_norm(x, w, EPS), lambda x, w: reference.rms_norm(x, w, EPS), x, weight)
    _compare(
        lambda x, r, w: kernels.add_rms_norm(x, r, w, EPS),
        lambda x, r, w: reference.add_rms_norm(x, r, w, EPS),
        *(t.detach() for t in (x, residual, weight)),
    )


def test_swiglu():
    torch.manual_seed(0)
    _compare(kernels.swiglu, reference.swiglu, random(2, 3, 72))


@pytest.mark.parametrize("unused", [0, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_rotary(unused, rows):
    """unused = 0: the projection's own storage is what Liger would write into."""
    torch.manual_seed(0)
    projected = random(2, 5, (3 + unused) * 48)
    before = projected.clone()
    angles = torch.rand(rows, 1, 5, 24) * 6.3
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(projected.device)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(projected.device)

    def turn(function, cos, sin):
        return lambda t: function(t.view(2, 5, -1, 48).transpose(1, 2)[:, :3], cos, sin)

    _compare(turn(kernels.rotary, cos, sin), turn(reference.rotary, *double(cos, sin)), projected)
    assert torch.equal(projected, before)
