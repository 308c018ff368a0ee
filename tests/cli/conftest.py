"""Fixtures of the tests that run ``bend`` as a process."""

import os
from pathlib import Path

import pytest
from bend_process import Bend, Finished, figures

AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


@pytest.fixture
def bend(tmp_path: Path) -> Bend:
    return Bend(tmp_path)


@pytest.fixture
def joining(tmp_path: Path, cluster: None) -> Bend:
    """``bend`` on the session's cluster: for what does not depend on whose cluster it is."""
    import ray

    token = {name: os.environ[name] for name in AUTHENTICATION if name in os.environ}
    address = ray.get_runtime_context().gcs_address
    return Bend(tmp_path, {"RAY_ADDRESS": address, **token})


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A tiny run that nobody disturbs."""
    bend = Bend(tmp_path_factory.mktemp("undisturbed"))
    done = bend(*bend.run_arguments())
    assert done.returncode == 0, done.stderr
    return Finished(bend, done.stdout, figures(done.stdout))
