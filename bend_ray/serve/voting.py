"""When members' answers are enough: asked group after group, until more cannot matter.

Shape letters: E members, B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bend_ray.ensemble.programs import Outputs
from bend_ray.ensemble.votes import Rule

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

    @property
    def is_patient(self) -> bool:
        """Whether all members are asked."""
        return self.everyone or not (self.decided or self.confidence is not None)


def finished(rule: Rule, said: Outputs, asked_BE: Truths, stops: Sequence[Stop]) -> Truths:
    """Examples about which nobody else need be asked."""
    wanted_B = np.array([stop.decided for stop in stops])
    least_B = np.array([np.inf if s.confidence is None else s.confidence for s in stops])
    sure_B = said["probabilities"].max(axis=1) >= least_B
    ended_B: Truths = (wanted_B & decided(rule, said, asked_BE)) | sure_B
    return ended_B


def decided(rule: Rule, said: Outputs, asked_BE: Truths) -> Truths:
    """Examples whose label the members left cannot change, whatever they say.

    The most a class can still gain on the leader is the weight of all of them. Where votes are
    counted this is exact, ties included; where probabilities are averaged a sliver of the vote is
    left for rounding.
    """
    weights_BE = np.where(asked_BE, rule.sums_exactly, 0.0)
    ballots_BEC, classes_C = said["member_probabilities"], np.arange(said["votes"].shape[1])
    if rule.counts_votes:
        ballots_BEC = said["member_labels"][:, :, None] == classes_C
    mass_BC = np.einsum("be,bec->bc", weights_BE, ballots_BEC)
    total = sum(rule.sums_exactly)
    left_B1 = total - weights_BE.sum(axis=1, keepdims=True)
    leader_B1 = said["label"][:, None]
    lead_BC = np.take_along_axis(mass_BC, leader_B1, axis=1) - mass_BC
    if rule.counts_votes:
        safe_BC = (lead_BC > left_B1) | ((lead_BC == left_B1) & (leader_B1 < classes_C))
    else:
        safe_BC = lead_BC > left_B1 + _SLACK * total
    settled_B: Truths = (safe_BC | (classes_C == leader_B1)).all(axis=1) | asked_BE.all(axis=1)
    return settled_B
