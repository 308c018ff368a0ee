"""One Ray cluster for all tests of the stages, and a tiny config for it.

Its workers are forked from a process that has imported everything: a test that starts ten takes
seconds. Those of the tests of the command line are started as a user's are.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
import start_worker
from nursery import Nursery
from ray._private import parameter
from tiny import TINY, MakeConfig

from bend_ray.artifacts.store import Store
from bend_ray.config_file import load_config
from bend_ray.stages.cluster import connect


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """The session's cluster; ``connect`` starts it as a user's first stage would."""
    with (
        # Not pytest's folder: the path of a socket may have 107 characters.
        tempfile.TemporaryDirectory(prefix="bn") as folder,
        Nursery(Path(folder), os.environ) as nursery,
        pytest.MonkeyPatch.context() as patched,
    ):
        forked = partial(parameter.RayParams, setup_worker_path=start_worker.__file__)
        patched.setattr(parameter, "RayParams", forked)
        patched.setenv(start_worker.SOCKET, str(nursery.socket))
        connect(None)
        yield
        ray.shutdown()


@pytest.fixture
def tiny() -> MakeConfig:
    """The tiny config, with overrides of a test's own."""
    return lambda *overrides: load_config(None, [*TINY, *overrides])


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of all tests: what one made, another finds by its fingerprint."""
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture
def fresh_store(tmp_path: Path) -> Store:
    """A store of one test."""
    return Store(str(tmp_path / "store"))
