"""Logging and progress, on stderr: stdout belongs to results.

A progress line reads ``seeds 412/1000 models  8.3/s  eta 1m11s``. On a terminal it is rewritten
in place; elsewhere (a file, a job's log) a new line is printed every few seconds.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

LOGGER = logging.getLogger("bend_ray")

TERMINAL_SECONDS = 0.2
LOG_SECONDS = 5.0

watchers: set[Callable[[str, int, int], None]] = set()
"""Told of all progress besides: the stage, how much is done, and of how much."""


def configure(verbose: bool = False) -> None:
    """Send this package's log to stderr, one plain line a message; debug messages if verbose."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.handlers = [handler]
    LOGGER.setLevel(logging.DEBUG if verbose else logging.INFO)
    LOGGER.propagate = False


def duration(seconds: float) -> str:
    """Seconds as a person writes them.

    >>> [duration(s) for s in (0.42, 7.25, 59.97, 71, 4000)]
    ['0.4s', '7.2s', '1m00s', '1m11s', '1h06m']
    """
    seconds = round(seconds, 1)
    if seconds < 60:
        return f"{seconds:.1f}s"
    if seconds < 3600:
        return f"{int(seconds // 60)}m{int(seconds % 60):02d}s"
    return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60):02d}m"


_told = ContextVar("told", default=True)
_levels: list[int] = []


@contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Nothing of the package is told in the block, unless verbose."""
    token = _told.set(verbose)
    # Whichever of several threads is done last puts back what the first has found.
    _levels.append(LOGGER.level)
    LOGGER.setLevel(LOGGER.level if verbose else logging.ERROR)
    try:
        yield
    finally:
        _told.reset(token)
        LOGGER.setLevel(_levels.pop())


class ProgressLine:
    """One stage's progress line, with rate and time to go; on stderr unless told otherwise."""

    def __init__(
        self, label: str, total: int, unit: str = "", stream: TextIO | None = None
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start: tuple[float, int] | None = None
        self._last_print = -float("inf")
        self._last_line = ""

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._terminal and self._last_line:
            self._stream.write("\n")
            self._stream.flush()

    def update(self, done: int) -> None:
        """Say that ``done`` of the total are done; prints only when it is time to."""
        for tell in watchers:
            tell(self._label, done, self._total)
        now = time.monotonic()
        if self._start is None:
            # The rate counts from the first report on, so that resumed work does not inflate it.
            self._start = (now, done)
        interval = TERMINAL_SECONDS if self._terminal else LOG_SECONDS
        if not _told.get() or (now - self._last_print < interval and done < self._total):
            return
        line = self._line(done, now, *self._start)
        if line == self._last_line:
            return
        self._last_print, self._last_line = now, line
        self._stream.write(f"\r\x1b[2K{line}" if self._terminal else f"{line}\n")
        self._stream.flush()

    def _line(self, done: int, now: float, started: float, first: int) -> str:
        counted = f"{self._label} {done}/{self._total} {self._unit}".rstrip()
        if done >= self._total or done == first or now <= started:
            return counted
        rate = (done - first) / (now - started)
        return f"{counted}  {rate:.1f}/s  eta {duration((self._total - done) / rate)}"
