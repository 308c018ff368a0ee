"""How the members' logits become one probability per class, and how that is calibrated.

Shape letters: E members, N examples, C classes. Probabilities come out as float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from pydantic import Field

from bend_ray.ensemble.metrics import SMALLEST_PROBABILITY, by_example, check_examples
from bend_ray.ensemble.predictions import Predictions
from bend_ray.errors import ConfigError, TrainingError
from bend_ray.imported import Imported
from bend_ray.process.lazy import Tensor, torch
from bend_ray.process.matrix import scratch
from bend_ray.spec import Spec

if TYPE_CHECKING:
    from bend_ray.tasks import Task

PRIOR_EXAMPLES = 3.0
"""By how many examples it is believed beforehand that a bag's temperature is 1."""
_TEMPERATURES = (0.1, 100.0)
"""Between which one is sought."""
_CLOSE = 1e-10
"""A step of so small a share is the last."""
_MOST_STEPS = 64
"""Enough to halve the interval to that share."""
_LARGEST_SHARE = 2**16
"""A member's share of whole votes has at most this denominator."""


@dataclass(frozen=True)
class Rule:
    """How members answer as one: the same in torch, in ONNX and in the running count.

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


class _Vote(Spec):
    """A weighted mean of what the members say, each a row of numbers: probabilities, or moments.

    A vote chooses ``weights`` and ``counts_votes`` alone: exported and served bags know no more.
    """

    counts_votes: ClassVar[bool] = False
    """Whether a member says its most probable class alone, or its softmax probabilities."""
    meaning: ClassVar[str] = "a weighted mean of what they say"
    """What the bag's answer is, as an exported bag's README says it."""

    def weights(self, val_nll_E: Tensor) -> Tensor:
        """Weights of the members, (E,) float64 on any scale, from their validation NLL in nats."""
        return torch.ones(len(val_nll_E), dtype=torch.float64)

    @final
    def ballots(self, logits: Tensor, task: Task) -> Tensor:
        """What members say of a task: outputs (..., C) to float64 rows.

        ConfigError where votes are counted, and there are no classes to vote for.
        """
        if not self.counts_votes:
            return task.ballots(logits)
        if not task.has_classes:
            raise ConfigError(
                f"evaluation.vote.kind: expected a mean of what members say for {task.kind}, as "
                "there are no classes to count votes for, got majority; use soft"
            )
        choice = logits.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, choice, 1.0)

    @final
    def answers(self, predictions: Predictions, val_nll_E: Tensor) -> Tensor:
        """Combine what members, each of a validation NLL, say into the bag's answers, ``(N, A)``.

        TrainingError where the logits of a member with a vote are not finite.
        """
        (num_examples, outputs), task, start = predictions.shape[1:], predictions.task, 0
        weight_E = self.weights(val_nll_E)
        answers_NA = scratch(num_examples, task.answers_of(outputs))
        for logits_ENC, labels_N in predictions.blocks():
            _check_finite(logits_ENC, weight_E)
            shape = self.ballots(logits_ENC[0, :0], task).shape[1:]
            ballots_NB = logits_ENC.new_zeros(len(labels_N), *shape, dtype=torch.float64)
            # A member at a time: what all of them say would be the largest thing in memory.
            for logits_NC, weight in zip(logits_ENC, weight_E.tolist(), strict=True):
                if weight > 0:
                    ballots_NB.add_(self.ballots(logits_NC, task), alpha=weight)
            ballots_NB.div_(weight_E.sum())
            answers_NA[start : start + len(labels_N)] = task.answers(ballots_NB)
            start += len(labels_N)
        return answers_NA


class SoftVote(_Vote):
    """Mean of the members' softmax probabilities, as in a deep ensemble.

    Source: ``sklearn.ensemble.VotingClassifier(voting="soft")``; Lakshminarayanan et al., 2017.
    """

    kind: Literal["soft"] = "soft"
    meaning: ClassVar[str] = "the mean of their probabilities"


class MajorityVote(_Vote):
    """Share of the members whose most probable class it is.

    Ties go to the lowest class, among a member's equal logits and (through argmax) among equal
    shares. A class without a vote has probability 0.

    Source: ``sklearn.ensemble.VotingClassifier(voting="hard")``; Breiman, 1996.
    """

    kind: Literal["majority"] = "majority"
    counts_votes: ClassVar[bool] = True
    meaning: ClassVar[str] = "the share of them that choose a class"


class WeightedVote(_Vote):
    """Mean of the softmax probabilities, weighted by each member's validation likelihood.

    The weight is proportional to ``exp(-sharpness * nll)``, nll being the member's mean
    validation NLL in nats. A member that diverged on validation (nll not finite) has no vote.
    """

    kind: Literal["weighted"] = "weighted"
    meaning: ClassVar[str] = "the mean of their probabilities, weighted by validation likelihood"
    sharpness: float = Field(default=10.0, ge=0.0, allow_inf_nan=False)
    """How many validation examples' worth of evidence decide the weights.

    0 is the soft vote; at 10, a member 0.1 nat worse than another has 1/e of its weight; as many
    as there are validation examples is Bayesian model averaging, which mostly picks one member.
    """

    def weights(self, val_nll_E: Tensor) -> Tensor:
        """Weights of the members, (E,) float64 that sum to 1.

        TrainingError where no member has a finite validation NLL.
        """
        finite_E = torch.isfinite(val_nll_E)
        if not finite_E.any():
            raise TrainingError(
                f"expected a finite validation NLL from at least one of {len(val_nll_E)} members, "
                "got none: all of them diverged; lower their learning rate and train them again"
            )
        evidence_E = -self.sharpness * val_nll_E.double()
        return evidence_E.masked_fill(~finite_E, -math.inf).softmax(dim=0)


def fit_temperature(probs_NC: Tensor, labels_N: Tensor, bags: int = 1) -> float:
    """Find the temperature at which a bag's validation NLL is least, given what is likely.

    Above 1 for an overconfident bag. A few hundred examples may hold no error, or one: their NLL
    alone would ask for any sharpness. So 1/T has a gamma prior with its mode at 1, which adds
    ``PRIOR_EXAMPLES * (1/T - log(1/T))`` to the sum of N. All is convex in 1/T: Newton's steps find
    where the slope is zero, and where one would leave the interval that still holds it, that is
    halved instead. What several ``bags`` say that share a temperature is given one after another.

    Source: Guo et al., "On calibration of modern neural networks", 2017, section 4.2.
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    prior = PRIOR_EXAMPLES * bags / len(labels_N)
    low, high = (1 / bound for bound in reversed(_TEMPERATURES))
    sharpness = 1.0  # 1 / T
    for _ in range(_MOST_STEPS):
        derivatives = by_example(partial(_derivatives, sharpness), probs_NC, labels_N)
        slope, curvature = derivatives.mean(dim=0).tolist()
        slope += prior * (1 - 1 / sharpness)
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
        better = sharpness - slope / (curvature + prior / sharpness**2)
        if not low < better < high:
            better = math.sqrt(low * high)
        sharpness, before = better, sharpness
        if abs(sharpness - before) <= _CLOSE * sharpness:
            break
    return 1 / sharpness


def _derivatives(sharpness: float, probs_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Of each example's NLL by the sharpness, the first and the second, ``(N, 2)``."""
    log_probs_NC = _log(probs_NC)
    softened_NC = torch.softmax(log_probs_NC * sharpness, dim=1)
    mean_N = (softened_NC * log_probs_NC).sum(dim=1)
    true_N = log_probs_NC.gather(1, labels_N.long()[:, None]).squeeze(1)
    square_N = (softened_NC * log_probs_NC**2).sum(dim=1)
    return torch.stack([mean_N - true_N, square_N - mean_N**2], dim=1)


def apply_temperature(probs_NC: Tensor, temperature: float) -> Tensor:
    """Soften (T > 1) or sharpen (T < 1) probabilities: softmax of log probabilities over T.

    Probabilities are clipped at ``SMALLEST_PROBABILITY`` first. Keeps the most probable
    class; T = 1 gives the probabilities back.
    """
    return by_example(lambda probs: torch.softmax(_log(probs) / temperature, dim=1), probs_NC)


def _log(probs_NC: Tensor) -> Tensor:
    return probs_NC.double().clamp(min=SMALLEST_PROBABILITY).log()


def _check_finite(logits_ENC: Tensor, weights_E: Tensor) -> None:
    """Stop before a diverged member makes the whole bag's answer nan."""
    finite_E = torch.isfinite(logits_ENC).flatten(start_dim=1).all(dim=1)
    diverged = (~finite_E & (weights_E > 0)).nonzero().flatten().tolist()
    if diverged:
        raise TrainingError(
            f"expected finite logits from every voting member, got nan or inf from "
            f"{len(diverged)} of {len(logits_ENC)}, the first at index {diverged[0]}; choose fewer "
            "members (bagging `top_k` with a `size` leaves diverged members out first)"
        )


class ImportedVote(Imported, _Vote):
    """One's own weights: a function of the members' validation NLL ``(E,)`` that gives ``(E,)``.

    The answer is the mean of the members' softmax probabilities with these weights, of any scale.
    """

    meaning: ClassVar[str] = "the mean of their probabilities, by weights of the user's own"

    def weights(self, val_nll_E: Tensor) -> Tensor:
        """What the function gives, as float64.

        ConfigError where it is not a weight of 0 or more for each member.
        """
        given = torch.as_tensor(self.call(val_nll_E, **self.arguments), dtype=torch.float64)
        if given.shape != val_nll_E.shape or not (given >= 0).all() or not given.sum() > 0:
            raise ConfigError(
                f"{self.target}: expected weights of 0 or more, not all 0, for "
                f"{len(val_nll_E)} members, got {given.tolist()}"
            )
        return given


Vote = Annotated[SoftVote | MajorityVote | WeightedVote | ImportedVote, Field(discriminator="kind")]
