"""The live table: one on a terminal's stderr, rewritten in place; elsewhere a line a trial."""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from typing import Any

import rich.box
from ray.tune import Callback
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bend_ray.config.yaml_text import flow
from bend_ray.errors import StoreError
from bend_ray.process.log import LOGGER, duration
from bend_ray.report.results import Row
from bend_ray.tune.records import BagRecord
from bend_ray.tune.space import TuneSection
from bend_ray.tune.table import SCORES, score_cells
from bend_ray.tune.trial import FAILED, OBJECTIVE, PROBLEM, PROGRESS

_STATES = {"PENDING": "waiting", "RUNNING": "running", "TERMINATED": "done", "ERROR": "failed"}


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
        if self._display is not None:
            self._display.update(self._table(trials), refresh=True)
            return
        ended = [trial for trial in trials if _has_ended(trial)]
        for trial in ended:
            if trial.trial_id not in self._shown:
                self._shown.add(trial.trial_id)
                told = self._line(trials.index(trial), trial)
                LOGGER.info("tune         %d/%d  %s", len(ended), self.section.trials, told)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Take the table away: the result is printed."""
        if self._display is not None:
            self._display.stop()
            self._display = None

    def _line(self, number: int, trial: Any) -> str:
        told, *cells = (f"{name} {cell}" for name, cell in self._row(number, trial).items() if cell)
        return ", ".join([told, cells.pop().removeprefix("state "), *cells])

    def _table(self, trials: Sequence[Any]) -> Table:
        ended = [trial for trial in trials if _has_ended(trial)]
        whole = [trial for trial in ended if _objective(trial) < FAILED]
        best = min(whole, key=_objective, default=None)
        shown_best = "" if best is None else f", best {_objective(best):.4f}"
        took = duration(time.monotonic() - self._since)
        table = Table(
            title=f"tune {len(ended)}/{self.section.trials} trials{shown_best}, {took}",
            box=rich.box.SIMPLE,
            title_justify="left",
        )
        rows = [self._row(number, trial) for number, trial in enumerate(trials)]
        knobs = self.section.names.values()
        for name in rows[0] if rows else ():
            table.add_column(name, justify="left" if name in knobs else "right")
        for row, trial in zip(rows, trials, strict=True):
            table.add_row(*row.values(), style="bold" if trial is best else "")
        return table

    def _row(self, number: int, trial: Any) -> Row:
        point, names = self.section.decoded(trial.config), self.section.names
        knobs = {names[path]: flow(value) for path, value in point.items()}
        return {"trial": str(number), **knobs, **_scores(trial), "state": _state(trial)}


def _has_ended(trial: Any) -> bool:
    return trial.status in ("TERMINATED", "ERROR")


def _state(trial: Any) -> str:
    result = trial.last_result or {}
    state: str = _STATES.get(trial.status, trial.status.lower())
    if result.get(OBJECTIVE) == FAILED:
        return "failed"
    if result.get(PROGRESS, 100.0) < 100.0:
        return f"{'stopped at' if state == 'done' else state} {result[PROGRESS]:.0f} %"
    return state


def _scores(trial: Any) -> Row:
    """Of its best bag so far; empty where there is none."""
    result = trial.last_result or {}
    if "nll" not in result:
        return dict.fromkeys(SCORES, "")
    return score_cells(BagRecord(**{name: result[name] for name in BagRecord.model_fields}))


def _objective(trial: Any) -> float:
    """Of a trial that came to its end; of others no less than a failure's."""
    result = trial.last_result or {}
    whole = result.get(PROGRESS) == 100.0 and trial.status == "TERMINATED"
    return float(result[OBJECTIVE]) if whole else FAILED
