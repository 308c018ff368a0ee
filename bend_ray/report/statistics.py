"""What several repeats of one config have in common, and how two bags differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bend_ray.report.evaluation import BagScores, Result

TIE_ERRORS = 2.0
"""A difference of at most so many standard errors is a tie."""

LEAST_PAIRS = 3
"""Of fewer repeats the standard error itself says too little: nothing but a tie is told."""

COMPARED = {"accuracy": ("accuracy", "points", 100.0, 2), "nll": ("NLL", "nats", 1.0, 4)}
"""Scores in which bags are compared: name, unit of a difference, scale and digits."""

_DIGITS = {
    "money": 2,
    **dict.fromkeys(("cost_seconds", "cpu_seconds", "gpu_seconds"), 1),
    **dict.fromkeys(("temperature", "error_iou", "q_statistic", "nearest_ratio", "spread"), 2),
    "size": 2,
    **dict.fromkeys(("rmse", "crps", "correlation"), 3),
    **dict.fromkeys(("nll", "brier"), 4),
    **dict.fromkeys(("marginal_seconds", "amortised_seconds", "ordinary_seconds"), 4),
}
"""Of what is no share."""
_MAY_BE_UNKNOWN = ("cost_seconds", "amortised_seconds")
_NAMES = ("store", "fingerprints", "members")


@dataclass(frozen=True)
class BagDifference:
    """The bag minus a rival in a score of ``COMPARED``: mean over so many pairs, standard error.

    Pairs are repeats, or test images where there is one repeat; of a single one there is no error.
    """

    score: str
    mean: float
    standard_error: float | None
    pairs: int

    @classmethod
    def over(cls, score: str, pairs: Sequence[float]) -> BagDifference:
        """Of the differences of one pair or more."""
        mean, sd = mean_and_sd(pairs)
        return cls(score, mean or 0.0, sd and sd / math.sqrt(len(pairs)), len(pairs))

    @property
    def verdict(self) -> str:
        """``win``, ``loss`` or ``tie``."""
        unknown = self.standard_error is None or self.pairs < LEAST_PAIRS
        if unknown or abs(self.mean) <= TIE_ERRORS * (self.standard_error or 0.0):
            return "tie"
        return "win" if (self.mean > 0) == (self.score == "accuracy") else "loss"

    @property
    def text(self) -> str:
        """Mean ± standard error, in points or nats.

        >>> BagDifference("accuracy", 0.012, 0.002, 5).text
        '+1.20 ± 0.20'
        """
        _, _, scale, digits = COMPARED[self.score]
        error = self.standard_error
        spread = "" if error is None else f" ± {scale * error:.{digits}f}"
        return f"{scale * self.mean:+.{digits}f}{spread}"

    @property
    def marked(self) -> str:
        """The text, and whether it is a win, a loss or a tie."""
        return f"{self.text} {({'win': '▲', 'loss': '▼', 'tie': '='})[self.verdict]}"

    def as_json(self) -> dict[str, Any]:
        """Mean, standard error and verdict."""
        return {"mean": self.mean, "standard_error": self.standard_error, "verdict": self.verdict}


def aggregate(results: Sequence[Result]) -> dict[str, Any]:
    """Two or more repeats' results in one, of the same shape: each figure as ``{mean, sd}``.

    Beside every rival's figures stand ``bag_minus_it``: paired differences in accuracy and NLL,
    their standard errors and a verdict.
    """
    spreads: dict[str, Any] = _spreads([result.as_json() for result in results])
    for name, rival in spreads["rivals"].items():
        found = differences([e.bag for e in results], [e.rivals[name] for e in results])
        rival["bag_minus_it"] = {score: each.as_json() for score, each in found.items()}
    return {"repeats": len(results), **spreads}


def differences(bags: Sequence[BagScores], rivals: Sequence[BagScores]) -> dict[str, BagDifference]:
    """Bags minus rivals in accuracy and NLL, paired by repeat; scores that are None are out."""
    found = {}
    for score in COMPARED:
        both = [
            (getattr(bag, score), getattr(rival, score))
            for bag, rival in zip(bags, rivals, strict=True)
        ]
        if minus := [ours - theirs for ours, theirs in both if None not in (ours, theirs)]:
            found[score] = BagDifference.over(score, minus)
    return found


def mean_and_sd(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n - 1) of what is not null; null where there is too little."""
    known = [value for value in values if value is not None]
    return (
        statistics.fmean(known) if known else None,
        statistics.stdev(known) if len(known) > 1 else None,
    )


def cells(records: Sequence[Any], heads: Mapping[str, str]) -> dict[str, str]:
    """By column, mean ± standard deviation of an attribute over records, one a repeat.

    What nobody knows is a dash. Shares are in percent. A cost is unknown where any of the records'
    is: what somebody else has trained has no price unless he gives it.

    >>> from bend_ray.artifacts.cost import Cost
    >>> cells([Cost(cpu_seconds=1.0), Cost(cpu_seconds=2.0)], {"cpu_seconds": "CPU s"})
    {'CPU s': '1.5 ± 0.7'}
    """
    return {
        head: cell([getattr(record, name) for record in records], name)
        for name, head in heads.items()
    }


def cell(values: Sequence[float | None], name: str) -> str:
    """Mean ± standard deviation of values that go by a name."""
    if name in _MAY_BE_UNKNOWN and None in values:
        return "unknown"
    mean, sd = mean_and_sd(values)
    if mean is None:
        return "-"
    digits = _DIGITS.get(name)
    scale, digits = (100, 2) if digits is None else (1, digits)
    spread = "" if sd is None else f" ± {scale * sd:.{digits}f}"
    return f"{scale * mean:.{digits}f}{spread}"


def _spreads(values: Sequence[Any]) -> Any:
    """Values of one shape, leaf by leaf."""
    mappings = [value for value in values if isinstance(value, dict)]
    if mappings:
        keys = dict.fromkeys(key for value in mappings for key in value if key not in _NAMES)
        return {key: _spreads([value.get(key) for value in mappings]) for key in keys}
    numbers = [value if isinstance(value, int | float) else None for value in values]
    mean, sd = mean_and_sd(numbers)
    return {"mean": mean, "sd": sd}
