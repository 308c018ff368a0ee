"""The processes that run the stages of trials: started once, each for one trial after another.

A call needs nothing of the calls before it, and holds a lease no longer than it runs: it does not
matter which worker it goes to, or that a worker is killed and started again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import ray

from bend_ray import pipeline
from bend_ray.artifacts.lease import lease
from bend_ray.artifacts.store import Store
from bend_ray.config import PipelineConfig
from bend_ray.log import LOGGER
from bend_ray.plan import Plan, plan
from bend_ray.stages import cluster, generator
from bend_ray.stages.classifiers import SharedDataset, use_shared
from bend_ray.stages.pool import SURVIVES
from bend_ray.stages.validation import bag_curve, milestone_curve
from bend_ray.tune.job import Job


@contextmanager
def stage_workers(job: Job, count: int) -> Iterator[Job]:
    """The job with so many workers; they are killed in the end."""
    stages = ray.remote(num_cpus=0, concurrency_groups={"desk": 1}, **SURVIVES)(StageWorker)
    workers = tuple(stages.remote(job) for _ in range(count))
    try:
        yield replace(job, workers=workers)
    finally:
        for worker in workers:
            ray.kill(worker)


class StageWorker:
    """A process that runs stages.

    Args:
        job: of the study.
    """

    def __init__(self, job: Job) -> None:
        cluster.settle_in(own=job.own_cluster)
        use_shared(job.config.dataset, SharedDataset(job.dataset))
        self.job = job
        self._busy = False

    @ray.method(concurrency_group="desk")  # type: ignore[untyped-decorator]
    def is_busy(self) -> bool:
        """Whether a stage is being run, answered meanwhile."""
        return self._busy

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def make(self, stage: str, config: PipelineConfig) -> bool:
        """Make a stage's artifact; whether this call made it."""
        with self._at_work():
            return pipeline.make_stage(stage, config, self._plan(config))

    def milestone(
        self, config: PipelineConfig, step: int, sizes: list[int]
    ) -> dict[str, Any] | None:
        """Train the generator to a step; a ``BagCurve`` of what it draws then, as a mapping.

        None where it is trained further already.
        """
        found = self._plan(config)
        # Held until the bag is scored: whoever commits the generator removes the milestones.
        with self._at_work(), lease(found.generator, LOGGER.info) as mine:
            weights = generator.train_until(config, found, step) if mine else None
            if weights is None:
                return None
            return asdict(milestone_curve(config, found, weights, sizes))

    def bags(self, config: PipelineConfig, sizes: list[int]) -> dict[str, Any]:
        """A ``BagCurve`` of the samples, as a mapping."""
        with self._at_work():
            return asdict(bag_curve(config, self._plan(config), sizes))

    def _plan(self, config: PipelineConfig) -> Plan:
        return plan(config, Store(self.job.store_uri))
