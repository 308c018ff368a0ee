"""Mean and scale of a population of vectors, gathered in one pass over shards.

Shapes: B vectors of a batch, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.parameters.layout import ParameterLayout

# Far below the spread of anything trained in float32, far above the smallest float32.
SCALE_FLOOR = 1e-8


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of the vectors seen so far, in float64.

    Each worker updates its own and the results are merged, in any order.

    Source: Chan, Golub & LeVeque (1979), "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances".
    """

    count: int
    mean_P: Tensor
    m2_P: Tensor

    @classmethod
    def empty(cls, size: int) -> Moments:
        """Of no vector of ``size`` parameters."""
        zeros_P = torch.zeros(size, dtype=torch.float64)
        return cls(0, zeros_P, zeros_P.clone())

    def update(self, theta_BP: Tensor) -> None:
        """Take in a batch of vectors, which may be empty."""
        if len(theta_BP) == 0:
            return
        wide_BP = theta_BP.to(torch.float64)
        # A sum over a count, not mean(): equal float32 values then average to exactly themselves.
        mean_P = wide_BP.sum(dim=0) / len(wide_BP)
        self.merge(Moments(len(wide_BP), mean_P, (wide_BP - mean_P).square().sum(dim=0)))

    def merge(self, other: Moments) -> None:
        """Take in the vectors that ``other`` has seen."""
        count = self.count + other.count
        if count == 0:
            return
        share = other.count / count
        delta_P = other.mean_P - self.mean_P
        self.mean_P = self.mean_P + share * delta_P
        self.m2_P = self.m2_P + other.m2_P + self.count * share * delta_P.square()
        self.count = count


@dataclass(frozen=True)
class Standardizer:
    """``x = (theta - mean) / scale``, a mean per parameter and one scale per layer.

    One scale per layer keeps the shape of a layer's distribution, and a rarely moving parameter
    is not blown up to the size of the others.
    """

    mean_P: Tensor
    scale_P: Tensor

    @classmethod
    def fit(cls, moments: Moments, layout: ParameterLayout) -> Standardizer:
        """Scale of a layer: root of the mean, over its parameters, of their variance (1/count).

        A layer in which all vectors agree gets a tiny scale: its own values map to 0, and whatever
        a generator draws for it maps back to the mean. ValueError where moments are of no vector.
        """
        if moments.count == 0:
            raise ValueError("expected moments of at least one vector, got none; update them first")
        sizes = [entry.size for entry in layout.entries]
        variance_P = moments.m2_P / moments.count
        scales = torch.stack([layer.mean().sqrt() for layer in torch.split(variance_P, sizes)])
        repeats = torch.tensor(sizes, device=scales.device)
        scale_P = torch.repeat_interleave(scales.clamp_min(SCALE_FLOOR), repeats)
        return cls(moments.mean_P.to(torch.float32), scale_P.to(torch.float32))

    def apply(self, theta_BP: Tensor) -> Tensor:
        """Vectors (B, P) to standardised vectors x_BP."""
        return (theta_BP - self.mean_P) / self.scale_P

    def invert(self, x_BP: Tensor) -> Tensor:
        """Standardised vectors (B, P) back to vectors theta_BP."""
        return self.mean_P + x_BP * self.scale_P

    def state(self) -> dict[str, Tensor]:
        """As tensors by name, to be stored with safetensors."""
        return {"mean": self.mean_P, "scale": self.scale_P}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Standardizer:
        """The inverse of ``state``."""
        return cls(state["mean"], state["scale"])
