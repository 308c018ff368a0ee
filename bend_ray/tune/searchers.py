"""Ray Tune's searchers and schedulers, from the specs of ``space``."""

from __future__ import annotations

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
