"""Every cell of the fault matrix once, each by the runner as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults import FAULTS
from matrix import wanted
from scenes import EVERY_STAGE

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(1800)]

CELLS = [(stage, fault.name) for stage, fault in wanted(EVERY_STAGE, list(FAULTS))]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runner's folder, with the undisturbed run that all cells are held against."""
    return tmp_path_factory.mktemp("chaos")


@pytest.mark.parametrize(("stage", "fault"), CELLS, ids=[" x ".join(cell) for cell in CELLS])
def test_a_stage_comes_out_the_same_or_says_why_not(stage: str, fault: str, work: Path) -> None:
    runner = Path(__file__).with_name("matrix.py")
    command = [sys.executable, str(runner), "--work", str(work), "--repeats", "1"]
    done = subprocess.run(
        [*command, "--stage", stage, "--fault", fault], capture_output=True, text=True
    )
    lines = (work / "cells.jsonl").read_text().splitlines()
    found = json.loads(lines[-1])
    assert (found["stage"], found["fault"]) == (stage, fault), done.stderr
    assert found["outcome"] in ("survived", "refused"), found
    assert found["left"] == [], found
