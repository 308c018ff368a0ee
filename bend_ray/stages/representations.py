"""How the weight-space models are given a classifier, and how what they draw becomes one again.

A representation is fitted on the training members of a population, which it streams over part by
part, and is stored beside the autoencoder. ``Principal`` is lossless principal coefficients: few,
whatever the number of parameters. ``Standardised`` is the parameters themselves.

Shape letters: K members, T training members, F features, P parameters, N drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load, save
from torch import Tensor

from bend_ray.artifacts.cost import Cost, Stopwatch, read_cost, write_cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import listed_shards, read_format, read_population
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import load_weights, save_weights
from bend_ray.config.resources import Resources
from bend_ray.parameters.features import PrincipalBasis, Standardizer, gram, gram_sums, mix
from bend_ray.populations.members import StoredVectors, learnt_vectors, read_layout
from bend_ray.process.matrix import BLOCK_BYTES, column_slices
from bend_ray.runtime.interface import Rows, Runtime, split, vectors

FILE = "representation.safetensors"
GRAM_PARTS = 16
"""Ranges of columns whose Gram matrices are summed side by side; fixed, as sums depend on it."""

FACTS = ("model_id", "trunk", "held_out")
"""What is told of a classifier beside its vector."""

Decode = Callable[[Tensor], Tensor]


class Principal:
    """Principal coefficients of the standardised parameters: at most T - 1 a classifier."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.basis = PrincipalBasis(state["to_weights_RT"], state["scale"])
        self.coefficients_KF = state["coefficients_KF"]
        self.num_features = self.coefficients_KF.shape[1]

    @staticmethod
    def fit(seeds: Artifact, runtime: Runtime) -> tuple[dict[str, Tensor], Cost]:
        """One pass over the shards: each part sums the Gram matrices of a range of columns."""
        layout, vectors_KP = read_layout(seeds), StoredVectors(seeds)
        train_K = torch.from_numpy(~read_population(seeds, theta=False).held_out)
        blocks = list(column_slices(layout.size, len(train_K)))
        ranges = split(blocks, -(-len(blocks) // GRAM_PARTS))

        def sums(number: int) -> dict[str, Tensor]:
            read = (vectors_KP[:, own] for own in ranges[number])
            return gram_sums(layout, train_K, read, ranges[number][0].start)

        parts, cost = _states(runtime, len(ranges), sums)
        with Stopwatch() as watch:
            gram_KK = gram(parts, layout, train_K)
            basis, coefficients_KF = PrincipalBasis.fit(gram_KK, train_K)
        return {**vars(basis), "coefficients_KF": coefficients_KF}, watch.cost + cost

    def rows(self, seeds: Artifact, *, training_only: bool) -> Rows:
        """Rows ``model_id, trunk, held_out, features``."""
        members = read_population(seeds, theta=False)
        keep_K = ~members.held_out if training_only else np.full(len(members), True)
        features = vectors(self.coefficients_KF.numpy()[keep_K])
        columns = _facts(members.select(keep_K)) | {"features": features}
        return Rows(1, lambda _: pa.table(columns))

    def decoder(self, seeds: Artifact) -> Decode:
        """Features ``(N, F)`` to parameters ``(N, P)``: weighted sums of the training members.

        The members are read a block of columns at a time; those of a small population stay.
        """
        members_TP, _ = learnt_vectors(seeds)
        size = members_TP.shape[1]

        def decode(features_NF: Tensor) -> Tensor:
            weights_NT = self.basis.weights(features_NF)
            theta_NP = torch.empty(len(features_NF), size)
            for own in column_slices(size, len(self.coefficients_KF)):
                theta_NP[:, own] = mix(weights_NT, members_TP[:, own])
            return theta_NP

        return decode


class Standardised:
    """All parameters, with zero mean and every layer at unit scale."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.standardizer = Standardizer(**state)
        self.num_features = len(self.standardizer.mean_P)

    @staticmethod
    def fit(seeds: Artifact, runtime: Runtime) -> tuple[dict[str, Tensor], Cost]:
        """One pass over the shards, in one process."""
        layout, (members_TP, _) = read_layout(seeds), learnt_vectors(seeds)

        def fitted(_: int) -> dict[str, Tensor]:
            read = (members_TP[:, own] for own in column_slices(layout.size, len(members_TP)))
            return vars(Standardizer.fit(layout, read))

        ((state,), cost) = _states(runtime, 1, fitted)
        return state, cost

    def rows(self, seeds: Artifact, *, training_only: bool) -> Rows:
        """Rows ``model_id, trunk, held_out, features``."""
        standardizer = self.standardizer

        def standardise(members: Population) -> pa.Table:
            kept = members.select(~members.held_out) if training_only else members
            features_KF = standardizer.apply(torch.from_numpy(kept.theta_KP)).numpy()
            return pa.table(_facts(kept) | {"features": vectors(features_KF)})

        return _parts(seeds, standardise)

    def decoder(self, seeds: Artifact) -> Decode:
        """Features ``(N, P)`` to parameters ``(N, P)``."""
        return self.standardizer.invert


Representation = Principal | Standardised

_BY_FEATURES: dict[str, type[Principal] | type[Standardised]] = {
    "principal": Principal,
    "standardised": Standardised,
}


def fit_representation(
    features: str, seeds: Artifact, into: Artifact, runtime: Runtime
) -> tuple[Representation, Cost]:
    """Fit on a population's training members and store in ``into``, unless it is there."""
    if FILE not in into.list_files():
        state, cost = _BY_FEATURES[features].fit(seeds, runtime)
        write_cost(into, FILE, cost)
        save_weights(into, FILE, state)
    return load_representation(features, into), read_cost(into, FILE)


def load_representation(features: str, artifact: Artifact) -> Representation:
    """What ``fit_representation`` stored."""
    return _BY_FEATURES[features](load_weights(artifact, FILE))


def _states(
    runtime: Runtime, count: int, make: Callable[[int], dict[str, Tensor]]
) -> tuple[list[dict[str, Tensor]], Cost]:
    """Tensors by name that workers make, for every number below a count, in order; and the cost."""

    def made(number: int) -> pa.Table:
        with Stopwatch() as watch:
            state = save(make(number))
        return pa.table({"state": [state], "cpu_seconds": [watch.cost.cpu_seconds]})

    table = runtime.table(Rows(count, made), Resources())
    cpu_seconds = float(table.column("cpu_seconds").to_numpy().sum())
    return [*map(load, table.column("state").to_pylist())], Cost(cpu_seconds=cpu_seconds)


def _facts(members: Population) -> dict[str, Any]:
    return {name: getattr(members, name) for name in FACTS}


def _parts(seeds: Artifact, work: Callable[[Population], pa.Table]) -> Rows:
    """Rows that ``work`` makes of members; a part is whole files, of a block's size together.

    Ray's work for a part costs as much as reading 50 MB. The size is that of the parameters, not
    of the files, which differ by some bytes from run to run: sums follow the parts to the bit.
    """
    shards = listed_shards(seeds)
    models = sum(shard.rows or 0 for shard in shards)
    parts = -(-4 * models * read_format(seeds).num_parameters // BLOCK_BYTES)
    names = np.array_split([shard.name for shard in shards], min(parts, len(shards)))
    return Rows(len(names), lambda part: work(read_population(seeds, shards=names[part].tolist())))
