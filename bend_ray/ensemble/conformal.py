"""What an answer promises: sets that hold the truth, and refusals, by examples kept back for them.

All is calibrated on examples that trained, chose and scaled nothing: then an exchangeable example's
truth is in its set with at least the wanted probability, whatever the networks are worth.

Shape letters: N examples, C classes, T targets, A numbers of an answer: probabilities, or means
and then variances. In numpy, as who serves has no torch.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveFloat, PositiveInt

from bend_ray.errors import ConfigError
from bend_ray.spec import Spec

SetKind = Literal["thr", "aps", "raps"]
IntervalKind = Literal["cqr", "residual"]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
PENALTY, FREE_RANKS = 0.01, 1
"""Of RAPS: what each class costs beyond the most probable ones, and how many of these are free."""
MOST_SCORES = 512
"""That are kept; of more examples every so many ranks, always the next higher."""
MOST_PAIRS = 2048
"""Examples of which errors and deviations are kept; of more, evenly spaced ones."""
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


class _Calibration(Spec):
    """What examples kept back say of a bag's answers."""

    kinds: ClassVar[tuple[str, ...]]
    """Of what is promised, the usual one first."""

    examples: PositiveInt
    """How many they are."""
    thresholds: tuple[Threshold, ...] = ()
    """Of answers that are right or wrong, from all to few."""

    def kind_of(self, coverage: float, kind: str | None) -> str:
        """The kind that is asked for; ConfigError where there is none, or no such coverage."""
        if kind not in (None, *self.kinds):
            raise ConfigError(f"sets: expected one of {', '.join(self.kinds)}, got {kind!s:.64}")
        if not 0 < coverage < 1:
            raise ConfigError(f"coverage: expected more than 0 and less than 1, got {coverage:g}")
        return kind or self.kinds[0]

    def check(self, coverage: float, kind: str | None) -> None:
        """Refuse, as ConfigError, what cannot be promised."""
        self.kind_of(coverage, kind)
        if rank_of(self.examples, coverage) > self.examples:
            most = _at_most(self.examples / (self.examples + 1))
            raise ConfigError(
                f"coverage: expected at most {most}, which is what {self.examples} examples kept "
                f"back can promise, got {coverage:g}"
            )

    def refusals(self, probs_NC: Floats, accuracy: float) -> list[str]:
        """Why each answer is too unsure for a wanted accuracy; empty where it is not."""
        promised = self.threshold(accuracy)
        return [
            ""
            if sure >= promised.least
            else f"not sure: its probability is {sure:.4f}; of answers from {promised.least:.4f} "
            f"on, {100 * promised.answered:.0f} % of all, at least {100 * accuracy:g} % are right"
            for sure in probs_NC.max(axis=1).tolist()
        ]

    def threshold(self, accuracy: float) -> Threshold:
        """Where most are answered and so many right; ConfigError where none promises it."""
        fitting = [each for each in self.thresholds if each.accuracy >= accuracy]
        if not fitting:
            best = max((each.accuracy for each in self.thresholds), default=0.0)
            raise ConfigError(
                f"refuse_below: expected an accuracy of at most {_at_most(best)}, which is what "
                f"{self.examples} examples kept back can promise, got {accuracy:g}"
            )
        return fitting[0]


class SetCalibration(_Calibration):
    """What they say of probabilities."""

    kinds: ClassVar[tuple[str, ...]] = get_args(SetKind)
    promised: ClassVar[str] = "set"
    """What a program's output of it is called."""

    kind: Literal["sets"] = "sets"
    scores: dict[SetKind, tuple[FiniteFloat, ...]]
    """Of their true classes, rising; see ``nonconformity``."""

    @classmethod
    def of(cls, probs_NC: Floats, labels_N: NDArray[np.int64]) -> Self:
        """By probabilities of examples and their classes."""
        count = len(labels_N)
        true = {
            kind: np.sort(nonconformity(probs_NC, kind)[range(count), labels_N])
            for kind in get_args(SetKind)
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

    def quantile(self, kind: SetKind, coverage: float) -> float:
        """Below which a class is in the set; infinite where the examples are too few."""
        scores, rank = self.scores[kind], rank_of(self.examples, coverage)
        place = -(-rank * len(scores) // self.examples)
        return math.inf if rank > self.examples else scores[place - 1]

    def sets(self, probs_NC: Floats, coverage: float, kind: str | None = None) -> NDArray[np.bool_]:
        """Which classes are in each example's set, ``(N, C)``; the most probable one always is."""
        own: SetKind = self.kind_of(coverage, kind)  # type: ignore[assignment]
        inside_NC: NDArray[np.bool_] = nonconformity(probs_NC, own) <= self.quantile(own, coverage)
        inside_NC[range(len(probs_NC)), probs_NC.argmax(axis=1)] = True
        return inside_NC

    def scored(self, sets_NC: NDArray[Any], labels_N: NDArray[Any]) -> dict[str, float]:
        """Share that holds the truth, of all and of the class with the least, and mean size."""
        held_N = sets_NC[range(len(labels_N)), labels_N]
        return {
            "coverage": held_N.mean().item(),
            "least": min(held_N[labels_N == label].mean().item() for label in np.unique(labels_N)),
            "size": sets_NC.sum(axis=1).mean().item(),
        }


class IntervalCalibration(_Calibration):
    """What they say of means and variances, of each target by itself.

    ``cqr`` widens the central interval of a normal, or narrows it; ``residual`` is as wide
    everywhere. Source: Romano et al., "Conformalized quantile regression", 2019.
    """

    kinds: ClassVar[tuple[str, ...]] = get_args(IntervalKind)
    promised: ClassVar[str] = "interval"

    kind: Literal["intervals"] = "intervals"
    errors: tuple[tuple[NonNegativeFloat, ...], ...]
    """Absolute ones of the means, a tuple a target, in its units."""
    deviations: tuple[tuple[PositiveFloat, ...], ...]
    """The predicted ones, likewise."""

    @classmethod
    def of(cls, answers_NA: Floats, targets_NT: Floats) -> Self:
        """By answers about examples and their targets."""
        step = -(-len(targets_NT) // MOST_PAIRS)
        mean_NT, variance_NT = np.split(answers_NA[::step], 2, axis=1)
        errors_NT = np.abs(targets_NT[::step] - mean_NT)
        return cls(
            examples=len(errors_NT),
            errors=tuple(map(tuple, errors_NT.T.tolist())),
            deviations=tuple(map(tuple, np.sqrt(variance_NT).T.tolist())),
        )

    def sets(self, answers_NA: Floats, coverage: float, kind: str | None = None) -> Floats:
        """Lower and upper ends, infinite where the examples are too few.

        Returns:
            ``(N, 2)`` of one target, and ``(N, T, 2)`` of several.
        """
        is_cqr = self.kind_of(coverage, kind) == "cqr"
        half = NormalDist().inv_cdf(0.5 + coverage / 2) if is_cqr else 0.0
        outside_Tn = np.sort(np.array(self.errors) - half * np.array(self.deviations), axis=1)
        rank = rank_of(self.examples, coverage)
        reach_T = outside_Tn[:, rank - 1] if rank <= self.examples else np.inf
        mean_NT, variance_NT = np.split(answers_NA, 2, axis=1)
        wide_NT = np.maximum(half * np.sqrt(variance_NT) + reach_T, 0.0)
        ends_NT2 = np.stack([mean_NT - wide_NT, mean_NT + wide_NT], axis=-1)
        return ends_NT2[:, 0] if len(self.errors) == 1 else ends_NT2

    def scored(self, ends: NDArray[Any], targets_NT: NDArray[Any]) -> dict[str, float]:
        """Share that holds the truth, of all and of the target with the least, and mean width."""
        low_NT, high_NT = np.moveaxis(ends.reshape(len(ends), -1, 2), -1, 0)
        held_T = ((low_NT <= targets_NT) & (targets_NT <= high_NT)).mean(axis=0)
        size = (high_NT - low_NT).mean().item()
        return {"coverage": held_T.mean().item(), "least": held_T.min().item(), "size": size}


Calibration = Annotated[SetCalibration | IntervalCalibration, Field(discriminator="kind")]


def nonconformity(probs_NC: Floats, kind: SetKind) -> Floats:
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


def _at_most(share: float) -> str:
    """It in four digits, never more than it is: who asks for that is not refused again."""
    return f"{math.floor(share * 1e4 + 1e-9) / 1e4:.4f}"


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
