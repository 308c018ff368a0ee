"""The pipeline: six stages in order, each made once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bend_ray.artifacts.lease import lease, maker
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.graph import ORDINARY, STAGES, Graph, graph_of, identified, ordinary
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import StoreError
from bend_ray.process.computing import lent
from bend_ray.process.log import duration

if TYPE_CHECKING:
    from bend_ray.runtime.interface import Runtime
    from bend_ray.runtime.on_ray import RayRuntime

logger = logging.getLogger(__name__)


def run(
    config: PipelineConfig,
    store_uri: str,
    *,
    until: str = "evaluation",
    address: str | None = None,
    local: bool = False,
) -> Graph:
    """Make what is missing up to a stage; with nothing missing, without Ray. Gives all artifacts.

    The work is done in the cluster of ``address``; None: of RAY_ADDRESS, else of one of our own. Or
    it is done in this process, where ``local``, without Ray. BendError for what the user can mend;
    what was finished is kept.
    """
    store = Store(store_uri)
    config = identified(config)
    artifacts = graph_of(config, store)
    steps = artifacts.steps(until)
    missing = [step for step in steps if not artifacts[step].exists()]
    if not missing:
        logger.info("%-12s %s  is made", until, artifacts[until].fingerprint)
        return artifacts
    store.ensure_writable()
    from bend_ray.runtime.interface import Runtime
    from bend_ray.runtime.tracking import require_installed, tracking

    require_installed(config)
    started = time.monotonic()
    runtime = Runtime() if local else connect(address, config)
    config = runtime.preflight(config, missing)
    connecting = time.monotonic() - started
    with tracking(config, artifacts.evaluation) as tell:
        for step in steps:
            if step in missing:
                make_stage(step, config, artifacts, runtime)
            if step != ORDINARY:
                tell(artifacts[step])
    _tell_where_time_went(artifacts, missing, connecting, time.monotonic() - started)
    return artifacts


def make_stage(stage: str, config: PipelineConfig, artifacts: Graph, runtime: Runtime) -> bool:
    """Make one stage's artifact unless it is there, or wait until another run has.

    Needs the stages before it. Returns whether this call made it. BendError for what the user can
    mend; what was finished is kept.
    """
    artifact = artifacts[stage]
    if artifact.exists():
        return False
    with lease(artifact, logger.info) as mine:
        if mine:
            runtime.wait_for(config, stage)
            logger.info("%-12s %s  is being made", stage, artifact.fingerprint)
            try:
                # Bits may not depend on how many cores a driver has.
                with runtime.errors(), lent(cpus=1):
                    _make(stage, replace(artifacts, config=config), runtime)
            except StoreError:
                # Stopped for long, this run loses the stage to another, which then commits it.
                if not artifact.exists():
                    raise
    manifest = artifact.manifest()
    runtime.made(stage, manifest)
    logger.info(
        "%-12s %s  done in %s (CPU %s)",
        stage,
        artifact.fingerprint,
        duration(manifest.cost.wall_seconds),
        duration(manifest.cost.cpu_seconds),
    )
    return mine


def _make(stage: str, artifacts: Graph, runtime: Runtime) -> None:
    from bend_ray.stages import autoencoder, evaluation, generator, samples, seeds

    if stage == ORDINARY:
        others = ordinary(artifacts.config)
        assert others is not None
        seeds.make(graph_of(others, artifacts.seeds.store), runtime, ORDINARY)
        return
    makers = (
        *(seeds.make, autoencoder.make, autoencoder.encode),
        *(generator.make, samples.make, evaluation.make),
    )
    dict(zip(STAGES, makers, strict=True))[stage](artifacts, runtime)


def _tell_where_time_went(graph: Graph, made: list[str], connecting: float, whole: float) -> None:
    costs = {stage: graph[stage].manifest().cost for stage in made}
    stages = ", ".join(f"{stage} {duration(cost.wall_seconds)}" for stage, cost in costs.items())
    computing = duration(sum(cost.cpu_seconds for cost in costs.values()))
    logger.info(
        "done in %s: starting %s, %s; of it %s CPU of computing, the rest is processes "
        "starting and waiting",
        *(duration(whole), duration(connecting), stages, computing),
    )


def connect(address: str | None, config: PipelineConfig) -> RayRuntime:
    """Connect to Ray: without an address to the cluster of RAY_ADDRESS, else to one of our own.

    ClusterError where none answers.
    """
    # Ray reads its environment when it is first imported, so the order matters.
    from bend_ray.process.environment import prepare_environment

    prepare_environment(address)
    from bend_ray.runtime import cluster
    from bend_ray.runtime.on_ray import RayRuntime

    return RayRuntime(cluster.connect(address, config))


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is."""

    stage: str
    """Its name."""
    artifact: Artifact
    """Where its result is, or will be."""
    state: str
    """``committed``, ``running``, ``partial`` or ``missing``."""
    detail: str
    """What is there, in words."""


def status(config: PipelineConfig, store_uri: str) -> Iterator[StageStatus]:
    """How far each stage of ``config`` is in a store; needs no Ray.

    BendError where the store cannot be read, or holds a broken artifact.
    """
    config = identified(config)
    graph = graph_of(config, Store(store_uri))
    for stage in graph.steps("evaluation"):
        artifact = graph[stage]
        if artifact.exists():
            cost = artifact.manifest().cost
            took = f"{duration(cost.wall_seconds)} (CPU {duration(cost.cpu_seconds)})"
            yield StageStatus(stage, artifact, "committed", took)
            continue
        done, by = _partial(config, stage, artifact), maker(artifact)
        state = "running" if by else "partial" if done else "missing"
        yield StageStatus(stage, artifact, state, ", ".join(filter(None, (done, by))))


def _partial(config: PipelineConfig, stage: str, artifact: Artifact) -> str | None:
    """What an artifact that is not committed already has, in words."""
    if progress := artifact.progress():
        return f"{progress.done} of {progress.total} {progress.unit}"
    files = artifact.list_files()
    if any(name.startswith("shard-") for name in files):
        from bend_ray.artifacts.shards import count_models

        made = (ordinary(config) or config) if stage == ORDINARY else config
        total = made.samples.count if stage == "samples" else made.seeds.num_models
        return f"{count_models(artifact)} of {total} models"
    return f"files kept: {len(files)}" if files else None
