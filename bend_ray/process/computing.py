"""A process that computes: its threads, its memory, its device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from bend_ray.process.allocator import keep_freed_memory


def settle(cpus: float, gpus: float) -> str:
    """Set this process up for computing: one thread a CPU, memory; returns its device.

    Two torch threads on one contended core are 40 times slower than one, and sums of several
    threads are not those of one.
    """
    import torch

    torch.set_num_threads(max(1, int(cpus)))
    keep_freed_memory()
    return "cuda" if gpus and torch.cuda.is_available() else "cpu"


@contextmanager
def lent() -> Iterator[None]:
    """Around work in a process that is somebody else's: its threads are put back.

    torch's advice on how we stack models is kept from it.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            yield
    finally:
        torch.set_num_threads(threads)
