"""A tiny config for the session's cluster, and stores."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import TINY, MakeConfig

from bend_ray.artifacts.store import Store
from bend_ray.config_file import load_config


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
