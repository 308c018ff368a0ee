"""Probes: does the generator draw classifiers that work? Asked on validation images.

A few are drawn half-way through its training, which stops there if none of them works, and all that
were drawn are looked at before they are committed. A drawn model works if it keeps a share of what
training members are better than chance. Nothing here changes what a run that goes on makes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bend_ray.artifacts.cost import Cost, Stopwatch
from bend_ray.artifacts.shards import read_population
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import TrainingError
from bend_ray.runtime.interface import Runtime, Shared
from bend_ray.stages.sample_drawer import SampleDrawer
from bend_ray.storage.filesystems import open_file, side_by_side

LEAST_SPREAD = 0.05
"""Samples with less of the members' spread are reported: they are one model a trunk, nearly."""
MOST_SPREAD = 20.0
"""Samples with more are reported too."""
CLEARLY = 3.0
"""Standard errors by which members must be better than chance, else nothing can be asked."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Floor:
    """What is asked of drawn models: their score (accuracy, or R^2) on validation examples."""

    chance: float
    """Of whoever never looks at an example."""
    members: float
    """The training members' median."""
    least: float | None
    """What one drawn model at least must reach; None where nothing can be asked."""

    @classmethod
    def of(
        cls, member_accuracy_K: NDArray[np.float32], by_chance: tuple[float, float], share: float
    ) -> Floor:
        """A share of the way from chance to the training members' median; 0 asks nothing.

        ``by_chance`` is what the task says of it, with its standard error.
        """
        members, (chance, error) = float(np.median(member_accuracy_K)), by_chance
        asked = share > 0 and members > chance + CLEARLY * error
        return cls(chance, members, chance + share * (members - chance) if asked else None)

    def require(self, accuracy_N: Sequence[float], none: str, then: str) -> None:
        """TrainingError where no model comes up to it: what none does, between these words."""
        least = -math.inf if self.least is None else self.least
        if any(accuracy >= least for accuracy in accuracy_N):
            return
        does = "is finite"
        if accuracy_N:
            does = (
                f"comes up to {100 * (self.least or 0.0):.1f} % in validation (the best has "
                f"{100 * max(accuracy_N):.1f} %, training members {100 * self.members:.1f} %, "
                f"chance {100 * self.chance:.1f} %)"
            )
        raise TrainingError(f"{none} {does}; {then}")


def check_generator(
    config: PipelineConfig, graph: Graph, runtime: Runtime, weights: str, step: int
) -> tuple[dict[str, Any], Cost]:
    """Draw a few classifiers with a milestone's file of weights; needs the latents.

    Returns what the manifest says of it, and what it cost. TrainingError where none of them works.
    """
    dataset, steps = runtime.share(config.dataset), config.generator.training.steps
    spread, accuracy, cost = runtime.run(
        _draw, config, graph, weights, dataset, resources=config.samples.resources
    )
    floor = _floor(config, graph, dataset)
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


def check_samples(
    config: PipelineConfig, graph: Graph, runtime: Runtime, shards: Sequence[str]
) -> None:
    """Look at all that were drawn, before they are committed; TrainingError where none works."""
    accuracy = np.concatenate(side_by_side(partial(_accuracy, graph), shards)).tolist()
    _floor(config, graph, runtime.share(config.dataset)).require(
        accuracy,
        f"samples: the generator collapsed: none of {len(accuracy)} drawn models",
        "train it for longer, or set generator.probes.floor to 0",
    )


def _accuracy(graph: Graph, shard: str) -> NDArray[np.float32]:
    path = graph.samples.child(shard)
    with open_file(graph.samples.filesystem, path) as source, pq.ParquetFile(source) as file:
        column: NDArray[np.float32] = file.read(columns=["val_accuracy"])[0].to_numpy()
    return column


def _floor(config: PipelineConfig, graph: Graph, dataset: Shared) -> Floor:
    members = read_population(graph.seeds, theta=False)
    its = dataset.load()
    chance = its.task.chance(its.validation.labels_N)
    learnt = members.val_accuracy[~members.held_out]
    return Floor.of(learnt, chance, config.generator.probes.floor)


def _draw(
    config: PipelineConfig, graph: Graph, weights: str, shared: Shared
) -> tuple[float, list[float], Cost]:
    """Spread, in that of the training members, and accuracy of the probes; runs as a Ray task."""
    with Stopwatch() as watch:
        # Annealing would make working models of anything.
        samples = config.samples.model_copy(update={"finish": None})
        unfinished = config.model_copy(update={"samples": samples})
        drawer = SampleDrawer(unfinished, graph, shared, weights)
        ids = range(_num_probes(config))
        unit_NZ = drawer.scale.apply(drawer.latents(ids), drawer.conditions(ids))
        accuracy_N = drawer.classifiers_of(ids).val_accuracy
    return unit_NZ.square().mean().sqrt().item(), accuracy_N.tolist(), watch.cost
