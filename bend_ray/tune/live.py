"""The live table: one on a terminal's stderr, rewritten in place; elsewhere a line a trial."""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from typing import Any

import rich.box
from ray.tune import Callback
from rich.console import Console
from rich.live import Live as RichLive
from rich.table import Table

from bend_ray.config.yaml_text import flow
from bend_ray.errors import StoreError
from bend_ray.process.log import LOGGER, duration
from bend_ray.tune.space import TuneSection
from bend_ray.tune.trial import FAILED, OBJECTIVE, PROBLEM, PROGRESS

_STATES = {"PENDING": "waiting", "RUNNING": "running", "TERMINATED": "done", "ERROR": "failed"}
_SCORES = {"NLL": "NLL {}", "accuracy": "{}", "members": "{} members", "cost": "{}"}
"""Columns of the table, and how a line tells of them."""


class TrialTable(Callback):  # type: ignore[misc]
    """Shows trials as Ray Tune tells of them.

    Args:
        section: of the search.
    """

    def __init__(self, section: TuneSection) -> None:
        self.section = section
        self._display: RichLive | None = None
        self._since = time.monotonic()
        self._shown: set[str] = set()
        self._problem: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks; a display belongs to one process.
        return {"section": self.section}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["section"])  # type: ignore[misc]

    def setup(self, **info: Any) -> None:
        """Show the table, where there is a terminal."""
        console = Console(stderr=True)
        if console.is_terminal:
            self._display = RichLive(console=console, auto_refresh=False, transient=True)
            self._display.start()
            # However the search ends, the terminal gets its cursor back.
            atexit.register(self._display.stop)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note why a trial could not be run; what is raised here, Tune takes for the trial's."""
        self._problem = result.get(PROBLEM)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Show what changed.

        Raises:
            StoreError: of a trial that could not be run, which ends the search.
        """
        if self._problem is not None:
            raise StoreError(f"{self._problem}; what trials have made is kept: run again")
        if self._display is not None:
            self._display.update(self._table(trials), refresh=True)
            return
        for trial in trials:
            if trial.status in ("TERMINATED", "ERROR") and trial.trial_id not in self._shown:
                self._shown.add(trial.trial_id)
                LOGGER.info("tune         %s", self._line(trials.index(trial), trials))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Take the table away: the result is printed."""
        if self._display is not None:
            self._display.stop()
            self._display = None

    def _line(self, number: int, trials: Sequence[Any]) -> str:
        ended = sum(each.status in ("TERMINATED", "ERROR") for each in trials)
        trial = trials[number]
        knobs = zip(self.section.names.values(), self._knobs(trial), strict=True)
        scores = [
            text.format(score)
            for text, score in zip(_SCORES.values(), _scores(trial), strict=True)
            if score
        ]
        parts = [f"trial {number}", _state(trial), *scores, *(f"{n} {v}" for n, v in knobs)]
        return f"{ended}/{self.section.trials}  {', '.join(parts)}"

    def _table(self, trials: Sequence[Any]) -> Table:
        ended = [trial for trial in trials if trial.status in ("TERMINATED", "ERROR")]
        best = min((t.last_result[OBJECTIVE] for t in ended if _is_whole(t)), default=None)
        shown_best = "" if best is None else f", best {best:.4f}"
        took = duration(time.monotonic() - self._since)
        table = Table(
            title=f"tune {len(ended)}/{self.section.trials} trials{shown_best}, {took}",
            box=rich.box.SIMPLE,
            title_justify="left",
        )
        table.add_column("trial", justify="right")
        for name in self.section.names.values():
            table.add_column(name)
        for name in ("state", *_SCORES):
            table.add_column(name, justify="right")
        for number, trial in enumerate(trials):
            is_best = best is not None and _is_whole(trial) and trial.last_result[OBJECTIVE] == best
            cells = [str(number), *self._knobs(trial), _state(trial), *_scores(trial)]
            table.add_row(*cells, style="bold" if is_best else "")
        return table

    def _knobs(self, trial: Any) -> list[str]:
        return [flow(value) for value in self.section.decoded(trial.config).values()]


def _state(trial: Any) -> str:
    result = trial.last_result or {}
    state: str = _STATES.get(trial.status, trial.status.lower())
    if result.get(OBJECTIVE) == FAILED:
        return "failed"
    if result.get(PROGRESS, 100.0) < 100.0:
        return f"{'stopped at' if state == 'done' else state} {result[PROGRESS]:.0f} %"
    return state


def _scores(trial: Any) -> list[str]:
    """NLL, accuracy, members and cost of its best bag so far; empty where there is none."""
    result = trial.last_result or {}
    if "validation_nll" not in result:
        return [""] * len(_SCORES)
    return [
        f"{result['validation_nll']:.4f}",
        f"{100 * result['validation_accuracy']:.2f} %",
        f"{result['members']:.0f}",
        f"{result['cost_seconds']:.1f} s",
    ]


def _is_whole(trial: Any) -> bool:
    result = trial.last_result or {}
    whole = result.get(PROGRESS) == 100.0 and result[OBJECTIVE] != FAILED
    return bool(whole and trial.status == "TERMINATED")
