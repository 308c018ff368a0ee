"""The residual MLP of tables, and what it makes of numbers first.

Shape letters: B examples, F numbers of an example, Q frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Periodic(nn.Module):
    """Numbers ``(B, F)``, beside sines and cosines of each: ``(B, F (1 + 2 Q))``."""

    def __init__(self, numbers: int, frequencies: int, scale: float) -> None:
        super().__init__()
        self.frequency_FQ = nn.Parameter(scale * torch.randn(numbers, frequencies))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Source: Gorishniy et al. 2022, equation 2."""
        angle_BK = (2 * math.pi * x_BF[:, :, None] * self.frequency_FQ).flatten(1)
        return torch.cat([x_BF, angle_BK.sin(), angle_BK.cos()], dim=1)


class Block(nn.Module):
    """A residual step of LayerNorm, a dense layer, ReLU and a dense layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width)`` to the same."""
        change: Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return x + change


def residual_mlp(
    numbers: int, outputs: int, width: int, blocks: int, frequencies: int, scale: float
) -> nn.Module:
    """From flattened inputs to outputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    if frequencies:
        layers.append(Periodic(numbers, frequencies, scale))
    layers.append(nn.Linear(numbers * (1 + 2 * frequencies), width))
    layers += [Block(width) for _ in range(blocks)]
    layers += [nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, outputs)]
    return nn.Sequential(*layers)
