"""Stage 3, latents: the whole population encoded, the held-out members too."""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bend_ray.artifacts.cost import Cost, Stopwatch, cost_of_pieces
from bend_ray.artifacts.weights import load_weights
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.process.computing import settle
from bend_ray.runtime.interface import Runtime, from_vectors, vectors
from bend_ray.stages.autoencoder import WEIGHTS
from bend_ray.stages.representations import Representation, load_representation

FILE = "latents.parquet"


def make(config: PipelineConfig, graph: Graph, runtime: Runtime) -> None:
    """Encode ``graph.seeds`` and commit one row a member: its latent and how well it comes back."""
    artifact, model = graph.latents, config.autoencoder.model
    with Stopwatch() as watch:
        representation = load_representation(model.features, graph.autoencoder)
        rows = representation.rows(graph.seeds, training_only=False)
        encoded = rows.map(partial(_encoded, config, graph, representation))
        table = runtime.table(encoded, config.latents.resources).sort_by("model_id")
        seconds = float(table.column("cpu_seconds").to_numpy().sum())
        # The canonical tensor type says its shape to whoever reads the file.
        column = pa.FixedShapeTensorArray.from_numpy_ndarray(from_vectors(table.column("latent")))
        table = table.drop_columns(["cpu_seconds"])
        table = table.set_column(table.column_names.index("latent"), "latent", column)
        with artifact.open_output(FILE) as stream:
            pq.write_table(table, stream, write_page_checksum=True)
    held_out = table.column("held_out").to_numpy()
    error = table.column("error").to_numpy()
    artifact.commit(
        files=[FILE],
        rows={FILE: len(table)},
        metrics={
            "latent_size": table.schema.field("latent").type.shape[0],
            # Mean squared, in units in which the training members' features have variance one.
            "reconstruction_error": {
                "training": float(error[~held_out].mean()),
                "held_out": float(error[held_out].mean()) if held_out.any() else None,
            },
        },
        cost=cost_of_pieces([Cost(cpu_seconds=seconds)], watch.cost.wall_seconds),
    )


def _encoded(
    config: PipelineConfig, graph: Graph, representation: Representation, rows: pa.Table
) -> pa.Table:
    """``model_id, trunk, held_out, latent, error`` of rows with ``features``, and CPU seconds."""
    started, model = time.process_time(), config.autoencoder.model
    device = settle(config.latents.resources.cpus, config.latents.resources.num_gpus)
    autoencoder = model.build(representation.num_features).to(device).eval()
    autoencoder.load_state_dict(load_weights(graph.autoencoder, WEIGHTS))
    with torch.no_grad():
        x_KF = torch.tensor(from_vectors(rows.column("features")), device=device)
        z_KZ = autoencoder.encode(x_KF)
        error_K = (autoencoder.decode(z_KZ) - x_KF).square().mean(dim=1)
    share = (time.process_time() - started) / max(1, len(rows))
    return pa.table(
        {
            "model_id": rows.column("model_id").cast(pa.int64()),
            "trunk": rows.column("trunk").cast(pa.int32()),
            "held_out": rows.column("held_out"),
            "latent": vectors(z_KZ.cpu().numpy()),
            "error": pa.array(error_K.cpu().numpy(), pa.float32()),
            "cpu_seconds": np.full(len(rows), share),
        }
    )
