"""Stage 3, latents: Ray Data encodes the whole population, the held-out members too."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bend_ray.artifacts.cost import Cost, Stopwatch
from bend_ray.artifacts.weights import load_weights
from bend_ray.config.graph import Plan
from bend_ray.config.schema import PipelineConfig
from bend_ray.runtime import cluster
from bend_ray.stages.autoencoder import WEIGHTS
from bend_ray.stages.representations import load_representation

FILE = "latents.parquet"


def make(config: PipelineConfig, plan: Plan) -> None:
    """Encode ``plan.seeds`` and commit one row a member: its latent and how well it comes back."""
    artifact, resources = plan.latents, config.latents.resources
    model = config.autoencoder.model
    with Stopwatch() as watch:
        representation = load_representation(model.features, plan.autoencoder)

        def encode(batch: dict[str, np.ndarray]) -> dict[str, Any]:
            started = time.process_time()
            device = cluster.settle(resources)
            autoencoder = model.build(representation.num_features).to(device).eval()
            autoencoder.load_state_dict(load_weights(plan.autoencoder, WEIGHTS))
            with torch.no_grad():
                x_KF = torch.tensor(batch["features"], device=device)
                z_KZ = autoencoder.encode(x_KF)
                error_K = (autoencoder.decode(z_KZ) - x_KF).square().mean(dim=1)
            kept = {name: batch[name] for name in ("model_id", "trunk", "held_out")}
            share = (time.process_time() - started) / len(z_KZ)
            return {
                **kept,
                "latent": z_KZ.cpu().numpy(),
                "error": error_K.cpu().numpy(),
                "cpu_seconds": np.full(len(z_KZ), share),
            }

        rows = (
            representation.dataset(plan.seeds, training_only=False)
            .map_batches(encode, batch_size=None, **cluster.options(resources))
            .to_pandas()
            .sort_values("model_id")
        )
        with artifact.open_output(FILE) as stream:
            pq.write_table(_table(rows), stream, write_page_checksum=True)
    held_out = rows["held_out"].to_numpy()
    error = rows["error"].to_numpy()
    seconds = float(rows["cpu_seconds"].sum())
    artifact.commit(
        files=[FILE],
        rows={FILE: len(rows)},
        metrics={
            "latent_size": model.latent_size,
            # Mean squared, in units in which the training members' features have variance one.
            "reconstruction_error": {
                "training": float(error[~held_out].mean()),
                "held_out": float(error[held_out].mean()) if held_out.any() else None,
            },
        },
        cost=cluster.total([Cost(cpu_seconds=seconds)], watch.cost.wall_seconds),
    )


def _table(rows: Any) -> pa.Table:
    latents = np.stack(list(rows["latent"])).astype(np.float32)
    return pa.table(
        {
            "model_id": pa.array(rows["model_id"].to_numpy(), pa.int64()),
            "trunk": pa.array(rows["trunk"].to_numpy(), pa.int32()),
            "held_out": pa.array(rows["held_out"].to_numpy(), pa.bool_()),
            "latent": pa.FixedShapeTensorArray.from_numpy_ndarray(latents),
            "error": pa.array(rows["error"].to_numpy(), pa.float32()),
        }
    )
