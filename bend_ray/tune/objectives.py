"""Objectives: what of a bag a search minimises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from bend_ray.spec import Spec


@dataclass(frozen=True)
class ScoredBag:
    """One bag of a trial, and what it costs.

    Attributes:
        size: members that vote.
        nll: on validation images, nats.
        accuracy: on validation images, a fraction of 1.
        cost_seconds: of all of it from scratch, GPU seconds where one was used, else CPU seconds.
        flops: floating-point operations of the whole bag's answer to one image, each member whole.
    """

    size: int
    nll: float
    accuracy: float
    cost_seconds: float
    flops: int


class Nll(Spec):
    """Validation NLL, in nats."""

    kind: Literal["nll"] = "nll"

    def of(self, bag: ScoredBag) -> float:
        """Lower is better."""
        return bag.nll


class Accuracy(Spec):
    """Share of validation images the bag gets wrong."""

    kind: Literal["accuracy"] = "accuracy"

    def of(self, bag: ScoredBag) -> float:
        """Lower is better."""
        return 1.0 - bag.accuracy


class PenalisedNll(Spec):
    """Validation NLL, and a price for each doubling of what the bag costs."""

    kind: Literal["penalised_nll"] = "penalised_nll"
    cost: NonNegativeFloat = 0.002
    """Nats that halving the total cost is worth."""
    inference: NonNegativeFloat = 0.002
    """Nats that halving the cost of an answer is worth."""

    def of(self, bag: ScoredBag) -> float:
        """Lower is better."""
        doublings = (math.log2(max(each, 1e-9)) for each in (bag.cost_seconds, bag.flops))
        return bag.nll + sum(
            price * each for price, each in zip((self.cost, self.inference), doublings, strict=True)
        )


Objective = Annotated[Nll | Accuracy | PenalisedNll, Field(discriminator="kind")]
