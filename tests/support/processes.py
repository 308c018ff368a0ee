"""Ending processes of a test's own."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import psutil


def kill_all(processes: Iterable[Any]) -> None:
    """SIGKILL to all of them, also where some are gone already."""
    for process in processes:
        with suppress(psutil.Error, OSError):
            process.kill()
