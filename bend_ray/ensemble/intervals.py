"""How good a predicted mean and variance are: closed forms of the normal distribution.

Shape letters: N examples, T targets. All in the units of the targets, in float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bend_ray.process.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = (0.5, 0.9, 0.95)
"""Of the central intervals that are scored."""
SMALLEST_VARIANCE = 1e-12
"""As a share of the targets' variance: members that agree exactly have none."""


def log_density(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Log density of a normal at the targets, in nats."""
    return -0.5 * ((targets - mean) ** 2 / variance + (2 * math.pi * variance).log())


def crps(mean: Tensor, variance: Tensor, targets: Tensor) -> float:
    """Continuous ranked probability score: the absolute error, of a distribution; lower is better.

    Source: Gneiting & Raftery, "Strictly proper scoring rules", 2007, equation 21.
    """
    deviation = variance.sqrt()
    z = (targets - mean) / deviation
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    inside = z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi)
    mean_score: float = (deviation * inside).mean().item()
    return mean_score


def intervals(
    mean: Tensor, variance: Tensor, targets: Tensor
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Share of targets inside of central intervals of ``LEVELS``, and the mean width of each."""
    deviation, error = variance.sqrt(), (targets - mean).abs()
    half = [torch.special.ndtri(torch.tensor(0.5 + p / 2, dtype=mean.dtype)) for p in LEVELS]
    return (
        tuple((error <= z * deviation).double().mean().item() for z in half),
        tuple((2 * z * deviation).mean().item() for z in half),
    )


def pit(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Probability integral transform: where in its predicted distribution each target lies.

    Uniform in [0, 1] where predictions are calibrated. Source: Dawid, 1984.
    """
    share: Tensor = torch.special.ndtr((targets - mean) / variance.sqrt())
    return share


def pit_error(mean: Tensor, variance: Tensor, targets: Tensor) -> float:
    """Area between the distribution of the PIT and the uniform one: 0 calibrated, 1/2 at most."""
    found = pit(mean, variance, targets).flatten().sort().values
    ideal = (torch.arange(len(found), dtype=found.dtype) + 0.5) / len(found)
    return (found - ideal).abs().mean().item()
