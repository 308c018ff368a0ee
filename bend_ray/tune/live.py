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

from bend_ray.errors import StoreError
from bend_ray.process.log import LOGGER, duration
from bend_ray.tune.records import TrialRecord, told
from bend_ray.tune.space import TuneSection
from bend_ray.tune.trial import PROBLEM

_ENDED = ("done", "stopped", "failed")


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
        return record.with_(number=number, point=point, status=status)

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
