"""How the weight-space models are given a classifier, and how what they draw becomes one again.

A representation is fitted on the training members of a population, streams over it with Ray Data,
and is stored beside the autoencoder. ``Principal`` is lossless principal coefficients: few,
whatever the number of parameters. ``Standardised`` is the parameters themselves.

Shape letters: K members, T training members, F features, P parameters, N drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import ray.data
import torch
from torch import Tensor

from bend_ray.artifacts.cost import Cost, Stopwatch, read_cost, write_cost
from bend_ray.artifacts.shards import read_columns, read_population, shard_names
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.tables import theta_from_table
from bend_ray.artifacts.weights import load_weights, save_weights
from bend_ray.parameters.gram import PrincipalBasis, column_blocks, layer_grams, mix
from bend_ray.parameters.standardize import Moments, Standardizer
from bend_ray.stages.seeds import read_layout

FILE = "representation.safetensors"
BLOCK_BYTES = 256 * 2**20
"""Parameters a Gram task reads at once: all members, as many columns as fit."""

Decode = Callable[[Tensor], Tensor]


class Principal:
    """Principal coefficients of the standardised parameters: at most T - 1 a classifier."""

    def __init__(self, basis: PrincipalBasis, coefficients_KF: Tensor) -> None:
        self.basis = basis
        self.coefficients_KF = coefficients_KF

    @property
    def num_features(self) -> int:
        """F."""
        return self.coefficients_KF.shape[1]

    @classmethod
    def fit(cls, seeds: Artifact) -> tuple[Principal, Cost]:
        """One pass over the shards: each task sums the Gram matrices of a range of columns."""
        layout = read_layout(seeds)
        held_out_K = read_population(seeds, theta=False).held_out
        train_K = torch.from_numpy(~held_out_K)
        width = max(1, BLOCK_BYTES // (4 * len(train_K)))
        blocks = [{"start": b.start, "stop": b.stop} for b in column_blocks(layout.size, width)]

        def grams(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            with Stopwatch() as watch:
                start, stop = int(batch["start"][0]), int(batch["stop"][0])
                theta_KW = torch.from_numpy(read_columns(seeds, start, stop))
                grams_LKK = layer_grams(theta_KW, start, layout, train_K)
            return {
                "start": batch["start"],
                "grams": grams_LKK.numpy()[None],
                "cpu_seconds": np.array([watch.cost.cpu_seconds]),
            }

        rows = ray.data.from_items(blocks).map_batches(grams, batch_size=1).take_all()
        # Sums of floats depend on their order; that of arrival is anybody's.
        ordered = sorted(rows, key=lambda row: int(row["start"]))
        grams_LKK = sum(torch.from_numpy(np.array(row["grams"])) for row in ordered)
        assert isinstance(grams_LKK, Tensor)
        with Stopwatch() as watch:
            basis, coefficients_KF = PrincipalBasis.fit(grams_LKK, layout, train_K)
        return cls(basis, coefficients_KF), watch.cost + _cost_of(rows)

    def dataset(self, seeds: Artifact, *, training_only: bool) -> ray.data.Dataset:
        """Rows ``model_id, trunk, held_out, features``."""
        members = read_population(seeds, theta=False)
        keep_K = ~members.held_out if training_only else np.full(len(members), True)
        coefficients = self.coefficients_KF.numpy()[keep_K]
        columns = {
            "model_id": pa.array(members.model_id[keep_K]),
            "trunk": pa.array(members.trunk[keep_K]),
            "held_out": pa.array(members.held_out[keep_K]),
            "features": pa.FixedShapeTensorArray.from_numpy_ndarray(coefficients),
        }
        return ray.data.from_arrow(pa.table(columns))

    def decoder(self, seeds: Artifact) -> Decode:
        """Features ``(N, F)`` to parameters ``(N, P)``: weighted sums of the training members."""
        members = read_population(seeds)
        theta_TP = torch.from_numpy(members.theta_KP[~members.held_out])
        return lambda features_NF: mix(self.basis.weights(features_NF), theta_TP)

    def state(self) -> dict[str, Tensor]:
        """Tensors that ``from_state`` takes."""
        return {**self.basis.state(), "coefficients_KF": self.coefficients_KF}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Principal:
        """The representation saved by ``state``."""
        return cls(PrincipalBasis.from_state(state), state["coefficients_KF"])


class Standardised:
    """All parameters, with zero mean and every layer at unit scale."""

    def __init__(self, standardizer: Standardizer) -> None:
        self.standardizer = standardizer

    @property
    def num_features(self) -> int:
        """P."""
        return len(self.standardizer.mean_P)

    @classmethod
    def fit(cls, seeds: Artifact) -> tuple[Standardised, Cost]:
        """One pass over the shards: each task sums the moments of a block of members."""
        layout = read_layout(seeds)

        def moments(table: pa.Table) -> pa.Table:
            started = time.process_time()
            part = Moments.empty(layout.size)
            held_out = table.column("held_out").to_numpy()
            part.update(torch.from_numpy(theta_from_table(table)[~held_out]))
            first = table.column("model_id")[0].as_py()
            return pa.table(
                {
                    "model_id": [first],
                    "count": [part.count],
                    "mean": [part.mean_P.numpy().tobytes()],
                    "m2": [part.m2_P.numpy().tobytes()],
                    "cpu_seconds": [time.process_time() - started],
                }
            )

        rows = _shards(seeds).map_batches(moments, batch_format="pyarrow").take_all()
        merged = Moments.empty(layout.size)
        for row in sorted(rows, key=lambda row: int(row["model_id"])):
            sums = [torch.from_numpy(np.frombuffer(row[k]).copy()) for k in ("mean", "m2")]
            merged.merge(Moments(row["count"], *sums))
        return cls(Standardizer.fit(merged, layout)), _cost_of(rows)

    def dataset(self, seeds: Artifact, *, training_only: bool) -> ray.data.Dataset:
        """Rows ``model_id, trunk, held_out, features``."""
        standardizer = self.standardizer

        def standardise(table: pa.Table) -> dict[str, Any]:
            if training_only:
                table = table.filter(pa.compute.invert(table.column("held_out")))
            theta_KP = torch.from_numpy(np.array(theta_from_table(table)))
            columns = {n: table.column(n).to_numpy() for n in ("model_id", "trunk", "held_out")}
            return {**columns, "features": standardizer.apply(theta_KP).numpy()}

        return _shards(seeds).map_batches(standardise, batch_format="pyarrow")

    def decoder(self, seeds: Artifact) -> Decode:
        """Features ``(N, P)`` to parameters ``(N, P)``."""
        return self.standardizer.invert

    def state(self) -> dict[str, Tensor]:
        """Tensors that ``from_state`` takes."""
        return self.standardizer.state()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Standardised:
        """The representation saved by ``state``."""
        return cls(Standardizer.from_state(state))


Representation = Principal | Standardised

_BY_FEATURES: dict[str, type[Principal] | type[Standardised]] = {
    "principal": Principal,
    "standardised": Standardised,
}


def fit_representation(
    features: str, seeds: Artifact, into: Artifact
) -> tuple[Representation, Cost]:
    """Fit on a population's training members and store in ``into``, unless it is there."""
    if not any(file.name == FILE for file in into.list_files()):
        representation, cost = _BY_FEATURES[features].fit(seeds)
        write_cost(into, FILE, cost)
        save_weights(into, FILE, representation.state())
    return load_representation(features, into), read_cost(into, FILE)


def load_representation(features: str, artifact: Artifact) -> Representation:
    """What ``fit_representation`` stored."""
    return _BY_FEATURES[features].from_state(load_weights(artifact, FILE))


def _cost_of(rows: Iterable[dict[str, Any]]) -> Cost:
    return Cost(cpu_seconds=sum(float(row["cpu_seconds"]) for row in rows))


def _shards(seeds: Artifact) -> ray.data.Dataset:
    """The population's rows, one block a file or more."""
    paths = [seeds.child(name) for name in shard_names(seeds)]
    return ray.data.read_parquet(paths, filesystem=seeds.filesystem, override_num_blocks=len(paths))
