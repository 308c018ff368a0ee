"""A clock that others can set: ``time.time`` plus the seconds that the file CHAOS_CLOCK holds.

Python imports this at its start where it is on PYTHONPATH. It reaches what Python code reads of the
wall clock, in every process of the cluster; not what Ray's C++ or the kernel reads.
"""

import mmap
import os
import struct
import sys
import time

_real = time.time
_real_ns = time.time_ns

if path := os.environ.get("CHAOS_CLOCK"):
    with open(path, "rb") as _file:
        _offset = mmap.mmap(_file.fileno(), 8, prot=mmap.PROT_READ)

    def _time() -> float:
        # gRPC's deadlines are held against the clock that its C++ reads.
        if sys._getframe(1).f_globals.get("__name__", "").startswith("grpc"):
            return _real()
        return _real() + struct.unpack("d", _offset[:8])[0]

    def _time_ns() -> int:
        return _real_ns() + int(struct.unpack("d", _offset[:8])[0] * 1e9)

    time.time, time.time_ns = _time, _time_ns
