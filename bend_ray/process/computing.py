"""A process that computes: its threads, its memory, its device."""

from __future__ import annotations

import ctypes
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bend_ray.errors import ClusterError
from bend_ray.process.environment import variable

# Of glibc's malloc.h, which knows these by number.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
KEPT_BYTES = 2**29
"""Free memory at the end of the heap that a process keeps."""
LARGEST_BYTES = 2**25
"""Tensors up to this size are taken from the heap; glibc allows no more."""

_DRIVER = Path("/proc/driver/nvidia/version")


def settle(cpus: float, gpus: float) -> str:
    """Set this process up for computing: one thread a CPU, memory; returns its device.

    Two torch threads on one contended core are 40 times slower than one, and sums of several
    threads are not those of one.

    Raises:
        ClusterError: a GPU is asked for, and none works here.
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

    torch's advice on how we stack models is kept from it.

    Args:
        cpus: to compute with as many threads as ``settle`` would give; None for those there are.
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
