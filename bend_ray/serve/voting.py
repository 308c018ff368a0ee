"""Counting the members' answers, all at once or group after group until more cannot matter.

Shape letters: E members, B examples, C classes. A member's softmax is float32, as its logits are;
sums over members are float64, and sums of whole votes are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bend_ray.ensemble.metrics import SMALLEST_PROBABILITY
from bend_ray.ensemble.votes import Rule

Floats = NDArray[np.float64]
Softmaxes = NDArray[np.float32]
Truths = NDArray[np.bool_]

_SLACK = 1e-5
"""More than sums of softmaxes in float32 can be off, as a share of the whole vote."""


@dataclass(frozen=True)
class Stop:
    """When a question needs no more members.

    Attributes:
        decided: when the members left cannot change the label, whatever they say.
        confidence: when the bag so far gives its label at least this probability; None: never.
        everyone: never before the last, nor after a student.
    """

    decided: bool = False
    confidence: float | None = None
    everyone: bool = False


@dataclass(frozen=True)
class Answers:
    """What a bag says about B examples.

    Attributes:
        labels_B: the class with the highest probability, the lowest of equals.
        probs_BC: of the members that were asked, by the vote and the temperature.
        entropy_B: of the bag's probabilities, in nats: all uncertainty.
        information_B: how much the members disagree: the mutual information of label and member,
            in nats, in their own softmaxes, which no temperature has touched.
        choices_BE: each member's class; -1 for one that was not asked.
        member_probs_BEC: each member's softmax; zeros of one that was not asked.
    """

    labels_B: NDArray[np.int64]
    probs_BC: Floats
    entropy_B: Floats
    information_B: Floats
    choices_BE: NDArray[np.int64]
    member_probs_BEC: Softmaxes

    @property
    def votes(self) -> NDArray[np.int64]:
        """How many members chose each class."""
        chosen_BEC = self.choices_BE[:, :, None] == np.arange(self.probs_BC.shape[1])
        votes_BC: NDArray[np.int64] = chosen_BEC.sum(axis=1)
        return votes_BC

    @property
    def used(self) -> NDArray[np.int64]:
        """How many members were asked."""
        used_B: NDArray[np.int64] = (self.choices_BE >= 0).sum(axis=1)
        return used_B

    @property
    def is_finite(self) -> Truths:
        """Whether the answer about each example is one."""
        told_B = self.probs_BC.sum(axis=1) + self.entropy_B + self.information_B
        return np.asarray(np.isfinite(told_B))

    def rows(self, start: int, stop: int) -> Answers:
        """The answers about some of the examples."""
        return Answers(*(getattr(self, field.name)[start:stop] for field in fields(self)))


def counted(rule: Rule, probs_BEC: Softmaxes, asked_BE: Truths) -> Answers:
    """What those members say together who were asked; of the others ``probs_BEC`` has zeros."""
    weights_BE = np.where(asked_BE, rule.sums_exactly, 0.0)
    seen_B1 = weights_BE.sum(axis=1, keepdims=True)
    mean_BC = np.einsum("be,bec->bc", weights_BE, probs_BEC) / seen_B1
    own_B = (weights_BE * _entropy(probs_BEC)).sum(axis=1) / seen_B1[:, 0]
    mass_BC = _mass(rule, probs_BEC, weights_BE)
    probs_BC = mass_BC / seen_B1
    if rule.temperature != 1.0:
        logs_BC = np.log(np.maximum(probs_BC, SMALLEST_PROBABILITY)) / rule.temperature
        powers_BC = np.exp(logs_BC - logs_BC.max(axis=1, keepdims=True))
        probs_BC = powers_BC / powers_BC.sum(axis=1, keepdims=True)
    return Answers(
        labels_B=mass_BC.argmax(axis=1),
        probs_BC=probs_BC,
        # Neither is negative but for rounding, the second by Jensen's inequality.
        entropy_B=np.maximum(_entropy(probs_BC), 0.0),
        information_B=np.maximum(_entropy(mean_BC) - own_B, 0.0),
        choices_BE=np.where(asked_BE, probs_BEC.argmax(axis=2), -1),
        member_probs_BEC=probs_BEC,
    )


def finished(rule: Rule, answers: Answers, asked_BE: Truths, stops: Sequence[Stop]) -> Truths:
    """Examples about which nobody else need be asked."""
    wanted_B = np.array([stop.decided for stop in stops])
    least_B = np.array([np.inf if s.confidence is None else s.confidence for s in stops])
    sure_B = answers.probs_BC.max(axis=1) >= least_B
    ended_B: Truths = (wanted_B & decided(rule, answers, asked_BE)) | sure_B
    return ended_B


def decided(rule: Rule, answers: Answers, asked_BE: Truths) -> Truths:
    """Examples whose label the members left cannot change, whatever they say.

    The most a class can still gain on the leader is the weight of all of them. Where votes are
    counted this is exact, ties included; where probabilities are averaged a sliver of the vote is
    left for rounding.
    """
    weights_BE = np.where(asked_BE, rule.sums_exactly, 0.0)
    mass_BC = _mass(rule, answers.member_probs_BEC, weights_BE)
    total = sum(rule.sums_exactly)
    left_B1 = total - weights_BE.sum(axis=1, keepdims=True)
    leader_B1 = answers.labels_B[:, None]
    lead_BC = np.take_along_axis(mass_BC, leader_B1, axis=1) - mass_BC
    classes_C = np.arange(mass_BC.shape[1])
    if rule.counts_votes:
        safe_BC = (lead_BC > left_B1) | ((lead_BC == left_B1) & (leader_B1 < classes_C))
    else:
        safe_BC = lead_BC > left_B1 + _SLACK * total
    settled_B: Truths = (safe_BC | (classes_C == leader_B1)).all(axis=1) | asked_BE.all(axis=1)
    return settled_B


def _mass(rule: Rule, probs_BEC: Softmaxes, weights_BE: Floats) -> Floats:
    """What each class has got of the vote, ``(B, C)``."""
    ballots_BEC: NDArray[Any] = probs_BEC
    if rule.counts_votes:
        ballots_BEC = probs_BEC.argmax(axis=2)[:, :, None] == np.arange(probs_BEC.shape[2])
    mass_BC: Floats = np.einsum("be,bec->bc", weights_BE, ballots_BEC)
    return mass_BC


def _entropy(probs: NDArray[Any]) -> Floats:
    """In nats, over the last dimension."""
    logs = np.log(np.maximum(probs, SMALLEST_PROBABILITY, dtype=np.float64))
    entropy: Floats = -(probs * logs).sum(axis=-1)
    return entropy
