"""How a bag's members answer as one: the same rule in torch, in ONNX and in the running count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

SMALLEST_PROBABILITY = 2.0**-126
"""The smallest normal float32: no example costs more than 87.3 nats, whatever the dtype."""
_LARGEST_SHARE = 2**16
"""A member's share of whole votes has at most this denominator."""


@dataclass(frozen=True)
class Rule:
    """How answers are weighed.

    Attributes:
        weights: each member's share of the vote; they sum to 1.
        counts_votes: whether a member votes for one class, or with its probabilities.
        temperature: divides the log of the bag's probabilities, which are then normalised again.
    """

    weights: tuple[float, ...]
    counts_votes: bool = False
    temperature: float = 1.0

    @property
    def sums_exactly(self) -> tuple[float, ...]:
        """The weights on a scale that makes them whole numbers where votes are counted.

        So sums of votes have no rounding, and ties are ties.
        """
        if not self.counts_votes:
            return self.weights
        shares = [Fraction(weight).limit_denominator(_LARGEST_SHARE) for weight in self.weights]
        whole = math.lcm(*(share.denominator for share in shares))
        return tuple(float(share * whole) for share in shares)
