"""Mean and scale of a population of vectors, gathered a block of columns at a time.

Shapes: B vectors of a batch, T of the population, P parameters, W columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.parameters.layout import ParameterLayout

# Far below the spread of anything trained in float32, far above the smallest float32.
SCALE_FLOOR = 1e-8


@dataclass(frozen=True)
class Standardizer:
    """``x = (theta - mean) / scale``, a mean per parameter and one scale per layer.

    One scale per layer keeps the shape of a layer's distribution, and a rarely moving parameter
    is not blown up to the size of the others.
    """

    mean_P: Tensor
    scale_P: Tensor

    @classmethod
    def fit(cls, layout: ParameterLayout, blocks: Iterable[Tensor]) -> Standardizer:
        """Of vectors of which columns theta_TW are given block by block, in their order.

        The scale of a layer is the root of the mean, over its parameters, of their variance
        (1/count). A layer in which all vectors agree gets a tiny scale: its own values map to 0,
        and whatever a generator draws for it maps back to the mean.
        """
        means, variances = [], []
        for theta_TW in blocks:
            wide_TW = theta_TW.to(torch.float64)
            # A sum over a count, not mean(): equal float32 values then average to themselves.
            means.append(wide_TW.sum(dim=0) / len(wide_TW))
            variances.append((wide_TW - means[-1]).square().sum(dim=0) / len(wide_TW))
        sizes = [entry.size for entry in layout.entries]
        layers = torch.split(torch.cat(variances), sizes)
        scales = torch.stack([layer.mean().sqrt() for layer in layers]).clamp_min(SCALE_FLOOR)
        scale_P = torch.repeat_interleave(scales, torch.tensor(sizes))
        return cls(torch.cat(means).to(torch.float32), scale_P.to(torch.float32))

    def apply(self, theta_BP: Tensor) -> Tensor:
        """Vectors (B, P) to standardised vectors x_BP."""
        return (theta_BP - self.mean_P) / self.scale_P

    def invert(self, x_BP: Tensor) -> Tensor:
        """Standardised vectors (B, P) back to vectors theta_BP."""
        return self.mean_P + x_BP * self.scale_P
