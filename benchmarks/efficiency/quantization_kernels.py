"""FP8 activations of Section 3.1: their quantisation as plain operations, and fused into norm and SiLU by Triton.

One scale a row, x = q * scale with scale = max|x| / 448, the largest float8_e4m3fn; or one for the whole tensor.
These kernels serve quantization.py alone: the model has none of them. Their `dtype` is what the values are stored as:
Triton's interpreter rounds to FP8 wrongly (seen in 3.9: 125 becomes 64), so tests without a GPU ask for float32.
"""

import torch

from modeling_argus.kernels_argus import add_rms_norm, swiglu

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
_TINY = 1e-12


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(fp8[M, K], scales float32[M, 1]) of float[M, K]."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_(min=_TINY) / LARGEST
    return _divided(x, scale), scale


def quantise_tensor(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(fp8[M, K], scale float32[]) of float[M, K]."""
    scale = x.abs().amax().float().clamp_(min=_TINY) / LARGEST
    return _divided(x, scale), scale


def _divided(x, scale):
    return (x.float() / scale).clamp_(-LARGEST, LARGEST).to(FP8)


def product(x: tuple, weight: tuple) -> torch.Tensor:
    """bfloat16[M, N] of quantised activations [M, K] and a quantised weight [N, K], W8A8 by torch's own kernel."""
    (values, scale), (rows, row_scales) = x, weight
    return torch._scaled_mm(
        values,
        rows.t(),
        scale_a=scale,
        scale_b=row_scales.t() if row_scales.ndim else row_scales,
        out_dtype=torch.bfloat16,
        use_fast_accum=values.is_cuda,
    )


def product_of_one_row(x: tuple, weight: tuple) -> torch.Tensor:
    """`product` of activations [1, K] whose one scale is taken for the tensor's."""
    return product((x[0], x[1].reshape(())), weight)


def add_rms_norm_quantise(x, residual, weight, eps, dtype=FP8) -> tuple:
    """(s, (fp8[M, D], scales float32[M, 1])) with s = residual + x: rms_norm(s) * weight, quantised by rows, in one
    kernel."""
    total, (values, scale) = torch.empty_like(x), _quantised_like(x, dtype)
    _add_rms_norm_quantise[(x.shape[0],)](
        x, residual, weight, total, values, scale, x.shape[1], eps, BLOCK=triton.next_power_of_2(x.shape[1])
    )
    return total, (values, scale)


def swiglu_quantise(gate_up, dtype=FP8) -> tuple:
    """(fp8[M, I], scales float32[M, 1]) of silu(gate) * up over float[M, 2 I], in one kernel."""
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    values, scale = _quantised_like(gate_up[:, :inner], dtype)
    block = triton.next_power_of_2(inner)
    _swiglu_quantise[(rows,)](gate_up, values, scale, inner, BLOCK=block, num_warps=8 if block > 2048 else 4)
    return values, scale


def quantise_fused(x, dtype=FP8) -> tuple:
    """`quantise_rows` in one kernel."""
    values, scale = _quantised_like(x, dtype)
    _quantise[(x.shape[0],)](x, values, scale, x.shape[1], BLOCK=triton.next_power_of_2(x.shape[1]))
    return values, scale


def _quantised_like(x, dtype):
    values = torch.empty(x.shape, dtype=dtype, device=x.device)
    return values, torch.empty(x.shape[0], 1, dtype=torch.float32, device=x.device)


# What each fused kernel computes, in plain operations.
REFERENCES = {
    add_rms_norm_quantise: lambda x, residual, weight, eps: (
        lambda total, normed: (total, quantise_rows(normed))
    )(*add_rms_norm(x, residual, weight, eps)),
    swiglu_quantise: lambda gate_up: quantise_rows(swiglu(gate_up)),
    quantise_fused: quantise_rows,
}  # fmt: skip

if triton is not None:

    @triton.jit
    def _store_quantised(y, values, scale, row, size, columns, inside, LARGEST: tl.constexpr):
        largest = tl.maximum(tl.max(tl.abs(y), axis=0), 1e-12) / LARGEST
        tl.store(scale + row, largest)
        quantised = tl.minimum(tl.maximum(y / largest, -LARGEST), LARGEST)
        tl.store(values + row * size + columns, quantised.to(values.dtype.element_ty), mask=inside)

    @triton.jit
    def _add_rms_norm_quantise(x, residual, weight, total, values, scale, size, eps, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        columns = tl.arange(0, BLOCK)
        inside = columns < size
        at = row * size + columns
        added = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        added += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + at, added.to(total.dtype.element_ty), mask=inside)
        root = tl.sqrt(tl.sum(added * added, axis=0) / size + eps)
        y = added / root * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
        _store_quantised(y, values, scale, row, size, columns, inside, 448.0)

    @triton.jit
    def _swiglu_quantise(gate_up, values, scale, size, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        columns = tl.arange(0, BLOCK)
        inside = columns < size
        at = row * 2 * size + columns
        gate = tl.load(gate_up + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_up + at + size, mask=inside, other=0.0).to(tl.float32)
        y = gate / (1 + tl.exp(-gate)) * up
        _store_quantised(y, values, scale, row, size, columns, inside, 448.0)

    @triton.jit
    def _quantise(x, values, scale, size, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        columns = tl.arange(0, BLOCK)
        inside = columns < size
        y = tl.load(x + row * size + columns, mask=inside, other=0.0).to(tl.float32)
        _store_quantised(y, values, scale, row, size, columns, inside, 448.0)
