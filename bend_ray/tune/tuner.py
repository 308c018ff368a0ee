"""What Ray Tune is given: searchers and schedulers from the specs of ``space``, and room.

A trial itself holds nothing: it waits for its stages' processes. As many run at once as the cluster
can give the hungriest stage of every one of them, and each takes no more than its share, so no
trial waits for what another holds while it waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler, TPESampler
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from bend_ray.config.graph import STAGES
from bend_ray.config.resources import ActorResources, Resources, TrainResources
from bend_ray.config.schema import PipelineConfig
from bend_ray.runtime import capacity
from bend_ray.runtime.capacity import SPARE_CPUS
from bend_ray.tune.space import Asha, Choices, Grid, Range, Tpe, TuneSection, encode, values_of
from bend_ray.tune.trial import OBJECTIVE, PROGRESS


class PruningOptunaSearch(OptunaSearch):  # type: ignore[misc]
    """Ray's, that tells Optuna which trials were stopped.

    Ray's own takes the last milestone's value for the trial's. A small bag of a generator that is
    half trained may be the better one, and the search would stay with what is always stopped
    (measured: 9 of 16 trials that it chose). Optuna ranks pruned trials after the others, by how
    far they came.
    """

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """As Ray's, without a value where the trial did not come to its end."""
        stopped = result is not None and result.get(PROGRESS, 100.0) < 100.0
        super().on_trial_complete(trial_id, None if stopped else result, error)


def searcher_of(section: TuneSection, first: dict[str, Any] | None, room: int) -> Any:
    """The searcher.

    It tries ``first``, an encoded point, before all others. Of a grid Tune itself would run all
    trials at once; there is ``room`` for so many.
    """
    searcher = section.searcher
    if isinstance(searcher, Grid):
        return BasicVariantGenerator(max_concurrent=room)
    sampler = (
        TPESampler(seed=searcher.seed, n_startup_trials=searcher.random_trials)
        if isinstance(searcher, Tpe)
        else RandomSampler(seed=searcher.seed)
    )
    return PruningOptunaSearch(
        {path: _distribution(domain) for path, domain in section.knobs.items()},
        OBJECTIVE,
        "min",
        points_to_evaluate=None if first is None else [first],
        sampler=sampler,
    )


def grid_of(section: TuneSection) -> dict[str, Any]:
    """Ray Tune's space of a grid; a searcher of Optuna's has its own."""
    if not isinstance(section.searcher, Grid):
        return {}
    return {
        path: tune.grid_search([encode(value) for value in values_of(domain)])
        for path, domain in section.knobs.items()
    }


def _distribution(domain: Range | Choices) -> BaseDistribution:
    if not isinstance(domain, Range):
        return CategoricalDistribution([encode(value) for value in domain])
    high = domain.high if domain.step is None else domain.values()[-1]
    if domain.whole:
        return IntDistribution(int(domain.low), int(high), domain.log, int(domain.step or 1))
    return FloatDistribution(domain.low, high, domain.log, domain.step)


def scheduler_of(section: TuneSection) -> Any:
    """The scheduler, in percent of the generator's training."""
    if not isinstance(section.scheduler, Asha):
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=PROGRESS,
        # A rung must not lie above the milestone it is meant for by a rounding error.
        grace_period=100.0 * section.scheduler.first * (1 - 1e-9),
        max_t=100.0,
        reduction_factor=section.scheduler.reduction,
    )


DATA_CPUS = 1
"""What Ray Data must be left on a cluster that was joined, or it waits for ever."""


@dataclass(frozen=True)
class Processors:
    """CPUs and GPUs that stages may have."""

    cpus: float
    gpus: float

    @classmethod
    def usable(cls, cpus: float, gpus: float, own: bool) -> Processors:
        """Of a cluster's; ``own``: ``connect`` started it, with more CPUs than cores."""
        return cls(max(1.0, cpus - (SPARE_CPUS if own else DATA_CPUS)), gpus)

    @classmethod
    def of_cluster(cls, own: bool) -> Processors:
        """Of the connected one's, free or not."""
        have = [node.resources for node in capacity.nodes()]
        cpus, gpus = (sum(each.get(kind, 0.0) for each in have) for kind in ("CPU", "GPU"))
        return cls.usable(cpus, gpus, own)

    def over(self, cpus: float, gpus: float) -> int:
        """How many processes of so much fit, at least one."""
        most = int(self.cpus // cpus)
        return max(1, min(most, int(self.gpus // gpus)) if gpus else most)


def room_for(config: PipelineConfig, have: Processors) -> int:
    """Trials at once that there is room for, at least one."""
    needs = [capacity.Request.of(config, stage) for stage in STAGES]
    cpus = max(need.processes * need.resources.cpus for need in needs)
    gpus = max(need.processes * need.resources.num_gpus for need in needs)
    return have.over(cpus, gpus)


def share_of(config: PipelineConfig, have: Processors, trials: int) -> PipelineConfig:
    """The config with every stage held to one trial's share of it all; no result changes."""
    share = Processors(have.cpus / trials, have.gpus / trials)
    asked = {stage: getattr(config, stage).resources for stage in STAGES}
    return config.with_resources(
        {stage: _held(each, share.over(each.cpus, each.num_gpus)) for stage, each in asked.items()}
    )


def _held(resources: Resources, most: int) -> Resources:
    if isinstance(resources, ActorResources):
        return resources.model_copy(update={"workers": min(resources.workers or most, most)})
    if isinstance(resources, TrainResources) and isinstance(resources.workers, tuple):
        least, asked = resources.workers
        return resources.model_copy(update={"workers": (least, max(least, min(asked, most)))})
    return resources
