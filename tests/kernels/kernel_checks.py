"""What the kernels' tests share: where and in which dtypes they run, and how near to float64 an answer has to be."""

import torch
from torch.testing import assert_close

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # compiled there, interpreted here
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# One unit in the last place: the interpreter cuts bf16 off where a GPU rounds it.
ULP = {torch.float32: 2.0**-17, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def random(*shape, dtype=torch.float32, scale=1.0):
    """Normal numbers from torch's global generator; the same on every device."""
    return (torch.randn(*shape) * scale).to(DEVICE, dtype)


def double(*tensors):
    """float64 copies on the CPU, where nothing of the kernels' own is used; None stays None."""
    return [None if t is None else t.detach().cpu().double() for t in tensors]


def check(actual, expected, dtype, ulps=1, absolute=1e-5):
    """`actual` has this dtype and is within so many units in the last place of the float64 `expected`."""
    assert actual.dtype == dtype
    assert_close(actual.cpu().double(), expected, rtol=ulps * ULP[dtype], atol=absolute)
