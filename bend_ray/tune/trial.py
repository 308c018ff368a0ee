"""One trial: the stages of one config that nobody has made yet, scored on validation images.

Ray Tune's own process of a trial holds no CPU and computes nothing; a worker beside it runs the
stages as ``bend run`` would, and is kept from trial to trial. Ray Train refuses to be called from
Tune's process, and what that starts would be confined to its placement group; a worker is free of
both, and its stages take their own CPUs from the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray import tune

from bend_ray import pipeline
from bend_ray.artifacts.lease import lease
from bend_ray.artifacts.store import Artifact
from bend_ray.config.graph import Graph, graph_of
from bend_ray.config.reading import with_knobs
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import BendError, StoreError
from bend_ray.process.log import LOGGER
from bend_ray.runtime import cluster
from bend_ray.runtime.interface import Shared
from bend_ray.runtime.on_ray import RayRuntime, get
from bend_ray.stages import generator
from bend_ray.stages.scoring import BagCurve, bag_curve
from bend_ray.storage.masking import cause
from bend_ray.tune.records import RECORD, BagRecord, Milestone, StageRecord, TrialRecord
from bend_ray.tune.space import TuneSection, trial_config

OBJECTIVE = "objective"
"""Of the best bag, whose whole record Ray Tune is told."""
PROGRESS = "percent"
"""Of the generator's training; a trial that is at its end reports 100."""

PROBLEM = "problem"
"""Why a trial could not be run, where that is no fault of its point."""

FAILED = 1000.0
"""The objective of a trial that failed: above any bag's, as an NLL is at most 87.4 nats."""


@dataclass(frozen=True)
class Assignment:
    """What every trial of a study is told.

    Trials set knobs of ``config``, whose resources are one trial's share of the cluster.
    ``dataset`` is the config's, shared by the driver, who has started the cluster where it is its
    own.
    """

    config: PipelineConfig
    section: TuneSection
    study: Artifact
    dataset: Shared
    own_cluster: bool

    def graph(self, config: PipelineConfig) -> Graph:
        """Where the stages of a trial's config are."""
        return graph_of(config, self.study.store)


class StageWorker:
    """A process that runs stages for one trial of a study after another."""

    def __init__(self, job: Assignment) -> None:
        cluster.set_up_data()
        self.runtime = RayRuntime(job.own_cluster, (job.config.dataset, job.dataset))
        self.job = job

    def make(self, stage: str, config: PipelineConfig) -> bool:
        """Make a stage's artifact; whether this call made it."""
        return pipeline.make_stage(stage, config, self.job.graph(config), self.runtime)

    def milestone(self, config: PipelineConfig, step: int, sizes: list[int]) -> BagCurve | None:
        """Train the generator to a step, and what its bags are worth then.

        None where it is trained further already.
        """
        found = self.job.graph(config)
        # Held until the bag is scored: whoever commits the generator removes the milestones.
        with lease(found.generator, LOGGER.info) as mine:
            weights = generator.train_until(found, self.runtime, step) if mine else None
            if weights is None:
                return None
            return bag_curve(found, self.runtime, sizes, weights)

    def bags(self, config: PipelineConfig, sizes: list[int]) -> BagCurve:
        """What bags of the samples are worth."""
        return bag_curve(self.job.graph(config), self.runtime, sizes)


def run_trial(point: dict[str, Any], job: Assignment) -> None:
    """Ray Tune's function: run a trial and report it, with its record."""
    name = tune.get_context().get_trial_id()
    record = TrialRecord(name=name, point=job.section.decoded(point))
    try:
        _run(record, job)
    except StoreError as error:
        # The next trial would meet the same: the driver ends the search, to be run again.
        tune.report({PROGRESS: 0.0, OBJECTIVE: FAILED, PROBLEM: cause(error)})
        raise
    except BendError as error:
        # Not raised: Tune would try again what fails again, and its searcher learn nothing of it.
        record = record.model_copy(update={"status": "failed", "error": cause(error)})
        tune.report({PROGRESS: 100.0, OBJECTIVE: FAILED, RECORD: record.model_dump_json()})


def _run(record: TrialRecord, job: Assignment) -> None:
    """Note every stage in the record, and report that at milestones and at the end."""
    section = job.section
    config = trial_config(job.config, section, record.point)
    found = job.graph(config)
    worker = _worker(job)

    def make(*stages: str) -> None:
        for stage in stages:
            made = get(worker.make.remote(stage, config))
            manifest = found[stage].manifest()
            told = {"fingerprint": manifest.fingerprint, "cost": manifest.cost}
            record.stages.append(StageRecord(stage=stage, made=made, **told))

    def report(record: TrialRecord, share: float) -> None:
        told = {PROGRESS: 100.0 * share, RECORD: record.model_dump_json()}
        tune.report(told | record.best.model_dump())

    make("seeds", "autoencoder", "latents")
    counts, most = section.ensemble_counts, getattr(section.scheduler, "members", 1)
    sizes = [size for size in counts if size <= most] or [counts[0]]
    # The config as it was given is what all others are held against: it is not stopped.
    is_base = with_knobs(job.config, record.point) == job.config
    for share in [] if is_base else section.scheduler.milestones:
        # Another trial may have trained the same generator, to its end or past the milestone.
        curve = None
        if not found.generator.exists():
            step = max(1, round(share * config.generator.training.steps))
            curve = get(worker.milestone.remote(config, step, sizes))
        if curve is not None:
            bags = _bags(config, record, curve, section)
            record.milestones.append(Milestone(share=share, bags=bags))
            report(record, share)
    make("generator", "samples")
    bags = _bags(config, record, get(worker.bags.remote(config, list(counts))), section)
    report(record.model_copy(update={"status": "done", "bags": bags}), 1.0)


def _bags(
    config: PipelineConfig, record: TrialRecord, curve: BagCurve, section: TuneSection
) -> list[BagRecord]:
    """The bags of a curve, with what they cost as far as the trial came."""
    drawing = sum(each.cost.seconds for each in record.stages if each.stage == "samples")
    fixed = sum(each.cost.seconds for each in record.stages if each.stage != "samples")
    bags = []
    for size, nll, accuracy in zip(curve.sizes, curve.nll, curve.accuracy, strict=True):
        # To choose among all that were drawn, all must be.
        share = size / config.samples.count if config.evaluation.bagging.kind == "all" else 1.0
        bag = BagRecord(
            size=size,
            nll=nll,
            accuracy=accuracy,
            cost_seconds=fixed + drawing * share,
            flops=size * curve.member_flops,
        )
        bags.append(bag.model_copy(update={"objective": section.objective.of(bag)}))
    return bags


SURVIVES = {"max_restarts": 5, "max_task_retries": 5}
"""Actor options: a killed worker is started again, and makes what is missing of its stage."""

_workers: dict[str, Any] = {}


def _worker(job: Assignment) -> Any:
    """This process's worker of a study; it lives as long."""
    if job.study.path not in _workers:
        stages = ray.remote(**SURVIVES)(StageWorker)
        # Not within the trial's placement group, which has no CPUs.
        options = {"num_cpus": 0, "scheduling_strategy": "DEFAULT"}
        _workers[job.study.path] = stages.options(**options).remote(job)
    return _workers[job.study.path]
