"""How many cores this process may use: affinity and the quotas of its containers heeded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROC, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""In which control groups this process is, and where those are mounted."""


def usable_cores(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Cores that may compute at the same time, at least one."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(1, min([allowed, *map(int, _quotas(proc, cgroups))]))


def _quotas(proc: Path, cgroups: Path) -> Iterator[float]:
    """The cores' worth of time that each control group of this process leaves it."""
    for line in _text(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        # A container sees its own group as the root, under the name it has outside.
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            if not controllers:
                yield from _quota(*_text(cgroups / group / "cpu.max").split())
            elif "cpu" in controllers.split(","):
                old = cgroups / controllers / group
                yield from _quota(_text(old / "cpu.cfs_quota_us"), _text(old / "cpu.cfs_period_us"))


def _quota(microseconds: str = "", period: str = "") -> Iterator[float]:
    """Of version 2, ``max`` is none; of version 1, ``-1``."""
    if microseconds.isdigit() and period.isdigit() and int(period) > 0:
        yield int(microseconds) / int(period)


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
