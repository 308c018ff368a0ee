"""One trial: the stages of one config that nobody has made yet, scored on validation images.

Ray Tune's own process of a trial holds no CPU, computes nothing and imports no torch; workers that
are there for all trials run the stages as ``bend run`` would. Ray Train refuses to be called from
Tune's process, and what that starts would be confined to its placement group; a worker is free of
both, and its stages take their own CPUs from the cluster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ray import tune

from bend_ray.artifacts.store import Store
from bend_ray.config import PipelineConfig
from bend_ray.config_file import with_knobs
from bend_ray.errors import BendError
from bend_ray.filesystems import cause
from bend_ray.plan import Plan, plan
from bend_ray.stages.pool import get
from bend_ray.tune.job import Job
from bend_ray.tune.objectives import Bag
from bend_ray.tune.records import (
    BagRecord,
    Milestone,
    StageRecord,
    TrialRecord,
    best_of,
    write_record,
)
from bend_ray.tune.space import TuneSection, trial_config

OBJECTIVE = "objective"
PROGRESS = "percent"
"""Of the generator's training; a trial that is at its end reports 100."""

FAILED = 1000.0
"""The objective of a trial that failed: above any bag's, as an NLL is at most 87.4 nats."""

_BEFORE_GENERATOR = ("seeds", "autoencoder", "latents")
_BAG_STAGES = (*_BEFORE_GENERATOR, "generator", "samples")


def run_trial(point: dict[str, Any], job: Job) -> None:
    """Ray Tune's function: run a trial, report it and keep its record."""
    name = tune.get_context().get_trial_id()
    record = TrialRecord(name=name, point=job.section.decoded(point))
    write_record(job.study, record)
    steps = _steps(record, job)
    try:
        for record, bag in steps:
            write_record(job.study, record)
            if bag is not None:
                tune.report(_metrics(record, bag))
    except BendError as error:
        # Not raised: Tune would try again what fails again, and its searcher learn nothing of it.
        write_record(job.study, record.with_(status="failed", error=cause(error)))
        tune.report({PROGRESS: 100.0, OBJECTIVE: FAILED})


def _steps(record: TrialRecord, job: Job) -> Iterator[tuple[TrialRecord, BagRecord | None]]:
    """The record at every step; at milestones and at the end with the best bag so far."""
    section = job.section
    config = trial_config(job.config, section, record.point)
    found = plan(config, Store(job.store_uri))

    def with_stage(record: TrialRecord, stage: str) -> TrialRecord:
        made = _ask(job, "make", stage, config)
        told = StageRecord(stage=stage, fingerprint=found[stage].fingerprint, made=made)
        return record.with_(stages=[*record.stages, told])

    for stage in _BEFORE_GENERATOR:
        record = with_stage(record, stage)
        yield record, None
    sizes = _milestone_sizes(section)
    # The config as it was given is what all others are held against: it is not stopped.
    is_base = with_knobs(job.config, record.point) == job.config
    for share in [] if is_base else section.scheduler.milestones:
        # Another trial may have trained the same generator, to its end or past the milestone.
        curve = None
        if not found.generator.exists():
            step = max(1, round(share * config.generator.training.steps))
            curve = _ask(job, "milestone", config, step, sizes)
        if curve is not None:
            bag = best_of(_bags(config, found, curve, section))
            passed = Milestone(share=share, nll=bag.nll, accuracy=bag.accuracy)
            record = record.with_(milestones=[*record.milestones, passed])
            yield record, bag
    for stage in ("generator", "samples"):
        record = with_stage(record, stage)
        yield record, None
    curve = _ask(job, "bags", config, list(section.ensemble_counts))
    bags = _bags(config, found, curve, section)
    yield record.with_(status="done", bags=bags), best_of(bags)


def _milestone_sizes(section: TuneSection) -> list[int]:
    most = getattr(section.scheduler, "members", 1)
    return [size for size in section.ensemble_counts if size <= most] or [
        section.ensemble_counts[0]
    ]


def _bags(
    config: PipelineConfig, found: Plan, curve: dict[str, Any], section: TuneSection
) -> list[BagRecord]:
    """The bags of a ``BagCurve``, with what they cost as far as stages are committed."""
    costs = {
        stage: found[stage].manifest().cost.seconds
        for stage in _BAG_STAGES
        if found[stage].exists()
    }
    drawing = costs.pop("samples", 0.0)
    fixed = sum(costs.values())
    told = []
    for size, nll, accuracy in zip(curve["sizes"], curve["nll"], curve["accuracy"], strict=True):
        # To choose among all that were drawn, all must be.
        share = size / config.samples.count if config.evaluation.bagging.kind == "all" else 1.0
        bag = Bag(size, nll, accuracy, fixed + drawing * share, size * curve["member_flops"])
        told.append(BagRecord(**asdict(bag), objective=section.objective.of(bag)))
    return told


def _metrics(record: TrialRecord, best: BagRecord) -> dict[str, float]:
    """What Tune's scheduler, its searcher and TensorBoard are told."""
    done = record.status == "done"
    return {
        PROGRESS: 100.0 if done else 100.0 * record.milestones[-1].share,
        OBJECTIVE: best.objective,
        "validation_nll": best.nll,
        "validation_accuracy": best.accuracy,
        "members": best.size,
        "cost_seconds": best.cost_seconds,
        "megaflops": best.flops / 1e6,
    }


def _ask(job: Job, method: str, *arguments: Any) -> Any:
    """Have a worker do something, an idle one if there is one.

    Two trials may take the same for idle: then one waits for the other, and nothing is lost.
    """
    busy = get([worker.is_busy.remote() for worker in job.workers])
    worker = job.workers[busy.index(min(busy))]
    return get(getattr(worker, method).remote(*arguments))
