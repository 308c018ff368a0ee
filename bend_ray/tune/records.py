"""Records: what is kept of a trial and of a study, as JSON that outlives both.

A trial tells Ray Tune its record at every milestone and at its end; Tune keeps what it is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from bend_ray.artifacts.cost import Cost
from bend_ray.config.yaml_text import flow
from bend_ray.report.results import Row
from bend_ray.spec import Record

RECORD = "record"
"""What Ray Tune is told a trial's record as, in JSON."""
SCORES = ("validation NLL", "accuracy %", "members", "cost s", "MFLOP an answer")


class StageRecord(Record):
    """A stage a trial needed, what it cost, and whether the trial made it or found it."""

    stage: str
    fingerprint: str
    made: bool
    cost: Cost


class BagRecord(Record):
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

    @property
    def cells(self) -> Row:
        """Its ``SCORES``."""
        scores = (f"{self.nll:.4f}", f"{100 * self.accuracy:.2f}", str(self.size))
        cost = (f"{self.cost_seconds:.1f}", f"{self.flops / 1e6:.3g}")
        return dict(zip(SCORES, (*scores, *cost), strict=True))


class Milestone(Record):
    """Bags of the generator so far, after a share of its training."""

    share: float
    bags: list[BagRecord]


class TrialRecord(Record):
    """A trial.

    Attributes:
        name: Ray Tune's.
        number: in the order in which trials began, from 0; known when all have ended.
        point: value by config path.
        status: done; stopped by the scheduler; failed; running; or waiting for room.
        error: why it failed.
        milestones: as far as it came, like ``stages``.
        bags: by size, of a trial that is done.
    """

    name: str
    number: int = -1
    point: dict[str, Any]
    status: Literal["waiting", "running", "done", "stopped", "failed"] = "running"
    error: str | None = None
    milestones: list[Milestone] = Field(default_factory=list)
    stages: list[StageRecord] = Field(default_factory=list)
    bags: list[BagRecord] = Field(default_factory=list)

    @property
    def best(self) -> BagRecord:
        """Of the bags of a trial that is done, or of its last milestone, the lowest objective.

        The smallest of equals.
        """
        bags = self.bags or self.milestones[-1].bags
        return min(bags, key=lambda bag: (bag.objective, bag.size))

    def row(self, names: Mapping[str, str]) -> Row:
        """In a table whose knobs have these names, by path: knobs, scores and state."""
        # A trial whose process died before it told anything has no point.
        knobs = {n: flow(self.point[path]) if self.point else "-" for path, n in names.items()}
        scores, state = dict.fromkeys(SCORES, "-"), str(self.status)
        if self.bags or self.milestones:
            scores = self.best.cells
        if self.milestones and self.status in ("running", "stopped"):
            at = "stopped at" if self.status == "stopped" else "running"
            state = f"{at} {100 * self.milestones[-1].share:.0f} %"
        return {"trial": str(self.number), **knobs, **scores, "state": state}


def told(
    name: str, result: Mapping[str, Any] | None, has_ended: bool, error: str | None
) -> TrialRecord:
    """What a trial of Ray Tune's has told it last, which thinks that it ended, or failed so."""
    text = (result or {}).get(RECORD)
    record = TrialRecord.model_validate_json(text) if text else TrialRecord(name=name, point={})
    if record.status != "running" or not has_ended:
        return record
    # A process that died could not say why, nor one that was stopped that it was.
    return record.model_copy(update={"status": "failed" if error else "stopped", "error": error})
