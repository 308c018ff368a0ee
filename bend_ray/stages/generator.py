"""Stage 4, generator: learn to draw latents.

A few classifiers are drawn half-way through its training, as probes: does it draw any that work, on
validation images? It stops there if not. Nothing of that changes what a run that goes on makes.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from bend_ray.artifacts.cost import Cost, Stopwatch, cost_of_pieces
from bend_ray.artifacts.events import write_loss
from bend_ray.artifacts.shards import open_table
from bend_ray.artifacts.weights import DIRECTORY, save_weights
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.generation.latent_diffusion import LatentScale
from bend_ray.generation.training import Denoising
from bend_ray.runtime.interface import Rows, Runtime, Shared, from_vectors, vectors
from bend_ray.runtime.loop import Fitted, TrainingTask, milestone
from bend_ray.stages.autoencoder import LATENTS
from bend_ray.stages.samples import SCALE, WEIGHTS, SampleDrawer, floor_of

LEAST_SPREAD = 0.05
"""Samples with less of the members' spread are reported: they are one model a trunk, nearly."""
MOST_SPREAD = 20.0
"""Samples with more are reported too."""

logger = logging.getLogger(__name__)


def make(graph: Graph, runtime: Runtime) -> None:
    """Fit the denoiser on the training members' latents, and commit it.

    TrainingError where the training diverged, or what it drew on the way does not work.
    """
    artifact, config = graph.generator, graph.config
    with Stopwatch() as watch:
        probed: dict[str, Any] | None
        probed, probe_cost = None, Cost()
        if (step := config.probed_at) and (weights := train_until(graph, runtime, step)):
            probed, probe_cost = check_generator(graph, runtime, weights, step)
        fitted = _fit(graph, runtime)
    events = write_loss(artifact, fitted.curve, fitted.times)
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


def train_until(graph: Graph, runtime: Runtime, step: int) -> str | None:
    """Train the denoiser to a step at least, to be gone on with; commits nothing.

    Gives the file of its averaged weights at that step, for ``SampleDrawer``; None where an earlier
    training passed the step without a pause.
    """
    file = milestone(step)
    if file not in graph.generator.list_files(DIRECTORY):
        _fit(graph, runtime, until=step)
    return file if file in graph.generator.list_files(DIRECTORY) else None


def _fit(graph: Graph, runtime: Runtime, until: int | None = None) -> Fitted:
    section, conditions = graph.config.generator, graph.config.num_conditions
    with open_table(graph.latents, LATENTS) as file:
        table = file.read()
    z_KZ = torch.tensor(from_vectors(table.column("latent")))
    trunk_K = torch.tensor(table.column("trunk").to_numpy()).long()
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
    latent_size = z_KZ.shape[1]
    fitted = runtime.train(
        TrainingTask(
            *(graph.generator, section, graph.config.seed),
            lambda: Denoising(section.denoiser.build(latent_size, conditions), section.process),
            *(WEIGHTS, until),
        ),
        Rows(1, lambda _: unit),
    )
    return replace(fitted, cost=watch.cost + fitted.cost)


def check_generator(
    graph: Graph, runtime: Runtime, weights: str, step: int
) -> tuple[dict[str, Any], Cost]:
    """Draw a few classifiers with a milestone's file of weights; needs the latents.

    Returns what the manifest says of it, and what it cost. TrainingError where none of them works.
    """
    config = graph.config
    dataset, steps = runtime.share(config.dataset), config.generator.training.steps
    given = graph, weights, dataset
    spread, accuracy, cost = runtime.run(_draw, *given, resources=config.samples.resources)
    floor = floor_of(graph, dataset)
    floor.require(
        accuracy,
        f"generator: collapsed: at step {step} of {steps} none of {_num_probes(config)} drawn "
        "models",
        f"their spread is {spread:.2g} of the members'; train it for longer, with a lower "
        "generator.training.optimizer.learning_rate, or set generator.probes.floor to 0",
    )
    logger.info(
        "generator    at step %d of %d: draws models of %.1f %% on validation examples (members "
        "%.1f %%), with %.2f of their spread",
        *(step, steps, 100 * float(np.median(accuracy)), 100 * floor.members, spread),
    )
    if spread < LEAST_SPREAD:
        logger.warning("generator    collapsed: what it draws is nearly one model a trunk")
    if spread > MOST_SPREAD:
        logger.warning("generator    diverges: what it draws lies far from all members")
    figures = {"step": step, "spread": spread, "accuracy": accuracy, "floor": floor.least}
    return figures, cost


def _num_probes(config: PipelineConfig) -> int:
    return min(config.generator.probes.count, config.samples.count)


def _draw(graph: Graph, weights: str, shared: Shared) -> tuple[float, list[float], Cost]:
    """Spread, in that of the training members, and accuracy of the probes; runs as a Ray task."""
    with Stopwatch() as watch:
        # Annealing would make working models of anything.
        samples = graph.config.samples.model_copy(update={"finish": None})
        unfinished = graph.config.model_copy(update={"samples": samples})
        drawer = SampleDrawer(replace(graph, config=unfinished), shared, weights)
        ids = range(_num_probes(graph.config))
        unit_NZ = drawer.scale.apply(drawer.latents(ids), drawer.conditions(ids))
        accuracy_N = drawer.classifiers_of(ids).val_accuracy
    return unit_NZ.square().mean().sqrt().item(), accuracy_N.tolist(), watch.cost
