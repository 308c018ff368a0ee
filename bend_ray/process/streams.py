"""The standard streams as they come: closed, full, or a pipe that nobody reads any more.

Results, on stdout, must arrive: if they cannot, that is told and ends the command. Words on stderr
may get lost, and what they are about goes on.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Any, TextIO

from bend_ray.errors import BendError

NOBODY_READS = 128 + signal.SIGPIPE
"""The exit code of a Unix tool whose reader has gone, as in ``bend config | head -1``."""


class _Results(io.FileIO):
    """Stdout, which says once what it cannot take."""

    _failed = False

    def close_early(self) -> None:
        """Take nothing more, as if all were written."""
        self._failed = True

    def write(self, content: Any) -> int:
        """Write, or end the process where nobody reads.

        Raises:
            SystemExit: the reader has gone.
            BendError: the file is full, or cannot be written to for another reason.
        """
        if self._failed:  # Python tries again, when it ends
            return len(content)
        try:
            return super().write(content)
        except OSError as error:
            self._failed = True
            if error.errno == errno.EPIPE:
                raise SystemExit(NOBODY_READS) from None
            raise BendError(f"cannot write to stdout: {error.strerror}") from error


class _Words(io.FileIO):
    """Stderr, which loses what it cannot take."""

    def write(self, content: Any) -> int:
        """Write, or not."""
        try:
            return super().write(content)
        except OSError:
            return len(content)


def prepare() -> None:
    """Have stdout say what it cannot take, stderr lose it, and both take any text.

    Raises:
        BendError: stdout is closed.
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
        raw.close_early()


def _text(raw: io.FileIO, before: TextIO | None, *, line_buffering: bool) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else None,
        errors="backslashreplace",
        line_buffering=line_buffering,
    )
