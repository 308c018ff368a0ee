"""What an answer promises: sets that hold the truth, and refusals, by examples kept back for them.

All is calibrated on examples that trained, chose and scaled nothing: then an exchangeable example's
truth is in its set with at least the wanted probability, whatever the networks are worth.

Shape letters: N examples, C classes. In numpy, as who serves has no torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveInt

from bend_ray.errors import ConfigError
from bend_ray.spec import Spec

Kind = Literal["thr", "aps", "raps"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
PENALTY, FREE_RANKS = 0.01, 1
"""Of RAPS: what each class costs beyond the most probable ones, and how many of these are free."""
MOST_SCORES = 512
"""That are kept; of more examples every so many ranks, always the next higher."""
RISK = 0.05
"""Probability, over the draw of the examples, that a promised accuracy is not kept."""
SHARES = 20
"""How many thresholds of a refusal are looked at; each has a part of the risk."""

Floats = NDArray[np.float64]


class Threshold(Spec):
    """Answers at least so probable, and what is known of them."""

    least: NonNegativeFloat
    """Probability of the answer given."""
    answered: NonNegativeFloat
    """Share of the examples that have such answers."""
    accuracy: NonNegativeFloat
    """Of these at least so many are right: the lower bound of Clopper & Pearson, 1934."""


class Calibration(Spec):
    """What examples kept back say of a bag's probabilities."""

    examples: PositiveInt
    """How many they are."""
    scores: dict[Kind, tuple[FiniteFloat, ...]]
    """Of their true classes, rising; see ``nonconformity``."""
    thresholds: tuple[Threshold, ...]
    """From all answers to few."""

    @classmethod
    def of(cls, probs_NC: Floats, labels_N: NDArray[np.int64]) -> Self:
        """By probabilities of examples and their classes."""
        count = len(labels_N)
        true = {
            kind: np.sort(nonconformity(probs_NC, kind)[range(count), labels_N]) for kind in KINDS
        }
        kept = min(count, MOST_SCORES)
        ranks = [-(-rank * count // kept) for rank in range(1, kept + 1)]
        return cls(
            examples=count,
            scores={
                kind: tuple(each[rank - 1].item() for rank in ranks) for kind, each in true.items()
            },
            thresholds=tuple(_thresholds(probs_NC, labels_N)),
        )

    def quantile(self, kind: Kind, coverage: float) -> float:
        """Below which a class is in the set; infinite where the examples are too few."""
        if kind not in KINDS or not 0 < coverage < 1:
            raise ConfigError(
                f"expected a coverage between 0 and 1 and one of {', '.join(KINDS)}, got "
                f"{coverage:g} and {kind}"
            )
        scores, rank = self.scores[kind], rank_of(self.examples, coverage)
        place = -(-rank * len(scores) // self.examples)
        return math.inf if rank > self.examples else scores[place - 1]

    def sets(self, probs_NC: Floats, coverage: float, kind: Kind = "thr") -> NDArray[np.bool_]:
        """Which classes are in each example's set, ``(N, C)``; the most probable one always is."""
        inside_NC: NDArray[np.bool_] = nonconformity(probs_NC, kind) <= self.quantile(
            kind, coverage
        )
        inside_NC[range(len(probs_NC)), probs_NC.argmax(axis=1)] = True
        return inside_NC

    def threshold(self, accuracy: float) -> Threshold:
        """Where most are answered and so many right; ConfigError where none promises it."""
        fitting = [each for each in self.thresholds if each.accuracy >= accuracy]
        if not fitting:
            best = max(each.accuracy for each in self.thresholds)
            raise ConfigError(
                f"refuse_below: expected an accuracy of at most {best:.4f}, which is what "
                f"{self.examples} examples kept back can promise, got {accuracy:g}"
            )
        return fitting[0]


def nonconformity(probs_NC: Floats, kind: Kind) -> Floats:
    """How little each class conforms, ``(N, C)``.

    ``thr``: one minus its probability (Sadinle et al., "Least ambiguous set-valued classifiers",
    2019). ``aps``: the probability of all that are more probable, which is the score of Romano et
    al., "Classification with valid and adaptive coverage", 2020, at u = 1 where they draw it, so
    that an example's set is always the same. ``raps``: and a penalty of its rank (Angelopoulos et
    al., "Uncertainty sets for image classifiers using conformal prediction", 2021).
    """
    if kind == "thr":
        return 1 - probs_NC
    order_NC = np.argsort(-probs_NC, axis=1, kind="stable")
    sorted_NC = np.take_along_axis(probs_NC, order_NC, axis=1)
    mass_NC = np.pad(sorted_NC.cumsum(axis=1)[:, :-1], ((0, 0), (1, 0)))
    if kind == "raps":
        mass_NC += PENALTY * np.maximum(np.arange(1, mass_NC.shape[1] + 1) - FREE_RANKS, 0)
    found_NC = np.empty_like(mass_NC)
    np.put_along_axis(found_NC, order_NC, mass_NC, axis=1)
    return found_NC


def rank_of(examples: int, coverage: float) -> int:
    """Of the calibrating examples' scores, rising from 1, the one at which sets end."""
    # A share such as 0.9 is a little more in binary than is meant.
    return math.ceil((examples + 1) * coverage - 1e-9)


def intervals(held_2N: Floats, targets_N: Floats, bounds_2N: Floats, coverage: float) -> Floats:
    """Intervals ``(2, N)`` that hold the truth, from a lower and an upper bound of each example.

    By ``held_2N``, bounds of examples kept back, and their targets. Of equal bounds, the predicted
    means, it is the residuals' quantile to both sides.

    Source: Romano et al., "Conformalized quantile regression", 2019.
    """
    outside_N = np.sort(np.maximum(held_2N[0] - targets_N, targets_N - held_2N[1]))
    rank = rank_of(len(outside_N), coverage)
    reach = math.inf if rank > len(outside_N) else outside_N[rank - 1]
    found_2N: Floats = bounds_2N + np.array([[-reach], [reach]])
    return found_2N


def _thresholds(probs_NC: Floats, labels_N: NDArray[np.int64]) -> list[Threshold]:
    """Of evenly spaced shares answered; their bounds hold all at once (Bonferroni)."""
    from scipy.stats import beta

    sure_N, right_N = probs_NC.max(axis=1), probs_NC.argmax(axis=1) == labels_N
    places = {(len(sure_N) - 1) * step // SHARES for step in range(SHARES)}
    found = []
    for least in sorted({np.sort(sure_N)[place].item() for place in places}):
        answered_N = sure_N >= least
        count, right = int(answered_N.sum()), int(right_N[answered_N].sum())
        bound = beta.ppf(RISK / SHARES, right, count - right + 1) if right else 0.0
        found.append(Threshold(least=least, answered=count / len(sure_N), accuracy=float(bound)))
    return found
