"""One Ray cluster for all tests of the stages, and a tiny config for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import ray

from bend_ray.artifacts.store import Store
from bend_ray.config import PipelineConfig
from bend_ray.config_file import load_config
from bend_ray.plan import STAGES, Plan, plan
from bend_ray.stages.cluster import connect

TINY = (
    "seeds.recipe.epochs=4",
    "seeds.protocol.trunks=2",
    "seeds.protocol.forks=6",
    "seeds.protocol.trunk_fraction=0.25",
    "seeds.cohort_size=4",
    "seeds.resources.workers=1",
    "autoencoder.model.latent_size=6",
    "autoencoder.model.hidden=16",
    "autoencoder.training.steps=200",
    "autoencoder.training.batch_size=8",
    "autoencoder.training.checkpoint_every=50",
    "generator.denoiser.hidden=16",
    "generator.training.steps=200",
    "generator.training.batch_size=8",
    "samples.count=6",
    "samples.shard_size=3",
    "samples.resources.workers=1",
    "evaluation.rivals=[{kind: originals_bag}]",
)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """The session's cluster; ``connect`` starts it as a user's first stage would."""
    connect(None)
    yield
    ray.shutdown()


MakeConfig = Callable[..., PipelineConfig]


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


def make(config: PipelineConfig, store: Store, until: str = "evaluation") -> Plan:
    """The artifacts of a config, made up to a stage where they are missing."""
    artifacts = plan(config, store)
    for stage in STAGES[: STAGES.index(until) + 1]:
        if not artifacts[stage].exists():
            import_module(f"bend_ray.stages.{stage}").make(config, artifacts)
    return artifacts
