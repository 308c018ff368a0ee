"""What every test process shares."""

from __future__ import annotations

import os
import sys
import tempfile
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import start_worker
from fuzzing import FULL
from hypothesis import settings
from nursery import Nursery
from tiny import TINY, MakeConfig

from bend_ray.artifacts.store import Store
from bend_ray.config.reading import load_config
from bend_ray.process.environment import prepare_environment

# Before torch is imported. Two threads under contention are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Jobs start `python` as the cluster's machines find it.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# Before ray is imported, by whichever test module is collected first.
prepare_environment(None)


# Before the command line chooses one of them.
settings.register_profile(FULL, settings.get_profile("default"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """What a test settles its process for, as workers do, is not the next one's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """The session's cluster; ``connect`` starts it as a user's first stage would.

    Its workers are forked from a process that has imported everything: a test that starts ten takes
    seconds.
    """
    import ray
    from ray._private import parameter, utils

    from bend_ray.runtime.cluster import connect

    with (
        # Not pytest's folder: the path of a socket may have 107 characters.
        tempfile.TemporaryDirectory(prefix="bn", ignore_cleanup_errors=True) as folder,
        Nursery(Path(folder), os.environ) as nursery,
        pytest.MonkeyPatch.context() as patched,
    ):
        # Jobs come through a head's agent, whose port only one cluster of a host can have; one that
        # finds it taken, by another that is about to end, goes without for good: any free port.
        ours = {"setup_worker_path": start_worker.__file__, "dashboard_agent_listen_port": 0}
        patched.setattr(parameter, "RayParams", partial(parameter.RayParams, **ours))
        patched.setenv(start_worker.SOCKET, str(nursery.socket))
        with patched.context() as meanwhile:
            meanwhile.setenv("RAY_TMPDIR", folder)
            connect(None)
        # A job joins the cluster that this file names, and without it any of its host.
        utils.write_ray_address(ray.get_runtime_context().gcs_address, f"{folder}/ray")
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


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test of ``torch.optim``'s classes the 4 s import of torch's compiler.

    They import it for nothing but to say that it shall not compile them.
    """
    if "torch._dynamo" in sys.modules:
        return
    compiler = types.ModuleType("torch._dynamo")
    compiler.disable = lambda function, *_, **__: function  # type: ignore[attr-defined]
    compiler.graph_break = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch._dynamo", compiler)
