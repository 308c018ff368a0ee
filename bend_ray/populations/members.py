"""A population once it is stored: its files, its layout, its members a block at a time.

Shape letters: K members, R roots, T trunks, P parameters of a member, W of a whole model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bend_ray.artifacts.checkpoint import DIRECTORY
from bend_ray.artifacts.shards import read_columns, read_population
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import load_weights
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Shape
from bend_ray.errors import StoreError
from bend_ray.parameters.gram import column_blocks
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


def training_rows(seeds: Artifact) -> Tensor:
    """Which members the generator learns from, ``(K,)`` of bool; the others are held out."""
    return torch.from_numpy(~read_population(seeds, theta=False).held_out)


def training_trunks(seeds: Artifact) -> list[int]:
    """Trunks with a member that the generator learns from: all, unless some diverged."""
    members = read_population(seeds, theta=False)
    return sorted(set(members.trunk[~members.held_out].tolist()))


def member_blocks(layout: ParameterLayout, num_models: int) -> tuple[range, ...]:
    """Ranges of columns that so many members are read by, ``BLOCK_BYTES`` at once."""
    return column_blocks(layout.size, max(1, BLOCK_BYTES // (4 * num_models)))


def read_block(seeds: Artifact, block: range) -> Tensor:
    """Columns ``(K, B)`` of all members."""
    return torch.from_numpy(read_columns(seeds, block.start, block.stop))


def member_states(
    config: PipelineConfig,
    graph: Graph,
    rows: Sequence[int],
    input_shape: Shape,
    num_classes: int,
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
    chosen = population.select(np.asarray(rows, dtype=np.intp))
    own = layout.unflatten(torch.from_numpy(chosen.theta_KP))
    if layout.size == whole.size:
        return own
    # The rest is that of the trunk a member descends from.
    roots_RW = load_roots(graph.seeds)
    return whole.unflatten(roots_RW[torch.from_numpy(chosen.trunk).long()]) | own


def member_facts(graph: Graph, rows: Sequence[int]) -> tuple[list[int], Tensor]:
    """Ids, and validation NLL ``(K,)`` in float64, of some members of the generated population."""
    population = read_population(graph.samples, theta=False)
    chosen = np.asarray(rows, dtype=np.intp)
    val_nll_K = torch.from_numpy(population.val_nll[chosen]).double()
    return population.model_id[chosen].tolist(), val_nll_K
