"""Fixtures of the tests that run ``bend`` as a process."""

from pathlib import Path

import pytest
from process import Bend, Finished, figures


@pytest.fixture
def bend(tmp_path: Path) -> Bend:
    return Bend(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A tiny run that nobody disturbs."""
    bend = Bend(tmp_path_factory.mktemp("undisturbed"))
    done = bend(*bend.run_arguments())
    assert done.returncode == 0, done.stderr
    return Finished(bend, done.stdout, figures(done.stdout))
