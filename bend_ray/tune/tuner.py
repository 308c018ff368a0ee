"""What Ray Tune is given: searchers and schedulers from the specs of ``space``, room, and a table.

The table is one on a terminal's stderr, rewritten in place; elsewhere it is a line a trial.

A trial itself holds nothing: it waits for its stages' processes. As many run at once as the cluster
can give the hungriest stage of every one of them, and each takes no more than its share, so no
trial waits for what another holds while it waits.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rich.box
from optuna import distributions
from optuna.samplers import RandomSampler, TPESampler
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bend_ray.config.graph import STAGES
from bend_ray.config.resources import ActorResources, Resources, TrainResources
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import StoreError
from bend_ray.process.log import LOGGER, duration
from bend_ray.runtime import nodes
from bend_ray.runtime.nodes import SPARE_CPUS
from bend_ray.tune.records import TrialRecord, told
from bend_ray.tune.space import Asha, Choices, Grid, Range, Tpe, TuneSection, encode, values_of
from bend_ray.tune.trial import OBJECTIVE, PROBLEM, PROGRESS

_ENDED = ("done", "stopped", "failed")


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


def _distribution(domain: Range | Choices) -> distributions.BaseDistribution:
    if not isinstance(domain, Range):
        return distributions.CategoricalDistribution([encode(value) for value in domain])
    high = domain.high if domain.step is None else domain.values()[-1]
    if domain.whole:
        return distributions.IntDistribution(
            int(domain.low), int(high), domain.log, int(domain.step or 1)
        )
    return distributions.FloatDistribution(domain.low, high, domain.log, domain.step)


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
        have = [node.resources for node in nodes.nodes()]
        cpus, gpus = (sum(each.get(kind, 0.0) for each in have) for kind in ("CPU", "GPU"))
        return cls.usable(cpus, gpus, own)

    def over(self, cpus: float, gpus: float) -> int:
        """How many processes of so much fit, at least one."""
        most = int(self.cpus // cpus)
        return max(1, min(most, int(self.gpus // gpus)) if gpus else most)


def room_for(config: PipelineConfig, have: Processors) -> int:
    """Trials at once that there is room for, at least one."""
    needs = [nodes.Request.of(config, stage) for stage in STAGES]
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


class TrialTable(Callback):  # type: ignore[misc]
    """Shows the trials of a search as Ray Tune tells of them."""

    def __init__(self, section: TuneSection) -> None:
        self.section = section
        self._display: Live | None = None
        self._since = time.monotonic()
        self._shown: set[str] = set()
        self._problem: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its callbacks; a display belongs to one process.
        return TrialTable, (self.section,)

    def setup(self, **info: Any) -> None:
        """Show the table, where there is a terminal."""
        console = Console(stderr=True)
        if console.is_terminal:
            self._display = Live(console=console, auto_refresh=False, transient=True)
            self._display.start()
            # However the search ends, the terminal gets its cursor back.
            atexit.register(self._display.stop)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note why a trial could not be run; what is raised here, Tune takes for the trial's."""
        self._problem = result.get(PROBLEM)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Show what changed; StoreError of a trial that could not be run ends the search."""
        if self._problem is not None:
            raise StoreError(f"{self._problem}; what trials have made is kept: run again")
        records = [self._record(number, trial) for number, trial in enumerate(trials)]
        if self._display is not None:
            self._display.update(self._table(records), refresh=True)
            return
        ended = [record for record in records if record.status in _ENDED]
        for record in ended:
            if record.name not in self._shown:
                self._shown.add(record.name)
                LOGGER.info(
                    "tune         %d/%d  %s", len(ended), self.section.trials, self._line(record)
                )

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Take the table away: the result is printed."""
        if self._display is not None:
            self._display.stop()
            self._display = None

    def _record(self, number: int, trial: Any) -> TrialRecord:
        error = "an error" if trial.status == "ERROR" else None
        has_ended = trial.status in ("TERMINATED", "ERROR")
        record = told(trial.trial_id, trial.last_result, has_ended, error)
        status = "waiting" if trial.status == "PENDING" else record.status
        point = self.section.decoded(trial.config)
        return record.model_copy(update={"number": number, "point": point, "status": status})

    def _line(self, record: TrialRecord) -> str:
        row = record.row(self.section.names)
        first, *cells = (f"{name} {cell}" for name, cell in row.items() if cell != "-")
        return ", ".join([first, cells.pop().removeprefix("state "), *cells])

    def _table(self, records: Sequence[TrialRecord]) -> Table:
        ended = sum(record.status in _ENDED for record in records)
        done = [record for record in records if record.status == "done"]
        best = min(done, key=lambda record: record.best.objective, default=None)
        shown_best = "" if best is None else f", best {best.best.objective:.4f}"
        took = duration(time.monotonic() - self._since)
        table = Table(
            title=f"tune {ended}/{self.section.trials} trials{shown_best}, {took}",
            box=rich.box.SIMPLE,
            title_justify="left",
        )
        names = self.section.names
        rows = [record.row(names) for record in records]
        for name in rows[0] if rows else ():
            table.add_column(name, justify="left" if name in names.values() else "right")
        for row, record in zip(rows, records, strict=True):
            table.add_row(*row.values(), style="bold" if record is best else "")
        return table
