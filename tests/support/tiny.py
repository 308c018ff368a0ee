"""A tiny config, its artifacts made stage by stage, and the processes of the session's cluster."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from bend_ray.artifacts.store import Store
from bend_ray.config.graph import Graph, graph_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.pipeline import make_stage
from bend_ray.runtime.interface import Runtime

TINY = (
    "seeds.recipe.epochs=4",
    "seeds.recipe.optimizer.learning_rate=0.003",
    "seeds.recipe.label_smoothing=0",
    "seeds.protocol.kind=forks",
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
    # After so little training votes of a temperature of their own rank generators by chance.
    "evaluation.temperature_scaling=false",
)

MakeConfig = Callable[..., PipelineConfig]


def make(
    config: PipelineConfig,
    store: Store,
    until: str = "evaluation",
    runtime: Runtime | None = None,
) -> Graph:
    """The artifacts of a config, made up to a stage; here, or where a runtime does the work."""
    artifacts = graph_of(config, store)
    for step in artifacts.steps(until):
        make_stage(step, config, artifacts, runtime or Runtime())
    return artifacts


def own_processes(name: str) -> list[int]:
    """Processes of this session's cluster, and of no other on the machine, called so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
