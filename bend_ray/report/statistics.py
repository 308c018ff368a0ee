"""What several repeats of one config have in common, and how two bags differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bend_ray.report.evaluation import BagScores, Result

TIE_ERRORS = 2.0
"""A difference of at most so many standard errors is a tie."""

LEAST_PAIRS = 3
"""Of fewer repeats the standard error itself says too little: nothing but a tie is told."""

_NAMES = ("store", "fingerprints", "members")


@dataclass(frozen=True)
class BagDifference:
    """The bag minus a rival.

    Attributes:
        mean: of the differences.
        standard_error: over repeats, or over test images where there is one repeat; None for a
            single image.
        higher_is_better: which way a difference is good.
        pairs: how many differences the standard error is of: repeats or images.
    """

    mean: float
    standard_error: float | None
    higher_is_better: bool
    pairs: int

    @property
    def verdict(self) -> str:
        """``win``, ``loss`` or ``tie``."""
        unknown = self.standard_error is None or self.pairs < LEAST_PAIRS
        if unknown or abs(self.mean) <= TIE_ERRORS * (self.standard_error or 0.0):
            return "tie"
        return "win" if (self.mean > 0) == self.higher_is_better else "loss"

    def as_json(self) -> dict[str, Any]:
        """Mean, standard error and verdict."""
        return {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "verdict": self.verdict,
        }


def aggregate(results: Sequence[Result]) -> dict[str, Any]:
    """Repeats' results in one, of the same shape: each figure as ``{mean, sd}``.

    Beside every rival's figures stand ``bag_minus_it``: paired differences in accuracy and NLL,
    their standard errors and a verdict.

    Args:
        results: of at least two repeats.
    """
    evaluations = [result.evaluation for result in results]
    spreads: dict[str, Any] = _spreads([result.as_json() for result in results])
    for name, rival in spreads["rivals"].items():
        found = differences([e.bag for e in evaluations], [e.rivals[name] for e in evaluations])
        rival["bag_minus_it"] = {score: each.as_json() for score, each in found.items()}
    return {"repeats": len(results), **spreads}


def differences(bags: Sequence[BagScores], rivals: Sequence[BagScores]) -> dict[str, BagDifference]:
    """Bags minus rivals in accuracy and NLL, paired by repeat; scores that are None are out."""
    found = {}
    for score, higher_is_better in (("accuracy", True), ("nll", False)):
        pairs = [
            (getattr(bag, score), getattr(rival, score))
            for bag, rival in zip(bags, rivals, strict=True)
        ]
        minus = [ours - theirs for ours, theirs in pairs if None not in (ours, theirs)]
        if minus:
            error = statistics.stdev(minus) / math.sqrt(len(minus)) if len(minus) > 1 else None
            mean = statistics.fmean(minus)
            found[score] = BagDifference(mean, error, higher_is_better, len(minus))
    return found


def mean_and_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) of what is not null; null where there is too little."""
    known = [value for value in values if value is not None]
    return (
        statistics.fmean(known) if known else None,
        statistics.stdev(known) if len(known) > 1 else None,
    )


def _spreads(values: Sequence[Any]) -> Any:
    """Values of one shape, leaf by leaf."""
    mappings = [value for value in values if isinstance(value, dict)]
    if mappings:
        keys = dict.fromkeys(key for value in mappings for key in value if key not in _NAMES)
        return {key: _spreads([value.get(key) for value in mappings]) for key in keys}
    numbers = [value if isinstance(value, int | float) else None for value in values]
    mean, sd = mean_and_sd(numbers)
    return {"mean": mean, "sd": sd}
