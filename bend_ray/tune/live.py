"""The live table: one on a terminal's stderr, rewritten in place; elsewhere a line a trial."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import rich.box
from ray.tune import Callback
from rich.console import Console
from rich.live import Live as RichLive
from rich.table import Table

from bend_ray.log import LOGGER, duration
from bend_ray.report.command import flow
from bend_ray.tune.space import TuneSection
from bend_ray.tune.trial import FAILED, OBJECTIVE, PROGRESS

_STATES = {"PENDING": "waiting", "RUNNING": "running", "TERMINATED": "done", "ERROR": "failed"}


class TrialTable(Callback):  # type: ignore[misc]
    """Shows trials as Ray Tune tells of them.

    Args:
        section: of the search.
    """

    def __init__(self, section: TuneSection) -> None:
        self.section = section
        self._display: RichLive | None = None
        self._since = time.monotonic()
        self._told: set[str] = set()

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

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Show what changed."""
        if self._display is not None:
            self._display.update(self._table(trials), refresh=True)
            return
        for trial in trials:
            if trial.status in ("TERMINATED", "ERROR") and trial.trial_id not in self._told:
                self._told.add(trial.trial_id)
                LOGGER.info("tune         %s", self._line(trials.index(trial), trials))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Take the table away: the result is printed."""
        if self._display is not None:
            self._display.stop()
            self._display = None

    def _line(self, number: int, trials: Sequence[Any]) -> str:
        ended = sum(each.status in ("TERMINATED", "ERROR") for each in trials)
        cells = [cell for cell in self._cells(trials[number]) if cell]
        return f"{ended}/{self.section.trials}  trial {number}: {'  '.join(cells)}"

    def _table(self, trials: Sequence[Any]) -> Table:
        ended = [trial for trial in trials if trial.status in ("TERMINATED", "ERROR")]
        best = min((t.last_result[OBJECTIVE] for t in ended if _is_whole(t)), default=None)
        told = "" if best is None else f", best {best:.4f}"
        took = duration(time.monotonic() - self._since)
        table = Table(
            title=f"tune {len(ended)}/{self.section.trials} trials{told}, {took}",
            box=rich.box.SIMPLE,
            title_justify="left",
        )
        table.add_column("trial", justify="right")
        for name in self.section.names.values():
            table.add_column(name)
        for name in ("state", "NLL", "accuracy", "members", "cost"):
            table.add_column(name, justify="right")
        for number, trial in enumerate(trials):
            is_best = best is not None and _is_whole(trial) and trial.last_result[OBJECTIVE] == best
            table.add_row(str(number), *self._cells(trial), style="bold" if is_best else "")
        return table

    def _cells(self, trial: Any) -> list[str]:
        """Knobs, state, and what the trial has told."""
        point = self.section.decoded(trial.config)
        told = trial.last_result or {}
        state = _STATES.get(trial.status, trial.status.lower())
        if PROGRESS in told and told[PROGRESS] < 100.0:
            stopped = "stopped at" if state == "done" else state
            state = f"{stopped} {told[PROGRESS]:.0f} %"
        if told.get(OBJECTIVE) == FAILED:
            state = "failed"
        scores = ["", "", "", ""]
        if "validation_nll" in told:
            scores = [
                f"{told['validation_nll']:.4f}",
                f"{100 * told['validation_accuracy']:.2f} %",
                f"{told['members']:.0f}",
                f"{told['cost_seconds']:.1f} s",
            ]
        return [*(flow(value) for value in point.values()), state, *scores]


def _is_whole(trial: Any) -> bool:
    told = trial.last_result or {}
    whole = told.get(PROGRESS) == 100.0 and told[OBJECTIVE] != FAILED
    return bool(whole and trial.status == "TERMINATED")
