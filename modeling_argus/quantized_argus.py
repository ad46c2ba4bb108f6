"""Int8 weights, one scale a row, as torchao's weight-only quantisation leaves them in a model."""

from typing import NamedTuple

import torch


class Int8Weight(NamedTuple):
    """values int8[N, K] * scales float[N, 1]."""

    values: torch.Tensor
    scales: torch.Tensor  # float[N], in the dtype of what they are multiplied with
