"""How the members' logits become one probability per class, and how that is calibrated.

Shape letters: E members, N examples, C classes. Probabilities come out as float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from bend_ray.ensemble.metrics import SMALLEST_PROBABILITY, check_examples
from bend_ray.errors import TrainingError
from bend_ray.process.lazy import torch
from bend_ray.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

TEMPERATURE_RANGE = (0.1, 100.0)
"""Where a temperature is sought: a bag without a validation error would ask for zero."""
_NEAR = 1e-3
_CLOSE = 1e-10
"""A step of so small a share is the last."""
_MOST_STEPS = 64
"""Enough to halve the interval to that share."""


class SoftVote(Spec):
    """Mean of the members' softmax probabilities, as in a deep ensemble.

    Source: ``sklearn.ensemble.VotingClassifier(voting="soft")``; Lakshminarayanan et al., 2017.
    """

    kind: Literal["soft"] = "soft"

    def combine(self, logits_ENC: Tensor, val_nll_E: Tensor) -> Tensor:
        """Combine logits into probs_NC; every member counts the same.

        Raises:
            TrainingError: if a member's logits are not finite.
        """
        equal_E = torch.full_like(val_nll_E, 1 / len(val_nll_E), dtype=torch.float64)
        return _average_softmax(logits_ENC, equal_E)


class MajorityVote(Spec):
    """Share of the members whose most probable class it is.

    Ties go to the lowest class, among a member's equal logits and (through argmax) among equal
    shares. A class without a vote has probability 0.

    Source: ``sklearn.ensemble.VotingClassifier(voting="hard")``; Breiman, 1996.
    """

    kind: Literal["majority"] = "majority"

    def combine(self, logits_ENC: Tensor, val_nll_E: Tensor) -> Tensor:
        """Combine logits into probs_NC, the vote shares.

        Raises:
            TrainingError: if a member's logits are not finite.
        """
        _check_members(logits_ENC, val_nll_E)
        _check_finite(logits_ENC, torch.ones_like(val_nll_E))
        votes_NE = logits_ENC.argmax(dim=-1).T
        ones_NE = torch.ones_like(votes_NE, dtype=torch.float64)
        counts_NC = ones_NE.new_zeros(logits_ENC.shape[1:]).scatter_add_(1, votes_NE, ones_NE)
        return counts_NC / len(logits_ENC)


class WeightedVote(Spec):
    """Mean of the softmax probabilities, weighted by each member's validation likelihood.

    The weight is proportional to ``exp(-sharpness * nll)``, nll being the member's mean
    validation NLL in nats. A member that diverged on validation (nll not finite) has no vote.
    """

    kind: Literal["weighted"] = "weighted"
    sharpness: float = Field(default=10.0, ge=0.0, allow_inf_nan=False)
    """How many validation examples' worth of evidence decide the weights.

    0 is the soft vote; at 10, a member 0.1 nat worse than another has 1/e of its weight; as many
    as there are validation examples is Bayesian model averaging, which mostly picks one member.
    """

    def weights(self, val_nll_E: Tensor) -> Tensor:
        """Weights of the members, (E,) float64 that sum to 1.

        Raises:
            TrainingError: if no member has a finite validation NLL.
        """
        finite_E = torch.isfinite(val_nll_E)
        if not finite_E.any():
            raise TrainingError(
                f"expected a finite validation NLL from at least one of {len(val_nll_E)} members, "
                "got none: all of them diverged; lower their learning rate and train them again"
            )
        evidence_E = -self.sharpness * val_nll_E.double()
        return evidence_E.masked_fill(~finite_E, -math.inf).softmax(dim=0)

    def combine(self, logits_ENC: Tensor, val_nll_E: Tensor) -> Tensor:
        """Combine logits into probs_NC by the weights that val_nll_E gives.

        Raises:
            TrainingError: if the logits of a member with a vote are not finite.
        """
        return _average_softmax(logits_ENC, self.weights(val_nll_E))


def fit_temperature(probs_NC: Tensor, labels_N: Tensor) -> float:
    """Find the temperature that minimises the bag's validation NLL.

    The NLL is convex in 1/T: Newton's steps find where its slope is zero, and where one would
    leave the interval that still holds it, that is halved instead.

    Args:
        probs_NC: the bag's probabilities on validation examples.
        labels_N: their classes.

    Returns:
        The temperature, within ``TEMPERATURE_RANGE``: above 1 for an overconfident bag.

    Source: Guo et al., "On calibration of modern neural networks", 2017, section 4.2.
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    log_probs_NC = _log(probs_NC)
    true_N = log_probs_NC.gather(1, labels_N.long()[:, None]).squeeze(1)
    low, high = (1 / bound for bound in reversed(TEMPERATURE_RANGE))
    sharpness = 1.0  # 1 / T
    for _ in range(_MOST_STEPS):
        softened_NC = torch.softmax(log_probs_NC * sharpness, dim=1)
        mean_N = (softened_NC * log_probs_NC).sum(dim=1)
        slope = (mean_N - true_N).mean().item()
        curvature = ((softened_NC * log_probs_NC**2).sum(dim=1) - mean_N**2).mean().item()
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
        better = sharpness - slope / curvature if curvature > 0 else math.inf
        if not low < better < high:
            better = math.sqrt(low * high)
        sharpness, before = better, sharpness
        if abs(sharpness - before) <= _CLOSE * sharpness:
            break
    return 1 / sharpness


def is_at_an_end(temperature: float) -> bool:
    """Whether a fitted temperature is where its range ends: the examples do not say what it is."""
    low, high = TEMPERATURE_RANGE
    return not low * (1 + _NEAR) < temperature < high * (1 - _NEAR)


def apply_temperature(probs_NC: Tensor, temperature: float) -> Tensor:
    """Soften (T > 1) or sharpen (T < 1) probabilities: softmax of log probabilities over T.

    Probabilities are clipped at ``metrics.SMALLEST_PROBABILITY`` first. Keeps the most probable
    class; T = 1 gives the probabilities back.
    """
    return torch.softmax(_log(probs_NC) / temperature, dim=1)


def _log(probs_NC: Tensor) -> Tensor:
    return probs_NC.double().clamp(min=SMALLEST_PROBABILITY).log()


def _average_softmax(logits_ENC: Tensor, weights_E: Tensor) -> Tensor:
    """Average of the softmax over the members that have a weight, probs_NC."""
    _check_members(logits_ENC, weights_E)
    _check_finite(logits_ENC, weights_E)
    probs_NC = torch.zeros(logits_ENC.shape[1:], dtype=torch.float64, device=logits_ENC.device)
    # A member at a time: the probabilities of all of them would be the largest thing in memory.
    for logits_NC, weight in zip(logits_ENC, weights_E.tolist(), strict=True):
        if weight > 0:
            probs_NC.add_(torch.softmax(logits_NC.double(), dim=1), alpha=weight)
    return probs_NC


def _check_members(logits_ENC: Tensor, per_member_E: Tensor) -> None:
    if logits_ENC.dim() != 3 or len(logits_ENC) == 0 or per_member_E.shape != logits_ENC.shape[:1]:
        raise ValueError(
            f"expected logits (E, N, C) of at least one member and a validation NLL for each, got "
            f"shapes {tuple(logits_ENC.shape)} and {tuple(per_member_E.shape)}"
        )


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


Vote = Annotated[SoftVote | MajorityVote | WeightedVote, Field(discriminator="kind")]
