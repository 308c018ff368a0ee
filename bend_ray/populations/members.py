"""A trained population once it is stored: its files, its layout, its members a block at a time.

Shape letters: K members, R roots, T trunks, P parameters of a member, W of a whole model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bend_ray.artifacts.shards import read_columns, read_population
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import load_weights
from bend_ray.parameters.gram import ColumnBlock, column_blocks
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.storage.masking import cause

LAYOUT = "layout.json"
"""The file of the layout of a member's vector."""
ROOTS = "roots.safetensors"
"""The file of whole models, ``theta (R, W)``: what runs start from, and members share."""
EARLY = "early-"
"""What the names of the files of early means begin with."""
BLOCK_BYTES = 64 * 2**20
"""Parameters read at once: all members, as many columns as fit.

Centred in float64 they take six times as much, which with K x K sums is all that a process of the
codec holds, whatever the number of parameters.
"""


def early_name(index: int) -> str:
    """The file of a shard's means of early checkpoints, ``theta (R, P)`` and ``trunk (R,)``."""
    return f"{EARLY}{index:05d}.safetensors"


def load_roots(seeds: Artifact) -> Tensor:
    """The whole vectors of a population's roots ``(R, W)``.

    Raises:
        StoreError: it has none.
        CorruptArtifact: see ``load_weights``.
    """
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

    Raises:
        CorruptArtifact: it is none.
        StoreError: it cannot be read.
    """
    try:
        return ParameterLayout.from_json(seeds.read_json(LAYOUT))
    except ValueError as error:
        raise seeds.corrupt(LAYOUT, cause(error)) from error


def training_rows(seeds: Artifact) -> Tensor:
    """Which members the generator learns from, ``(K,)`` of bool; the others are held out."""
    return torch.from_numpy(~read_population(seeds, theta=False).held_out)


def training_trunks(seeds: Artifact) -> list[int]:
    """Trunks with a member that the generator learns from: all, unless some diverged."""
    members = read_population(seeds, theta=False)
    return sorted(set(members.trunk[~members.held_out].tolist()))


def member_blocks(layout: ParameterLayout, num_models: int) -> tuple[ColumnBlock, ...]:
    """Ranges of columns that so many members are read by, ``BLOCK_BYTES`` at once."""
    return column_blocks(layout.size, max(1, BLOCK_BYTES // (4 * num_models)))


def read_block(seeds: Artifact, block: ColumnBlock) -> Tensor:
    """Columns ``(K, B)`` of all members."""
    return torch.from_numpy(read_columns(seeds, block.start, block.stop))
