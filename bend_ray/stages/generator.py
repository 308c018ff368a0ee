"""Stage 4, generator: learn to draw latents."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from bend_ray.artifacts.cost import Cost, Stopwatch, cost_of_pieces
from bend_ray.artifacts.events import loss_curve, write_events
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import DIRECTORY, save_weights
from bend_ray.config.graph import Graph
from bend_ray.config.schema import GeneratorSection, PipelineConfig
from bend_ray.generation.latent_diffusion import LatentScale
from bend_ray.generation.training import Denoising
from bend_ray.runtime.interface import Rows, Runtime, vectors
from bend_ray.runtime.loop import Fitted, TrainingTask, milestone
from bend_ray.stages import latents
from bend_ray.stages.probes import check_generator
from bend_ray.stages.sample_drawer import SCALE, WEIGHTS
from bend_ray.storage.filesystems import open_file


def make(config: PipelineConfig, graph: Graph, runtime: Runtime) -> None:
    """Fit the denoiser on the training members' latents, and commit it.

    TrainingError where the training diverged, or what it drew on the way does not work.
    """
    artifact = graph.generator
    with Stopwatch() as watch:
        probed: dict[str, Any] | None
        probed, probe_cost = None, Cost()
        if (step := config.probed_at) and (weights := train_until(config, graph, runtime, step)):
            probed, probe_cost = check_generator(config, graph, runtime, weights, step)
        fitted = _fit(config, graph, runtime)
    events = write_events(artifact, loss_curve("generator", fitted.curve, fitted.times))
    artifact.commit(
        files=[SCALE, WEIGHTS, events],
        metrics={
            "num_conditions": config.num_conditions,
            "loss": fitted.curve,
            "held_out_loss": fitted.held_out,
            "probes": probed,
        },
        cost=cost_of_pieces([fitted.cost, probe_cost], watch.cost.wall_seconds),
    )
    artifact.discard(DIRECTORY)


def train_until(config: PipelineConfig, graph: Graph, runtime: Runtime, step: int) -> str | None:
    """Train the denoiser to a step at least, to be gone on with; commits nothing.

    Returns:
        The file of its averaged weights at that step, for ``SampleDrawer``; None where an
        earlier training passed the step without a pause.
    """
    file = milestone(step)
    if not _has(graph.generator, file):
        _fit(config, graph, runtime, until=step)
    return file if _has(graph.generator, file) else None


def _has(artifact: Artifact, file: str) -> bool:
    return any(entry.name == file for entry in artifact.list_files(DIRECTORY))


def _fit(
    config: PipelineConfig, graph: Graph, runtime: Runtime, until: int | None = None
) -> Fitted:
    section, conditions = config.generator, config.num_conditions
    table, z_KZ, trunk_K = _read(graph.latents)
    condition_K = trunk_K * int(section.conditional)
    learnt_K = torch.from_numpy(~table.column("held_out").to_numpy())
    learnt, held_out = ((z_KZ[keep_K], condition_K[keep_K]) for keep_K in (learnt_K, ~learnt_K))
    with Stopwatch() as watch:
        if section.denoiser.starts_gaussian:
            scale = LatentScale.fit(*learnt, conditions, held_out)
        else:
            scale = LatentScale.diagonal(*learnt, conditions)
    save_weights(graph.generator, SCALE, vars(scale))
    # Unit residuals, the trunk as condition.
    unit = table.select(["model_id", "held_out"])
    unit = unit.append_column("trunk", pa.array(condition_K.numpy()))
    unit = unit.append_column("features", vectors(scale.apply(z_KZ, condition_K).numpy()))
    fitted = runtime.train(
        TrainingTask(
            stage="generator",
            build=partial(build_objective, section, z_KZ.shape[1], conditions),
            training=section.training,
            resources=section.resources,
            seed=config.seed,
            artifact=graph.generator,
            weights=WEIGHTS,
            until=until,
        ),
        Rows(1, lambda _: unit),
    )
    return replace(fitted, cost=watch.cost + fitted.cost)


def build_objective(section: GeneratorSection, latent_size: int, conditions: int) -> nn.Module:
    """The denoiser with its loss."""
    return Denoising(section.denoiser.build(latent_size, conditions), section.process)


def _read(latents_artifact: Artifact) -> tuple[pa.Table, Tensor, Tensor]:
    """All members' rows, their latents ``(K, Z)`` and trunks ``(K,)``."""
    with open_file(latents_artifact.filesystem, latents_artifact.child(latents.FILE)) as source:
        table = pq.read_table(source, page_checksum_verification=True)
    chunks = [chunk.to_numpy_ndarray() for chunk in table.column("latent").chunks]
    trunk_K = torch.from_numpy(table.column("trunk").to_numpy().astype(np.int64))
    return table, torch.tensor(np.concatenate(chunks)), trunk_K
