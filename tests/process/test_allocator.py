"""What a process frees it uses again: counted in page faults, not in seconds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is set"
)

SCRIPT = """
import ctypes, resource, sys
from bend_ray.process.computing import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def used_and_freed():
    # As activations: several at once, all freed at the end of the step.
    blocks = [libc.malloc(2**23) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, 2**23)
    for block in blocks:
        libc.free(block)
for _ in range(3):
    used_and_freed()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    used_and_freed()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> int:
    ours = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, how],
        env=ours | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(told.stdout)


def test_memory_that_is_freed_is_used_again_without_a_page_fault() -> None:
    # Pages may be large: even then every round gets its 64 MiB anew.
    assert faults("leave") > 5 * 64 / 2 - 10
    assert faults("keep") < 10


def test_settings_of_the_environment_are_left_alone() -> None:
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="0") > 5 * 64 / 2 - 10
