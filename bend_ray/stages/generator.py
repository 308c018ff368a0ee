"""Stage 4, generator: learn to draw latents."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray.data
import torch
from torch import nn

from bend_ray.artifacts.cost import Cost, Stopwatch
from bend_ray.artifacts.events import loss_curve, write_events
from bend_ray.artifacts.shards import verified
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import save_weights
from bend_ray.config.graph import Plan
from bend_ray.config.schema import GeneratorSection, PipelineConfig
from bend_ray.generation.latent_diffusion import LatentScale
from bend_ray.generation.objectives import Denoising
from bend_ray.runtime import cluster
from bend_ray.runtime.training import TRAIN_DIRECTORY, Fitted, Job, fit, milestone
from bend_ray.stages import latents
from bend_ray.stages.probes import check_generator
from bend_ray.stages.sample_drawer import SCALE, WEIGHTS
from bend_ray.storage.filesystems import open_file


def make(config: PipelineConfig, plan: Plan) -> None:
    """Fit the denoiser on the training members' latents, and commit it.

    Raises:
        TrainingError: the training diverged, or what it drew on the way does not work.
    """
    artifact = plan.generator
    with Stopwatch() as watch:
        probed, probe_cost = _probe(config, plan)
        fitted = _fit(config, plan)
    events = write_events(artifact, loss_curve("generator", fitted.curve, fitted.times))
    artifact.commit(
        files=[SCALE, WEIGHTS, events],
        metrics={
            "num_conditions": config.num_conditions,
            "loss": fitted.curve,
            "probes": probed,
        },
        cost=cluster.total([fitted.cost, probe_cost], watch.cost.wall_seconds),
    )
    artifact.discard(TRAIN_DIRECTORY)


def _probe(config: PipelineConfig, plan: Plan) -> tuple[dict[str, Any] | None, Cost]:
    """Stop at ``generator.probes.at`` of the training and see what it draws."""
    probes, steps = config.generator.probes, config.generator.training.steps
    step = round(probes.at * steps)
    if probes.count == 0 or not 0 < step < steps:
        return None, Cost()
    weights = train_until(config, plan, step)
    return check_generator(config, plan, weights, step) if weights else (None, Cost())


def train_until(config: PipelineConfig, plan: Plan, step: int) -> str | None:
    """Train the denoiser to a step at least, to be gone on with; commits nothing.

    Returns:
        The file of its averaged weights at that step, for ``load_generator``; None where an
        earlier training passed the step without a pause.
    """
    file = milestone(step)
    if not _has(plan.generator, file):
        _fit(config, plan, until=step)
    return file if _has(plan.generator, file) else None


def _has(artifact: Artifact, file: str) -> bool:
    return any(entry.name == file for entry in artifact.list_files(TRAIN_DIRECTORY))


def _fit(config: PipelineConfig, plan: Plan, until: int | None = None) -> Fitted:
    section = config.generator
    scale = _fit_scale(config, plan)
    save_weights(plan.generator, SCALE, scale.state())
    latent_size = config.autoencoder.model.latent_size
    return fit(
        Job(
            stage="generator",
            build=partial(build_objective, section, latent_size, config.num_conditions),
            training=section.training,
            resources=section.resources,
            seed=config.seed,
            artifact=plan.generator,
            weights=WEIGHTS,
            until=until,
        ),
        _dataset(plan.latents, scale, section.conditional),
    )


def build_objective(section: GeneratorSection, latent_size: int, conditions: int) -> nn.Module:
    """The denoiser with its loss."""
    return Denoising(section.denoiser.build(latent_size, conditions), section.process)


def _fit_scale(config: PipelineConfig, plan: Plan) -> LatentScale:
    with open_file(plan.latents.filesystem, plan.latents.child(latents.FILE)) as source:
        table = pq.read_table(source, page_checksum_verification=True)
    keep = ~table.column("held_out").to_numpy()
    latents_KZ = np.concatenate([c.to_numpy_ndarray() for c in table.column("latent").chunks])
    condition_K = torch.from_numpy(table.column("trunk").to_numpy()[keep].astype(np.int64))
    if not config.generator.conditional:
        condition_K = torch.zeros_like(condition_K)
    z_KZ = torch.from_numpy(np.array(latents_KZ[keep]))
    return LatentScale.fit(z_KZ, condition_K, config.num_conditions)


def _dataset(latents_artifact: Artifact, scale: LatentScale, conditional: bool) -> ray.data.Dataset:
    """Training rows ``model_id, trunk, features``: unit residuals, the trunk as condition."""

    def unit(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        keep = ~batch["held_out"]
        trunk_K = batch["trunk"][keep] * int(conditional)
        z_KZ = torch.tensor(batch["latent"][keep])
        x_KZ = scale.apply(z_KZ, torch.tensor(trunk_K, dtype=torch.int64))
        return {
            "model_id": batch["model_id"][keep],
            "trunk": trunk_K,
            "features": x_KZ.numpy(),
        }

    path = latents_artifact.child(latents.FILE)
    rows = ray.data.read_parquet(
        path, filesystem=latents_artifact.filesystem, fragment_scan_options=verified()
    )
    return rows.map_batches(unit, batch_size=None)
