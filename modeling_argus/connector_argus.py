"""From patches to visual tokens: pixel-unshuffle (space to depth) and a projection (Section 4.1).

The single layer is the paper's; LayerNorm and two layers are InternVL's, kept for checkpoints converted from it.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN


def pixel_unshuffle(hidden_states: torch.Tensor, factor: int) -> torch.Tensor:
    """Merges each factor x factor neighbourhood of patches into one token, channels row by row.

    Args:
        hidden_states: float[B, N, D], the N = side * side patches of a square tile, row by row.
        factor: r, which divides the side.

    Returns:
        float[B, N / r^2, D * r^2].
    """
    B, N, D = hidden_states.shape
    side = int(N**0.5)
    if side * side != N or side % factor:
        raise ValueError(f"{N} patches are not a square grid whose side {factor} divides.")
    x = hidden_states.view(B, side // factor, factor, side // factor, factor, D)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(B, N // factor**2, D * factor**2)


class ArgusConnector(nn.Module):
    """float[tiles, N, D_vision] -> float[tiles, N / r^2, D_text]."""

    def __init__(self, config):
        super().__init__()
        self.factor = config.pixel_unshuffle_factor
        wide, hidden = config.vision_config.hidden_size * self.factor**2, config.text_config.hidden_size
        self.is_mlp = config.connector_type == "mlp"
        if self.is_mlp:
            self.norm = nn.LayerNorm(wide, eps=config.connector_layer_norm_eps)
            self.linear_1 = nn.Linear(wide, hidden)
            self.act = ACT2FN[config.connector_hidden_act]
            self.linear_2 = nn.Linear(hidden, hidden)
        else:
            self.proj = nn.Linear(wide, hidden, bias=config.connector_bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = pixel_unshuffle(hidden_states, self.factor)
        return self.linear_2(self.act(self.linear_1(self.norm(x)))) if self.is_mlp else self.proj(x)
