"""Stage 1, seeds: Ray actors train cohorts of models, each cohort a shard.

Roots (trunks, bases) are trained first, aligned and stored once; then actors take cohorts of runs
in turn. A cohort needs nothing but the config, its index and the roots, so one whose actor dies is
trained again by another, and nothing else is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import ray
import torch
from torch import Tensor

from bend_ray.artifacts.cost import (
    COST_DIRECTORY,
    Cost,
    Stopwatch,
    read_cost,
    read_costs,
    write_cost,
)
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import complete_shards, shard_name, write_shard
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import ROOTS, load_roots, save_weights
from bend_ray.classifiers.fitting import fit, initial_parameters, stretch_marks
from bend_ray.classifiers.protocols import Protocol, Stretch, held_out_ids
from bend_ray.classifiers.stacking import Stack
from bend_ray.config import PipelineConfig
from bend_ray.errors import TrainingError
from bend_ray.log import Progress
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.symmetry import align
from bend_ray.plan import Plan
from bend_ray.randomness import generator_for, seed_for
from bend_ray.stages import capacity, cluster
from bend_ray.stages.classifiers import (
    Classifiers,
    SharedDataset,
    members_by_trunk,
    share_dataset,
)
from bend_ray.stages.events import population_progress, write_events
from bend_ray.stages.pool import Pool, split

LAYOUT = "layout.json"


logger = logging.getLogger(__name__)


def read_layout(seeds: Artifact) -> ParameterLayout:
    """The layout of a trained population's vectors."""
    return ParameterLayout.from_json(seeds.read_json(LAYOUT))


def make(config: PipelineConfig, plan: Plan) -> None:
    """Train the population of ``config.seeds`` and commit it."""
    artifact, section = plan.seeds, config.seeds
    cohorts = split(section.protocol.runs(), section.cohort_size)
    rows = {index: sum(len(run) for run in cohort) for index, cohort in enumerate(cohorts)}
    done = complete_shards(artifact, rows)
    missing = sorted(set(rows) - done)
    with Stopwatch() as watch, Progress("seeds", sum(rows.values()), "models") as progress:
        progress.update(sum(rows[index] for index in done))
        if missing:
            dataset = share_dataset(config.dataset)
            _tell_what_is_shared(Classifiers(config, dataset.load(), "cpu"))
            if _would_align(section.protocol) and not section.architecture.permutation_groups():
                kind = section.architecture.kind
                logger.info("seeds        not aligned: no permutations of %s are known", kind)
            with _trainers(config, artifact, dataset, len(missing)) as trainers:
                _make_roots(artifact, section.protocol.num_roots, section.cohort_size, trainers)
                for index, _ in trainers.run("train_cohort", missing):
                    done.add(index)
                    progress.update(sum(rows[index] for index in done))
    _commit(artifact, rows, section.protocol.num_roots > 0, watch.cost.wall_seconds)


def _would_align(protocol: Protocol) -> bool:
    """Whether there are models that could be aligned to another."""
    return protocol.align and (protocol.num_roots > 1 or not protocol.branches)


def _tell_what_is_shared(classifiers: Classifiers) -> None:
    """Say what members share; that the architecture fits was told when they were built."""
    if classifiers.shares_a_base:
        logger.info(
            "seeds        %d of %d parameters are a member's own, the rest is its trunk's",
            classifiers.layout.size,
            classifiers.whole.size,
        )


def _trainers(
    config: PipelineConfig, artifact: Artifact, dataset: SharedDataset, pieces: int
) -> Pool:
    """As many ``SeedTrainer`` as the resources say and the pieces need."""
    resources = config.seeds.resources
    trainer = ray.remote(**cluster.options(resources))(SeedTrainer)
    size = cluster.num_actors(resources, pieces)
    return Pool(lambda: trainer.remote(config, artifact, dataset), size, capacity.situation)


def _make_roots(artifact: Artifact, num_roots: int, cohort_size: int, trainers: Pool) -> None:
    """Train what the runs start from, unless an earlier attempt did."""
    if num_roots == 0 or any(file.name == ROOTS for file in artifact.list_files()):
        return
    chunks = range(len(split(range(num_roots), cohort_size)))
    trained = dict(trainers.run("train_roots", chunks))
    for _ in trainers.run("store_roots", [[trained[chunk] for chunk in chunks]]):
        pass


def _commit(artifact: Artifact, rows: dict[int, int], has_roots: bool, wall_seconds: float) -> None:
    roots = [ROOTS] if has_roots else []
    costs = read_costs(artifact, [*map(shard_name, rows), *roots])
    root_cost = sum((costs[name] for name in roots), Cost())
    events = write_events(artifact, population_progress(artifact, map(shard_name, rows)))
    artifact.commit(
        files=[LAYOUT, *costs, events],
        rows={shard_name(index): count for index, count in rows.items()},
        metrics={"models": sum(rows.values()), "root_cpu_seconds": root_cost.cpu_seconds},
        cost=cluster.total(list(costs.values()), wall_seconds),
    )
    artifact.discard(COST_DIRECTORY)


class SeedTrainer:
    """An actor that trains roots and cohorts; it keeps the data, and no other state.

    Args:
        config: of the pipeline.
        artifact: where shards go.
        dataset: of the config.
    """

    def __init__(self, config: PipelineConfig, artifact: Artifact, dataset: SharedDataset) -> None:
        self.section = config.seeds
        self.seed = config.seed
        self.artifact = artifact
        self.device = cluster.settle(self.section.resources)
        self.classifiers = Classifiers(
            config, dataset.load(), self.device, partial(load_roots, artifact)
        )
        self.runs = self.section.protocol.runs()
        self.cohorts = split(self.runs, self.section.cohort_size)
        share = generator_for(self.seed, "held out")
        self.held_out = held_out_ids(self.runs, self.section.held_out, share)

    def train_roots(self, chunk: int) -> tuple[Tensor, Cost]:
        """Train one cohort of roots; whole vectors ``(R, W)`` and what they cost."""
        ids = split(range(self.section.protocol.num_roots), self.section.cohort_size)[chunk]
        with self._stopwatch() as watch:
            start_RW = torch.stack([self._fresh("root", root) for root in ids])
            stretch = self.section.protocol.root_stretch(self.section.recipe)
            generators = [generator_for(self.seed, "root order", root) for root in ids]
            theta_RW = self._fit(self.classifiers.stack, start_RW, stretch, generators)[-1]
        _check_finite(theta_RW, [f"root {root}" for root in ids])
        return theta_RW, watch.cost

    def store_roots(self, trained: list[tuple[Tensor, Cost]]) -> None:
        """Align all roots to the first and store them."""
        with self._stopwatch() as watch:
            theta_RW = torch.cat([theta for theta, _ in trained])
            if self.section.protocol.align:
                theta_RW = self._align(theta_RW[0], theta_RW)
        cost = sum((cost for _, cost in trained), watch.cost)
        write_cost(self.artifact, ROOTS, cost)
        save_weights(self.artifact, ROOTS, {"theta": theta_RW})

    def train_cohort(self, index: int) -> None:
        """Train one cohort and write its shard."""
        cohort, protocol = self.cohorts[index], self.section.protocol
        trunks = [run[0].trunk for run in cohort]
        root_seconds = 0.0
        with self._stopwatch() as watch:
            if protocol.num_roots:
                roots_RW = load_roots(self.artifact)
                root_seconds = read_cost(self.artifact, ROOTS).cpu_seconds
            if protocol.branches:
                start_RP = self.classifiers.own(roots_RW)[trunks]
            else:
                start_RP = torch.stack([self._fresh("start", run[0].fork) for run in cohort])
            stretch = protocol.run_stretch(self.section.recipe)
            generators = [
                generator_for(self.seed, "run", run[0].trunk, run[0].fork) for run in cohort
            ]
            theta_RSP = self._fit_runs(start_RP, trunks, stretch, generators)
            theta_KP = theta_RSP.flatten(0, 1)
            if protocol.align and not protocol.branches:
                theta_KP = self._align(roots_RW[0], theta_KP)
            members = [member for run in cohort for member in run]
            _check_finite(theta_KP, [f"model {member.model_id}" for member in members])
            val_accuracy_K, val_nll_K = self.classifiers.validate(
                theta_KP, [member.trunk for member in members]
            )
        all_members = self.section.num_models
        steps = self._steps(stretch)
        population = Population(
            model_id=np.array([m.model_id for m in members]),
            trunk=np.array([m.trunk for m in members]),
            fork=np.array([m.fork for m in members]),
            step=np.array([steps[m.snapshot] for m in members]),
            seed=np.array([seed_for(self.seed, "run", m.trunk, m.fork) for m in members]),
            held_out=np.array([m.model_id in self.held_out for m in members]),
            val_accuracy=val_accuracy_K.numpy(),
            val_nll=val_nll_K.numpy(),
            # A member costs its part of the cohort, and its part of the roots.
            fit_seconds=np.full(
                len(members),
                watch.cost.cpu_seconds / len(members) + root_seconds / all_members,
            ),
            origin="trained",
            theta_KP=theta_KP.numpy(),
            layout_digest=self.classifiers.layout.digest,
        )
        if index == 0:
            self.artifact.write_json(LAYOUT, self.classifiers.layout.to_json())
        # The cost first: where the shard is whole, its cost is there.
        write_cost(self.artifact, shard_name(index), watch.cost)
        write_shard(self.artifact, index, population)

    def _stopwatch(self) -> Stopwatch:
        return Stopwatch(self.section.resources.gpus if self.device == "cuda" else 0.0)

    def _fresh(self, purpose: str, index: int) -> Tensor:
        seed = seed_for(self.seed, purpose, index)
        return initial_parameters(self.classifiers.build, self.classifiers.whole.flatten, seed)

    def _fit_runs(
        self,
        start_RP: Tensor,
        trunks_R: Sequence[int],
        stretch: Stretch,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Snapshots ``(R, S, P)`` of the runs; those that share a base are fitted together."""
        shares = self.classifiers.shares_a_base
        groups = members_by_trunk(trunks_R if shares else [0] * len(trunks_R))
        fitted: dict[int, Tensor] = {}
        for trunk, rows in groups.items():
            stack, start = self.classifiers.stack_of(trunk), start_RP[rows]
            theta_SRP = self._fit(stack, start, stretch, [generators[row] for row in rows])
            fitted |= dict(zip(rows, theta_SRP.unbind(dim=1), strict=True))
        return torch.stack([fitted[row] for row in range(len(trunks_R))])

    def _fit(
        self,
        stack: Stack,
        start_RP: Tensor,
        stretch: Stretch,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Snapshots ``(S, R, P)`` on the CPU."""
        dataset = self.classifiers.dataset
        return fit(
            stack,
            start_RP.to(self.device),
            dataset.train,
            dataset.normalise,
            self.section.recipe,
            stretch,
            generators,
        ).cpu()

    def _align(self, reference_P: Tensor, theta_KP: Tensor) -> Tensor:
        groups = self.section.architecture.permutation_groups()
        generator = generator_for(self.seed, "align")
        return align(reference_P, theta_KP, self.classifiers.whole, groups, generator)

    def _steps(self, stretch: Stretch) -> list[int]:
        """Optimizer steps behind each snapshot, counted from the start of the recipe."""
        num_images, recipe = len(self.classifiers.dataset.train), self.section.recipe
        first = recipe.num_steps(stretch.start, num_images)
        return [first + step for step in stretch_marks(recipe, stretch, num_images)]


def _check_finite(theta_KP: Tensor, names: Sequence[str]) -> None:
    finite_K = theta_KP.isfinite().all(dim=1).tolist()
    broken = [name for name, finite in zip(names, finite_K, strict=True) if not finite]
    if broken:
        raise TrainingError(
            f"seeds: expected finite parameters, {len(broken)} of {len(names)} diverged "
            f"({', '.join(broken[:5])}); lower seeds.recipe.optimizer.learning_rate"
        )
