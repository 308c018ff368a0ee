"""Counting the members' answers, group after group, and stopping when more cannot matter.

Shape letters: E members, B examples, C classes. A member's softmax is float32, as its logits are;
sums over groups of members are float64, and sums of whole votes are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bend_ray.ensemble.rule import SMALLEST_PROBABILITY, Rule

Floats = NDArray[np.float64]

_SLACK = 1e-5
"""More than sums of softmaxes in float32 can be off, as a share of the whole vote."""


@dataclass(frozen=True)
class Stop:
    """When a question needs no more members.

    Attributes:
        decided: when the members left cannot change the label, whatever they say.
        confidence: when the bag so far gives its label at least this probability; None: never.
    """

    decided: bool = False
    confidence: float | None = None


@dataclass(frozen=True)
class Answers:
    """What a bag says about B examples.

    Attributes:
        labels_B: the class with the highest probability, the lowest of equals.
        probs_BC: of the members that were asked, by the vote and the temperature.
        votes_BC: how many members chose each class.
        entropy_B: of the bag's probabilities, in nats: all uncertainty.
        information_B: how much the members disagree: the mutual information of label and member,
            in nats, in their own softmaxes, which no temperature has touched.
        used_B: members that were asked.
        choices_BE: each member's class; -1 for one that was not asked.
        member_probs_BEC: each member's softmax, nan where not asked; None unless wanted.
    """

    labels_B: NDArray[np.int64]
    probs_BC: Floats
    votes_BC: NDArray[np.int64]
    entropy_B: Floats
    information_B: Floats
    used_B: NDArray[np.int64]
    choices_BE: NDArray[np.int64]
    member_probs_BEC: NDArray[np.float32] | None

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        """Whether the answer about each example is one."""
        finite_B: NDArray[np.bool_] = np.isfinite(
            self.probs_BC.sum(axis=1) + self.entropy_B + self.information_B
        )
        return finite_B

    def rows(self, start: int, stop: int) -> Answers:
        """The answers about some of the examples."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v[start:stop] for k, v in parts.items() if v is not None})


@dataclass(frozen=True)
class Ballots:
    """What some members say about B examples; sums are over them, with their weights.

    Attributes:
        mass_BC: sum of the softmaxes.
        entropy_B: sum of the softmaxes' entropies, in nats.
        choices_EB: each member's class.
        probs_EBC: each member's softmax.
    """

    mass_BC: NDArray[np.float32]
    entropy_B: NDArray[np.float32]
    choices_EB: NDArray[np.int64]
    probs_EBC: NDArray[np.float32]


class Tally:
    """The count so far, example by example."""

    def __init__(
        self, rule: Rule, num_examples: int, num_classes: int, *, keep_members: bool = False
    ) -> None:
        self.rule = rule
        self.weights_E: Floats = np.array(rule.sums_exactly)
        members = len(self.weights_E)
        self.mass_BC = np.zeros((num_examples, num_classes))
        self.mean_BC = np.zeros((num_examples, num_classes))
        self.member_entropy_B = np.zeros(num_examples)
        self.votes_BC = np.zeros((num_examples, num_classes), dtype=np.int64)
        self.seen_B = np.zeros(num_examples)
        self.choices_BE = np.full((num_examples, members), -1, dtype=np.int64)
        self.member_probs_BEC: NDArray[np.float32] | None = None
        if keep_members:
            shape = (num_examples, members, num_classes)
            self.member_probs_BEC = np.full(shape, np.nan, dtype=np.float32)

    def add(self, first: int, ballots: Ballots, rows_B: NDArray[np.intp]) -> None:
        """Count what members from ``first`` on say about some examples, each once."""
        members = slice(first, first + len(ballots.choices_EB))
        weights_E = self.weights_E[members]
        choices_BE = ballots.choices_EB.T
        hard, classes = self.rule.counts_votes, self.mass_BC.shape[1]
        self.mass_BC[rows_B] += (
            count_choices(choices_BE, classes, weights_E) if hard else ballots.mass_BC
        )
        self.mean_BC[rows_B] += ballots.mass_BC
        self.member_entropy_B[rows_B] += ballots.entropy_B
        self.votes_BC[rows_B] += count_choices(choices_BE, classes)
        self.seen_B[rows_B] += weights_E.sum()
        self.choices_BE[rows_B, members] = choices_BE
        if self.member_probs_BEC is not None:
            self.member_probs_BEC[rows_B, members] = ballots.probs_EBC.transpose(1, 0, 2)

    def decided(self) -> NDArray[np.bool_]:
        """Examples whose label the members left cannot change, whatever they say.

        The most a class can still gain on the leader is the weight of all of them. Where votes
        are counted this is exact, ties included; where probabilities are averaged a sliver of the
        vote is left for rounding.
        """
        total = self.weights_E.sum()
        left_B1 = (total - self.seen_B)[:, None]
        leader_B1 = self.mass_BC.argmax(axis=1)[:, None]
        lead_BC = np.take_along_axis(self.mass_BC, leader_B1, axis=1) - self.mass_BC
        classes_C = np.arange(self.mass_BC.shape[1])
        if self.rule.counts_votes:
            safe_BC = (lead_BC > left_B1) | ((lead_BC == left_B1) & (leader_B1 < classes_C))
        else:
            safe_BC = lead_BC > left_B1 + _SLACK * total
        everyone_B = (self.choices_BE >= 0).all(axis=1)
        settled_B: NDArray[np.bool_] = (safe_BC | (classes_C == leader_B1)).all(axis=1)
        return settled_B | everyone_B

    def probabilities(self) -> Floats:
        """The bag's probabilities ``(B, C)`` by those who were asked."""
        probs_BC: Floats = self.mass_BC / self.seen_B[:, None]
        if self.rule.temperature == 1.0:
            return probs_BC
        logs_BC = np.log(np.maximum(probs_BC, SMALLEST_PROBABILITY)) / self.rule.temperature
        cooled_BC: Floats = np.exp(log_softmax(logs_BC))
        return cooled_BC

    def finished(self, stops: Sequence[Stop]) -> NDArray[np.bool_]:
        """Examples about which nobody else need be asked."""
        decided_B = self.decided()
        confidence_B = self.probabilities().max(axis=1)
        return np.array(
            [
                (bool(decided) and stop.decided)
                or (stop.confidence is not None and bool(confidence >= stop.confidence))
                for stop, decided, confidence in zip(stops, decided_B, confidence_B, strict=True)
            ],
            dtype=np.bool_,
        )

    def answers(self) -> Answers:
        """What is known now."""
        probs_BC = self.probabilities()
        mean_BC = self.mean_BC / self.seen_B[:, None]
        information_B = _entropy(mean_BC) - self.member_entropy_B / self.seen_B
        return Answers(
            labels_B=self.mass_BC.argmax(axis=1),
            probs_BC=probs_BC,
            votes_BC=self.votes_BC,
            # Neither is negative but for rounding, the second by Jensen's inequality.
            entropy_B=np.maximum(_entropy(probs_BC), 0.0),
            information_B=np.maximum(information_B, 0.0),
            used_B=(self.choices_BE >= 0).sum(axis=1),
            choices_BE=self.choices_BE,
            member_probs_BEC=self.member_probs_BEC,
        )


def count_choices(
    choices_BE: NDArray[np.int64], num_classes: int, weights_E: Floats | None = None
) -> NDArray[Any]:
    """What each class gets of those who chose it, ``(B, C)``: float64 weights, or a count."""
    count = len(choices_BE)
    cells_BE = choices_BE + num_classes * np.arange(count)[:, None] if count > 1 else choices_BE
    shares = None if weights_E is None else np.tile(weights_E, count)
    counted = np.bincount(cells_BE.ravel(), shares, minlength=count * num_classes)
    return counted.reshape(count, num_classes)


def _entropy(probs_BC: Floats) -> Floats:
    entropy_B: Floats = -np.sum(
        probs_BC * np.log(np.maximum(probs_BC, SMALLEST_PROBABILITY)), axis=1
    )
    return entropy_B


def log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Of the last dimension."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logs: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs
