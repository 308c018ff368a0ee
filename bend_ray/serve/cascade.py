"""A student before its bag: who is sure answers alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bend_ray.errors import DataError
from bend_ray.serve.bag import Bag
from bend_ray.serve.queries import Answers, Inputs
from bend_ray.serve.voting import Stop


class Cascade(Bag):
    """A bag whose student is asked first, and the bag where that is unsure.

    Where the student answers no member is asked: ``member_labels`` are -1 then, and no member used.

    Args:
        student: as ``bend distill`` writes it.
        bag: which it learnt from.
        below: probability of the student's label under which the bag is asked.
    """

    def __init__(self, student: Bag, bag: Bag, below: float) -> None:
        theirs, own = student.card, bag.card
        if not own.task.has_classes:
            raise DataError(f"student: expected a bag of classes, got one of a {own.task.kind}")
        if (theirs.takes, theirs.class_names) != (own.takes, own.class_names):
            raise DataError(
                f"{student.folder}: expected a student of bag {own.model_version}, got one of "
                f"other inputs or classes, {theirs.model_version}"
            )
        super().__init__(bag.folder, own, bag.way, bag.groups, bag.whole)
        self.student, self.below = student, below
        self.is_quick = bag.is_quick and student.is_quick

    def answer(self, inputs: Inputs, stops: Sequence[Stop]) -> Answers:
        """What the student says, or the bag."""
        first = self.student.answer(inputs, [Stop()] * len(stops))
        everyone_B = np.array([stop.everyone for stop in stops], dtype=bool)
        rows_B = np.flatnonzero((first["probabilities"].max(axis=1) < self.below) | everyone_B)
        found = {name: values.copy() for name, values in first.items()}
        # The student is no member.
        found |= self.unasked(len(stops)) | {n: 0 * first[n] for n in ("votes", "members_used")}
        if len(rows_B):
            asked = {name: values[rows_B] for name, values in inputs.items()}
            said = super().answer(asked, [stops[row] for row in rows_B.tolist()])
            for name, values in said.items():
                found[name][rows_B] = values
        return found
