"""The process's allocator, as training wants it."""

from __future__ import annotations

import ctypes

from bend_ray.process.environment import variable

# Of glibc's malloc.h, which knows these by number.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
KEPT_BYTES = 2**29
"""Free memory at the end of the heap that a process keeps."""
LARGEST_BYTES = 2**25
"""Tensors up to this size are taken from the heap; glibc allows no more."""


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
