"""The members' tensors, read out of a store.

``member_states`` is the only place that knows how a population keeps a classifier.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bend_ray.artifacts.shards import read_population
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import StoreError
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.populations.members import load_roots


def member_states(
    config: PipelineConfig,
    graph: Graph,
    rows: Sequence[int],
    input_shape: tuple[int, int, int],
    num_classes: int,
) -> dict[str, Tensor]:
    """The whole state of some members of the generated population.

    Args:
        config: of the pipeline.
        graph: its artifacts, committed up to the samples.
        rows: which members, by their place in the population (``bag.members`` of an evaluation).
        input_shape: channels, height and width.
        num_classes: of the data set.

    Returns:
        ``{name: (len(rows), *shape)}``, float32: parameters and floating-point buffers.

    Raises:
        StoreError: the vectors are of another architecture.
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
