"""Models that differ by hyper-parameters, and yet take every step together.

A model draws its own from the seed of its generator, so that it does not depend on who else is in
its cohort. Shape letters: K models, B examples, H units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bend_ray.process.lazy import torch
from bend_ray.randomness import seed_for
from bend_ray.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor


class Variation(Spec):
    """Between what bounds hyper-parameters are drawn."""

    rate: Annotated[float, Field(ge=1.0)] = 4.0
    """Learning rates are the recipe's, times or divided by up to this, evenly in the logarithm."""
    decay: Annotated[float, Field(ge=1.0)] = 100.0
    """Likewise weight decay, of which what differs from the recipe's is decoupled."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """At most; where classes are learnt."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of hidden units that are left out, at most; of chains of dense layers."""

    def drawn(self, seeds_K: Sequence[int]) -> Drawn:
        """Those of models, by the seeds of their generators."""
        shares = []
        for seed in seeds_K:
            generator = torch.Generator().manual_seed(seed_for(seed, "variation"))
            shares.append(torch.rand(4, generator=generator))
        rate_K, decay_K, smoothing_K, dropout_K = torch.stack(shares, dim=1)
        return Drawn(
            torch.exp(math.log(self.rate) * (2 * rate_K - 1))[:, None],
            torch.exp(math.log(self.decay) * (2 * decay_K - 1))[:, None],
            (self.label_smoothing * smoothing_K)[:, None],
            self.dropout * dropout_K,
        )


@dataclass(frozen=True)
class Drawn:
    """Of each model: multipliers of rate and decay ``(K, 1)``, smoothing, and share left out."""

    rate_K1: Tensor
    decay_K1: Tensor
    smoothing_K1: Tensor
    dropout_K: Tensor

    def moved(self, before_KT: Tensor, after_KT: Tensor, decay: float) -> Tensor:
        """Where a step leads at each model's own rate and decay.

        ``decay`` is the recipe's share of the weights that a step takes away.
        """
        rate_K1, decay_K1 = (each.to(before_KT) for each in (self.rate_K1, self.decay_K1))
        own_KT = before_KT + rate_K1 * (after_KT - before_KT)
        return own_KT - rate_K1 * (decay_K1 - 1) * decay * before_KT

    def dropped(self, units_KBH: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Hidden units, some of each model's left out, the others larger in turn.

        A byte is drawn a unit, so shares are of 256ths: a fifth of the time that floats take.
        """
        limit_K1 = (256 * self.dropout_K[:, None]).round().clamp(max=255)
        size = units_KBH[0].numel()
        drawn = torch.empty(len(units_KBH), -(-size // 8), dtype=torch.int64)
        for row, generator in zip(drawn, generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        kept_KU = drawn.view(torch.uint8)[:, :size] >= limit_K1.byte()
        scale_K1 = (256 / (256 - limit_K1)).to(units_KBH)
        return units_KBH * (kept_KU.to(units_KBH.device) * scale_K1).view_as(units_KBH)
