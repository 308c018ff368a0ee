"""A bag of digits to serve, and what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inprocess import client
from served import export_random
from starlette.testclient import TestClient

from bend_ray.serve.bag import Bag
from bend_ray.serve.settings import ServeSettings


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported bag of nine random MLPs."""
    return export_random(tmp_path_factory.mktemp("served"), "mlp")


@pytest.fixture(scope="session")
def bag(folder: Path) -> Bag:
    return Bag.load(folder, ServeSettings(groups=4))


@pytest.fixture
def http(folder: Path) -> TestClient:
    return client(folder)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 17, (6, 1, 8, 8), dtype=np.uint8)
