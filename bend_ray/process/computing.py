"""A process that computes: its cores, its threads, its memory, its device."""

from __future__ import annotations

import ctypes
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from bend_ray.errors import ClusterError
from bend_ray.process.environment import variable

# Of glibc's malloc.h, which knows these by number.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
KEPT_BYTES = 2**29
"""Free memory at the end of the heap that a process keeps."""
LARGEST_BYTES = 2**25
"""Tensors up to this size are taken from the heap; glibc allows no more."""

_PROC, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""In which control groups this process is, and where those are mounted."""

_DRIVER = Path("/proc/driver/nvidia/version")


def settle(cpus: float, gpus: float) -> str:
    """Set this process up for computing: one thread a CPU, memory; returns its device.

    Two torch threads on one contended core are 40 times slower than one, and sums of several
    threads are not those of one. ClusterError where a GPU is asked for, and none works here.
    """
    import torch

    torch.set_num_threads(max(1, int(cpus)))
    keep_freed_memory()
    if gpus and (problem := gpu_problem()):
        raise ClusterError(problem)
    return "cuda" if gpus else "cpu"


def gpu_problem() -> str | None:
    """Why torch cannot compute on a GPU of this machine; None where it can."""
    import torch

    try:
        torch.ones(1, device="cuda").sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
    else:
        return None
    driver = _DRIVER.read_text().partition("\n")[0] if _DRIVER.exists() else "no NVIDIA driver"
    return (
        f"node {socket.gethostname()}: expected a GPU that works, as resources.gpus asks for one, "
        f"got: {reason} ({driver}; torch {torch.__version__}, CUDA {torch.version.cuda}); mend the "
        "driver or the container's runtime there, or set resources.gpus to 0"
    )


def keep_freed_memory() -> None:
    """Let this process use again what it frees.

    A step of training frees its activations, and glibc gives large ones back to the system at
    once: the next step gets every page anew, an eighth of a small CNN's time (measured). The
    environment's own settings of malloc are left alone, and so are other allocators and systems.
    """
    if any(map(variable, _ENVIRONMENT)):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    mallopt(_M_MMAP_THRESHOLD, LARGEST_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


@contextmanager
def lent(cpus: float | None = None) -> Iterator[None]:
    """Around work in a process that is somebody else's: its threads are put back.

    torch's advice on how we stack models is kept from it. With ``cpus``, it has as many threads as
    ``settle`` would give.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            if cpus is not None:
                torch.set_num_threads(max(1, int(cpus)))
            yield
    finally:
        torch.set_num_threads(threads)


def usable_cores(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Cores that may compute at the same time: affinity and the quotas of containers heeded."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    files = "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"
    # Without a quota version 2 says max, version 1 -1.
    quotas = [
        int(quota) // int(period)
        for quota, period in _limits(proc, cgroups, "cpu", *files)
        if quota.isdigit() and period.isdigit() and int(period) > 0
    ]
    return max(1, min([allowed, *quotas]))


def usable_memory(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> float:
    """Bytes of memory that this machine has, limits of containers heeded."""
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    # Without a limit version 2 says max, version 1 a number no machine has.
    limits = _limits(proc, cgroups, "memory", "memory.max", "memory.limit_in_bytes")
    return min([whole, *(float(each) for (each,) in limits if each.isdigit() and int(each) > 0)])


def _limits(
    proc: Path, cgroups: Path, controller: str, file: str, *files: str
) -> Iterator[list[str]]:
    """What each control group of this process limits: of version 2 a file, of version 1 several."""
    for line in _text(proc).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # A container sees its own group as the root, under the name it has outside.
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            names = files if controllers else (file,)
            texts = (_text(cgroups / controllers / group / name) for name in names)
            words = " ".join(texts).split()
            if len(words) == len(files):
                yield words


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
