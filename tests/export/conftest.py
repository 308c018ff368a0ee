"""A store with a bag in it, made without a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bags import Bagged, MakeBag, bag_config, store_bag


@pytest.fixture
def make_bag(tmp_path: Path) -> MakeBag:
    """A bag of random classifiers of an architecture and a vote, in a store of its own."""

    def make(*overrides: str, members: list[int] | None = None) -> Bagged:
        return store_bag(tmp_path / "store", bag_config(*overrides), members)

    return make


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """Seven images as digits has them."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 17, (7, 1, 8, 8), generator=generator, dtype=torch.uint8).numpy()
