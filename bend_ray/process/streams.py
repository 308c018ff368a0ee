"""A terminal as it comes: streams closed, full, or read by nobody; and Ctrl-C that cannot get lost.

Results, on stdout, must arrive: if they cannot, that is told and ends the command. Words on stderr
may get lost, and what they are about goes on.

An interrupt is an exception raised wherever the main thread happens to be. In a destructor or a
callback of a library it is printed and ignored there, and the run goes on as if nobody had asked:
our own tests met it. So it is raised again until it has come through.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TextIO

from bend_ray.errors import BendError

AGAIN_SECONDS = 3.0
NOBODY_READS = 128 + signal.SIGPIPE
"""The exit code of a Unix tool whose reader has gone, as in ``bend config | head -1``."""


class _Results(io.FileIO):
    """Stdout, which says once what it cannot take; when it has ``failed``, all is as if written."""

    failed = False

    def write(self, content: Any) -> int:
        """Write, or end the process where nobody reads; BendError where the file is full."""
        if self.failed:  # Python tries again, when it ends
            return len(content)
        try:
            return super().write(content)
        except OSError as error:
            self.failed = True
            if error.errno == errno.EPIPE:
                raise SystemExit(NOBODY_READS) from None
            raise BendError(f"cannot write to stdout: {error.strerror}") from error


class _Words(io.FileIO):
    """Stderr, which loses what it cannot take."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError:
            return len(content)


def prepare() -> None:
    """Have stdout say what it cannot take, stderr lose it, and both take any text.

    BendError where stdout is closed.
    """
    # Else the next file that is opened would get the number of a closed one.
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Words(2, "w", closefd=False), sys.stderr, line_buffering=True)
    if sys.stdout is None:
        raise BendError("expected a stdout for results, got a closed one; name one: > result.txt")
    if sys.stdout is sys.__stdout__:
        results = _Results(1, "w", closefd=False)
        sys.stdout = _text(results, sys.stdout, line_buffering=results.isatty())


def drop_unwritten() -> None:
    """After an interrupt: what stdout still holds may have been written, and would be twice."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Results):
        raw.failed = True


def _text(raw: io.FileIO, before: TextIO | None, *, line_buffering: bool) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else None,
        errors="backslashreplace",
        line_buffering=line_buffering,
    )


@contextmanager
def persistent_interrupts(again_seconds: float = AGAIN_SECONDS) -> Iterator[None]:
    """Within, one SIGINT raises KeyboardInterrupt every few seconds until one leaves the block.

    So long it may clean up before it is interrupted again. Only the main thread may enter it.
    """
    main = threading.get_ident()
    timers: list[threading.Timer] = []

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        timer = threading.Timer(again_seconds, signal.pthread_kill, (main, signal.SIGINT))
        timer.daemon = True
        timers.append(timer)
        timer.start()
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGINT, previous)
