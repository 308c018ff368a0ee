"""Stages 2 and 3, autoencoder and latents: learn latents of the trained population's parameters.

Then the whole population is encoded, the held-out members too.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bend_ray.artifacts.cost import Cost, Stopwatch, cost_of_pieces
from bend_ray.artifacts.events import write_loss
from bend_ray.artifacts.weights import load_weights
from bend_ray.config.graph import Graph
from bend_ray.errors import TrainingError
from bend_ray.generation.training import Reconstruction
from bend_ray.populations.members import learnt_vectors
from bend_ray.process.computing import settle
from bend_ray.runtime.interface import Runtime, from_vectors, vectors
from bend_ray.runtime.loop import TrainingTask
from bend_ray.stages.representations import (
    FACTS,
    FILE,
    Representation,
    fit_representation,
    load_representation,
)

WEIGHTS = "autoencoder.safetensors"
LATENTS = "latents.parquet"


def make(graph: Graph, runtime: Runtime) -> None:
    """Fit the representation and the autoencoder on the training members, and commit both.

    TrainingError where too few members are left, or the training diverged.
    """
    artifact, section = graph.autoencoder, graph.config.autoencoder
    model = section.model
    latent_size, learnt = model.latent_size or 0, len(learnt_vectors(graph.seeds)[0])
    if latent_size >= learnt:
        raise TrainingError(
            f"autoencoder: expected more than autoencoder.model.latent_size = {latent_size} "
            f"training members, got {learnt} of {graph.config.num_training_models}, the others "
            "diverged; lower seeds.recipe.optimizer.learning_rate or the latent size"
        )
    with Stopwatch() as watch:
        representation, fit_cost = fit_representation(
            model.features, graph.seeds, artifact, runtime
        )
        size, noise = representation.num_features, (model.input_noise, model.latent_noise)
        fitted = runtime.train(
            TrainingTask(
                *(artifact, section, graph.config.seed),
                lambda: Reconstruction(model.build(size), model.latent_size or size, *noise),
                WEIGHTS,
            ),
            representation.rows(graph.seeds, training_only=not section.training.patience),
        )
    events = write_loss(artifact, fitted.curve, fitted.times)
    artifact.commit(
        files=[FILE, WEIGHTS, events],
        metrics={
            "num_features": representation.num_features,
            "loss": fitted.curve,
            "held_out_loss": fitted.held_out,
        },
        cost=cost_of_pieces([fit_cost, fitted.cost], watch.cost.wall_seconds),
    )


def encode(graph: Graph, runtime: Runtime) -> None:
    """Encode ``graph.seeds`` and commit one row a member: its latent and how well it comes back."""
    artifact, model = graph.latents, graph.config.autoencoder.model
    with Stopwatch() as watch:
        representation = load_representation(model.features, graph.autoencoder)
        rows = representation.rows(graph.seeds, training_only=False)
        encoded = rows.map(partial(_encoded, graph, representation))
        table = runtime.table(encoded, graph.config.latents.resources).sort_by("model_id")
        seconds = float(table.column("cpu_seconds").to_numpy().sum())
        table = table.drop_columns(["cpu_seconds"])
        with artifact.open_output(LATENTS) as stream:
            pq.write_table(table, stream, write_page_checksum=True)
    held_out = table.column("held_out").to_numpy()
    error = table.column("error").to_numpy()
    artifact.commit(
        files=[LATENTS],
        rows={LATENTS: len(table)},
        metrics={
            "latent_size": table.schema.field("latent").type.list_size,
            # Mean squared, in units in which the training members' features have variance one.
            "reconstruction_error": {
                "training": float(error[~held_out].mean()),
                "held_out": float(error[held_out].mean()) if held_out.any() else None,
            },
        },
        cost=cost_of_pieces([Cost(cpu_seconds=seconds)], watch.cost.wall_seconds),
    )


def _encoded(graph: Graph, representation: Representation, rows: pa.Table) -> pa.Table:
    """``model_id, trunk, held_out, latent, error`` of rows with ``features``, and CPU seconds."""
    started, model = time.process_time(), graph.config.autoencoder.model
    resources = graph.config.latents.resources
    device = settle(resources.cpus, resources.num_gpus)
    autoencoder = model.build(representation.num_features).to(device).eval()
    autoencoder.load_state_dict(load_weights(graph.autoencoder, WEIGHTS))
    with torch.no_grad():
        x_KF = torch.tensor(from_vectors(rows.column("features")), device=device)
        z_KZ = autoencoder.encode(x_KF)
        error_K = (autoencoder.decode(z_KZ) - x_KF).square().mean(dim=1)
    share = (time.process_time() - started) / max(1, len(rows))
    found = {
        "latent": vectors(z_KZ.cpu().numpy()),
        "error": error_K.cpu().numpy(),
        "cpu_seconds": np.full(len(rows), share),
    }
    return pa.table({name: rows.column(name) for name in FACTS} | found)
