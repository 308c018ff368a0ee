"""Cores that may be used: those of the machine, less what affinity and containers take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bend_ray.process.computing import usable_cores, usable_memory

CODE = "from bend_ray.process.computing import usable_cores; print(usable_cores())"


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)


def groups(folder: Path, line: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Control groups as Linux shows them."""
    proc, mounted = folder / "cgroup", folder / "mounted"
    proc.write_text(line)
    for name, text in files.items():
        file = mounted / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return proc, mounted


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),
        ("0::/a/b\n", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "900000 100000"}, 8),
        ("0::/docker/f00\n", {"cpu.max": "300000 100000"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000"}, 1),
        ("0::/../x\n", {}, 64),
        ("0::/\n", {}, 64),
        ("0::/\n", {"cpu.max": "nonsense"}, 64),
        ("", {}, 64),
        (
            "4:cpu,cpuacct:/docker/f00\n3:cpuset:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "600000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            6,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_the_quota_of_every_group_counts(
    tmp_path: Path, many: None, line: str, files: dict[str, str], cores: int
) -> None:
    assert usable_cores(*groups(tmp_path, line, files)) == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")
def test_affinity_counts(tmp_path: Path) -> None:
    one = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{one}]); {CODE}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("line", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "1000000"}, 1e6),
        ("4:cpu:/\n3:memory:/x\n", {"memory/x/memory.limit_in_bytes": "2000000"}, 2e6),
        ("3:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("", {}, None),
    ],
)
def test_the_memory_of_every_group_counts(
    tmp_path: Path, line: str, files: dict[str, str], limit: float | None
) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert usable_memory(*groups(tmp_path, line, files)) == (limit or machine)
