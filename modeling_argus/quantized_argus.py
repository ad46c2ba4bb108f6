"""Int8 weights, one scale a row, as torchao's weight-only quantisation leaves them in a model.

The decoding step multiplies raw weights, past nn.Linear: `decode_weight` says what it may multiply with. On a CPU int8
halves the bytes of a token against bf16. Neither torchao nor a layout of its own is needed: its tensors hold the values
as torch's own product takes them.
"""

from typing import NamedTuple

import torch
from torch import nn

HAS_INT8_PRODUCT = hasattr(torch, "_weight_int8pack_mm")
# torch's product reads 16 columns at once from aligned addresses and checks neither: other widths read what lies behind
# the row, other addresses end the process. For fp32 and fp16 it is a plain loop on x86, slower than the float product.
_COLUMNS, _ALIGNMENT = 16, 64


class Int8Weight(NamedTuple):
    """W = values int8[N, K] * scales[:, None]."""

    values: torch.Tensor
    scales: torch.Tensor  # float[N], in the dtype of what they are multiplied with


def decode_weight(linear: nn.Module) -> "torch.Tensor | Int8Weight | None":
    """What the decoding step multiplies with in place of calling this module; None: it has to be called.

    A plain contiguous parameter float[N, K] of an untouched nn.Linear is returned as it is. torchao's
    `Int8WeightOnlyConfig()`, which is symmetric with one scale a row, becomes an `Int8Weight` for bf16 on a CPU: it
    shares the values, and its scales are rounded to bf16, as torchao's own product rounds them. Everything else is
    None: other quantisations, groups or whole tensors under one scale, quantised activations, fp32 and fp16 with int8,
    a K that is no multiple of 16, subclasses of nn.Linear, overridden `forward`s.

    This looks at the values of the scales' zero points: call it once a weight, not once a token.
    """
    if type(linear) is not nn.Linear or "forward" in vars(linear):
        return None
    weight = linear.weight
    if type(weight) is nn.Parameter and type(weight.data) is torch.Tensor:
        usable = weight.is_floating_point() and weight.layout == torch.strided and weight.is_contiguous()
        return weight.detach() if usable else None
    return _int8_weight(weight)


def _int8_weight(weight) -> Int8Weight | None:
    """torchao's Int8Tensor as an `Int8Weight`, told by what it holds, as hub code does not import torchao."""
    if not HAS_INT8_PRODUCT or type(weight).__name__ != "Int8Tensor" or weight.device.type != "cpu":
        return None
    if weight.dtype != torch.bfloat16 or weight.ndim != 2 or weight.shape[1] % _COLUMNS:
        return None
    values, scales = getattr(weight, "qdata", None), getattr(weight, "scale", None)
    if type(values) is not torch.Tensor or type(scales) is not torch.Tensor or values.dtype != torch.int8:
        return None
    rows, columns = weight.shape
    if tuple(values.shape) != (rows, columns) or tuple(scales.shape) != (rows, 1) or not values.is_contiguous():
        return None  # groups, or one scale for all
    more = ("act_quant_kwargs", "act_quant_scale", "act_quant_zero_point", "act_pre_scale")
    if any(getattr(weight, name, None) is not None for name in more):
        return None
    zero_point = getattr(weight, "zero_point", None)
    if zero_point is not None and bool(zero_point.any()):
        return None
    if values.data_ptr() % _ALIGNMENT:
        values = values.clone()  # as read from a file
    return Int8Weight(values, scales.reshape(-1).to(weight.dtype))
