"""Three repeats of one config, evaluated."""

from __future__ import annotations

import pytest
from evaluations import CONFIG, commit

from bend_ray.artifacts.store import Store
from bend_ray.config.graph import graph_of
from bend_ray.report.runs import Run, read_run


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three repeats of one config."""
    store = Store(str(tmp_path_factory.mktemp("evaluations")))
    for config in CONFIG.repeats(3):
        commit(config, store)
    return store


@pytest.fixture(scope="session")
def repeats(store: Store) -> list[Run]:
    """The three repeats, read."""
    names = [graph_of(config, store).evaluation.fingerprint for config in CONFIG.repeats(3)]
    return [read_run(store, name) for name in names]
