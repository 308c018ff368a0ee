"""A population once it is stored: its files, its layout, its members a block at a time.

Shape letters: K members, R roots, T trunks, P parameters of a member, W of a whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bend_ray.artifacts.shards import read_columns, read_format, read_population
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import DIRECTORY, load_weights
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Shape
from bend_ray.errors import StoreError
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.process.matrix import BLOCK_BYTES, HELD_BYTES, STORED_COLUMNS
from bend_ray.storage.masking import cause

LAYOUT = "layout.json"
"""The file of the layout of a member's vector."""
ROOTS = "roots.safetensors"
"""The file of whole models, ``theta (R, W)``: what runs start from, and members share."""
EARLY = "early-"
"""What the names of the files of early means begin with."""


def roots_name(chunk: int) -> str:
    """The file of some roots as they were trained, until all are aligned and stored."""
    return f"{DIRECTORY}/roots-{chunk:05d}.safetensors"


def early_name(index: int) -> str:
    """The file of a shard's means of early checkpoints, ``theta (R, P)`` and ``trunk (R,)``."""
    return f"{EARLY}{index:05d}.safetensors"


def load_roots(seeds: Artifact) -> Tensor:
    """The whole vectors of a population's roots ``(R, W)``; StoreError where it has none."""
    return load_weights(seeds, ROOTS)["theta"]


def load_early(seeds: Artifact, trunks: int, num_parameters: int) -> Tensor:
    """Means of each trunk's early checkpoints ``(T, P)``; nan for a trunk that diverged."""
    early_TP = torch.full((trunks, num_parameters), torch.nan)
    for file in seeds.manifest().files:
        if file.name.startswith(EARLY):
            means = load_weights(seeds, file.name)
            early_TP[means["trunk"]] = means["theta"]
    return early_TP


def read_layout(seeds: Artifact) -> ParameterLayout:
    """The layout of a trained population's vectors.

    CorruptArtifact where it is none, StoreError where it cannot be read.
    """
    try:
        return ParameterLayout.from_json(seeds.read_json(LAYOUT))
    except ValueError as error:
        raise seeds.corrupt(LAYOUT, cause(error)) from error


class StoredVectors:
    """The vectors of a population, or of some of its models, read as they are asked for."""

    def __init__(self, population: Artifact, rows: ArrayLike | None = None) -> None:
        self._population = population
        every = range(population.manifest().metrics["models"]) if rows is None else rows
        self._rows = np.asarray(every, np.intp)
        self._size = read_format(population).num_parameters
        self._held = range(0), torch.empty(0)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self._rows), self._size

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: tuple[Any, Any]) -> Tensor:
        """Some rows (a slice or their numbers) of a slice of the columns."""
        rows, columns = index
        start, stop, _ = columns.indices(self._size)
        first, last = start - start % STORED_COLUMNS, -(-stop // STORED_COLUMNS) * STORED_COLUMNS
        if fits := 4 * len(self) * self._size <= BLOCK_BYTES:
            first, last = 0, self._size
        held = range(first, min(last, self._size))
        is_read_again = fits or held != range(start, stop)
        if is_read_again and 4 * len(self) * len(held) <= HELD_BYTES:
            if self._held[0] != held:
                self._held = range(0), torch.empty(0)
                self._held = held, self._read(self._rows, slice(held.start, held.stop))
            return self._held[1][rows][:, start - first : stop - first]
        # A tensor of one number is an index to numpy, and no list of one.
        own = rows if isinstance(rows, slice) else np.asarray(rows, np.intp)
        return self._read(self._rows[own], columns)

    def _read(self, rows: Any, columns: slice) -> Tensor:
        start, stop, _ = columns.indices(self._size)
        return torch.from_numpy(read_columns(self._population, start, stop, rows))


def learnt_vectors(seeds: Artifact) -> tuple[StoredVectors, Tensor]:
    """The members that the generator learns from, and their trunks ``(T,)``."""
    members = read_population(seeds, theta=False)
    rows = np.flatnonzero(~members.held_out)
    return StoredVectors(seeds, rows), torch.from_numpy(members.trunk[rows]).long()


def member_states(
    config: PipelineConfig, graph: Graph, rows: Sequence[int], input_shape: Shape, num_classes: int
) -> dict[str, Tensor]:
    """The whole state of some members of the generated population.

    ``rows`` are their places in it, such as ``bag.members`` of an evaluation. Gives ``{name:
    (len(rows), *shape)}``, float32: parameters and floating-point buffers. StoreError where the
    vectors are of another architecture.
    """
    module = config.seeds.architecture.build(input_shape, num_classes)
    whole = ParameterLayout.of(module)
    layout = ParameterLayout.of(module, config.parameters.include)
    population = read_population(graph.samples)
    if population.layout_digest != layout.digest:
        raise StoreError(
            f"expected classifiers of layout {layout.digest}, {graph.samples!r} holds those of "
            f"{population.layout_digest}; run `bend run` again with this version"
        )
    chosen = population.select(rows)
    own = layout.unflatten(torch.from_numpy(chosen.theta_KP))
    if layout.size == whole.size:
        return own
    # The rest is that of the trunk a member descends from.
    roots_RW = load_roots(graph.seeds)
    return whole.unflatten(roots_RW[torch.from_numpy(chosen.trunk).long()]) | own
