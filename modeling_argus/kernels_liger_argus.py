"""Liger's kernels with the signatures of kernels_argus.py, for training on CUDA: forward and backward passes in Triton.

Casting mode "gemma" is F.rms_norm's: all in fp32, rounded once. The norms' backward passes do not work in place: the
gradient of a residual branch is read again after them.
"""

import torch

try:
    if not torch.cuda.is_available():
        raise ImportError("Liger's kernels need a GPU, and importing them takes seconds")
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction
except Exception:  # not installed, older than 0.6.3, or no driver for the Triton that it imports
    LigerFusedAddRMSNormFunction = LigerRMSNormFunction = LigerRopeFunction = LigerSiLUMulFunction = None

HAS_LIGER = LigerRMSNormFunction is not None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over float[..., D], the mean in fp32."""
    return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "gemma", False)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple:
    """(s, rms_norm(s)) with s = residual + x, both float[..., D]; Liger's gives the norm first."""
    norm, total = LigerFusedAddRMSNormFunction.apply(x, residual, weight, eps, 0.0, "gemma", False)
    return total, norm


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x cos + (x2, x1) sin over float[B, H, T, D], halves (x1, x2); the first half of `sin` is negative already.

    Liger's takes both halves of the sines positive, and q apart from k; ours holds both in one tensor, so its k is one
    head of nothing. It writes into what it is given where that is contiguous: x is then copied first.
    """
    B, _, T, D = x.shape
    if x.transpose(1, 2).is_contiguous():
        x = x.clone()
    positive = sin[:, 0, :, D // 2 :]
    nothing = x.new_zeros(B, T, 1, D).transpose(1, 2)
    return LigerRopeFunction.apply(x, nothing, cos[:, 0], torch.cat((positive, positive), dim=-1))[0]


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up over float[..., 2 I], gate before up -> float[..., I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return LigerSiLUMulFunction.apply(gate, up)
