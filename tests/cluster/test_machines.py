"""The scenes of ``machines.py``, each a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("machines.py")
SCENES = ["cut_and_join", "partition", "all_at_once", "full_disk", "other_version"]
SCENES += ["skewed_clock", "head_lost", "own_code", "doctor"]


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs namespaces")
@pytest.mark.parametrize("scene", SCENES)
def test_figures_are_the_same_to_the_bit_or_refused(scene: str) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--scene", scene], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
