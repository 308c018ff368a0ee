"""Fixtures of the tests that run ``bend`` as a process."""

from pathlib import Path
from typing import Any

import pytest
from process import Bend, figures


@pytest.fixture
def bend(tmp_path: Path) -> Bend:
    return Bend(tmp_path)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The figures of a tiny run that nobody disturbs."""
    run = Bend(tmp_path_factory.mktemp("undisturbed"))
    done = run(*run.run_arguments())
    assert done.returncode == 0, done.stderr
    return figures(done.stdout)
