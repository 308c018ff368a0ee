"""Records: what is kept of a trial and of a study, as JSON that outlives both.

A trial writes its record itself, at every step, so that a killed driver loses none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.directory import Directory
from bend_ray.storage.masking import cause

TRIALS = "trials"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Milestone(_Record):
    """A bag of the generator so far: the share of its training, and the bag's validation scores."""

    share: float
    nll: float
    accuracy: float


class StageRecord(_Record):
    """A stage a trial needed, what it cost, and whether the trial made it or found it."""

    stage: str
    fingerprint: str
    made: bool
    cost: Cost


class BagRecord(_Record):
    """One bag of a trial, and what it costs.

    Scores are of validation images: nats, and a fraction of 1. ``cost_seconds`` is of all of it
    from scratch, on the GPU where one was used; ``flops`` of its answer to one image, each member
    whole. The search minimises ``objective``.
    """

    size: int
    nll: float
    accuracy: float
    cost_seconds: float
    flops: int
    objective: float = math.nan


class TrialRecord(_Record):
    """A trial.

    Attributes:
        name: Ray Tune's.
        number: in the order in which trials began, from 0; known when all have ended.
        point: value by config path.
        status: done; stopped by the scheduler; failed; running, where it was cut off.
        error: why it failed.
        milestones: as far as it came, like ``stages``.
        bags: by size, of a trial that is done.
    """

    name: str
    number: int = -1
    point: dict[str, Any]
    status: Literal["running", "done", "stopped", "failed"] = "running"
    error: str | None = None
    milestones: list[Milestone] = []
    stages: list[StageRecord] = []
    bags: list[BagRecord] = []

    @property
    def best(self) -> BagRecord:
        """Of the bags of a trial that is done."""
        return best_of(self.bags)

    def with_(self, **changes: Any) -> TrialRecord:
        """The record, changed."""
        return self.model_copy(update=changes)


def best_of(bags: Sequence[BagRecord]) -> BagRecord:
    """The bag of the lowest objective, the smallest of equals."""
    return min(bags, key=lambda bag: (bag.objective, bag.size))


def write_record(study: Directory, record: TrialRecord) -> None:
    """Keep a trial's record."""
    study.write_note(f"{TRIALS}/{record.name}.json", record.model_dump())


def read_record(study: Directory, name: str) -> TrialRecord | None:
    """A trial's record, None where there is none; CorruptArtifact where it is no record."""
    file = f"{TRIALS}/{name}.json"
    if file not in study.list_files(TRIALS):
        return None
    try:
        return TrialRecord.model_validate(study.read_json(file))
    except ValidationError as error:
        raise study.corrupt(file, f"expected a trial's record, got: {cause(error)}") from None
