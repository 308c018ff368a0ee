"""Stage 1, seeds: Ray actors train cohorts of models, each cohort a shard.

Roots (trunks, bases) are trained first, aligned and stored once; then actors take cohorts of runs
in turn. A cohort needs nothing but the config, its index and the roots, so one whose actor dies is
trained again by another, and nothing else is.
"""

from __future__ import annotations

import logging
from functools import partial

from bend_ray.artifacts.cost import Stopwatch, read_cost
from bend_ray.artifacts.events import population_progress, write_events
from bend_ray.artifacts.shards import shard_name
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import DIRECTORY, last_left
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import DataError
from bend_ray.networks.checkpoints import KEY
from bend_ray.networks.protocols import Checkpoints, Varied
from bend_ray.populations.divergence import all_diverged, commit_left, done_shards, left_rows
from bend_ray.populations.members import EARLY, LAYOUT, ROOTS, roots_name
from bend_ray.populations.networks import Classifiers, checked
from bend_ray.process.log import ProgressLine
from bend_ray.runtime.interface import Runtime, Workers, split
from bend_ray.stages.seed_trainer import (
    CheckpointReader,
    ContestTrainer,
    SeedTrainer,
    cohorts_of,
)

logger = logging.getLogger(__name__)

WORKERS: dict[type, type[SeedTrainer]] = {Checkpoints: CheckpointReader, Varied: ContestTrainer}

FEW_EXAMPLES = 100
"""To fit a temperature on: its standard error is a few tenths of itself there."""
HELD = 2 * 4
"""Bytes of a parameter of a cohort's models: held once as they come, and once as a shard."""


def make(graph: Graph, runtime: Runtime, name: str = "seeds") -> None:
    """Train the population of ``config.seeds`` and commit it; progress is of this name."""
    config, artifact, section = graph.config, graph.seeds, graph.config.seeds
    with Stopwatch() as watch:
        dataset = runtime.share(config.dataset)
        classifiers = checked(config, dataset.load())
        cohorts = cohorts_of(section, classifiers.layout.size)
        rows = {index: size for cohort in cohorts for index, size in cohort.rows().items()}
        done = done_shards(artifact, rows)
        missing = [n for n, cohort in enumerate(cohorts) if not cohort.shards.keys() <= done]
        with ProgressLine(name, sum(rows.values()), "models") as progress:
            progress.update(sum(rows[index] for index in done))
            if missing:
                _tell(config, classifiers, name)
                most = max(len(cohort.runs) * cohort.chunk for cohort in cohorts)
                worker = WORKERS.get(type(section.protocol), SeedTrainer)
                with runtime.workers(
                    *(worker, config, artifact, dataset),
                    resources=runtime.holding(
                        "seeds", section.resources, HELD * most * classifiers.layout.size
                    ),
                ) as trainers:
                    _make_roots(artifact, section.protocol.num_roots, section.cohort_size, trainers)
                    how_far = partial(last_left, artifact, "{}/")
                    for number, _ in trainers.run("train_cohort", missing, how_far):
                        done |= cohorts[number].shards.keys()
                        progress.update(sum(rows[index] for index in done))
    _commit(graph, rows, watch.cost.wall_seconds)


def _tell(config: PipelineConfig, classifiers: Classifiers, name: str) -> None:
    protocol = config.seeds.protocol
    if protocol.align and (
        isinstance(protocol, Checkpoints) or protocol.num_roots > 1 or not protocol.branches
    ):
        logger.info("%-12s aligned by %s", name, classifiers.symmetries)
    if config.seeds.recipe.label_smoothing and not classifiers.dataset.task.has_classes:
        logger.info("%-12s no label_smoothing, as numbers are learnt and no classes", name)
    num_validation = len(classifiers.dataset.validation)
    few = config.evaluation.temperature_scaling and num_validation < FEW_EXAMPLES
    if few and name == "seeds":
        logger.warning(
            "seeds        %d validation examples hardly fix a temperature; %d or more would, or "
            "set evaluation.temperature_scaling=false",
            *(num_validation, FEW_EXAMPLES),
        )
    if classifiers.shares_a_base:
        logger.info(
            "seeds        %d of %d parameters are a member's own, the rest is its trunk's",
            classifiers.layout.size,
            classifiers.whole.size,
        )


def _make_roots(artifact: Artifact, num_roots: int, cohort_size: int, trainers: Workers) -> None:
    """Train what the runs start from, unless an earlier attempt did."""
    if num_roots == 0 or ROOTS in artifact.list_files():
        return
    chunks = range(len(split(range(num_roots), cohort_size)))
    there = artifact.list_files(DIRECTORY)
    missing = [n for n in chunks if roots_name(n) not in there]
    for _ in trainers.run("train_roots", missing, partial(last_left, artifact, "roots-{}-")):
        pass
    for _ in trainers.run("store_roots", [chunks]):
        pass


def _commit(graph: Graph, rows: dict[int, int], wall_seconds: float) -> None:
    artifact, section = graph.seeds, graph.config.seeds
    left = [index for index, count in left_rows(artifact, rows).items() if count]
    if not left and isinstance(section.protocol, Checkpoints):
        raise DataError(
            f"{KEY}: expected checkpoints that give finite losses, got none; take others"
        )
    if not left:
        raise all_diverged(f"all {sum(rows.values())} models")
    roots = [ROOTS] if section.protocol.num_roots else []
    events = write_events(artifact, population_progress(artifact, [*map(shard_name, left)]))
    commit_left(
        *(artifact, rows, wall_seconds),
        files=[LAYOUT, *artifact.list_files(EARLY), *roots, events],
        priced=roots,
        metrics={
            "root_cpu_seconds": sum(read_cost(artifact, root).cpu_seconds for root in roots),
            "priced": not isinstance(section.protocol, Checkpoints)
            or section.protocol.seconds is not None,
        },
    )
