"""The actor of the seeds stage: trains roots and cohorts, or reads what somebody else has trained.

Shape letters: R roots or runs, S snapshots of a run, K models, W parameters of a whole model, P of
what is a member's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bend_ray.artifacts.cost import Cost, Stopwatch, read_cost, read_costs, write_cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import shard_name, write_shard
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import DIRECTORY, Checkpoint, load_weights, save_weights
from bend_ray.config.schema import PipelineConfig, SeedsSection
from bend_ray.data.files import File
from bend_ray.networks.checkpoints import listed_trunks, read_state
from bend_ray.networks.fitting import initial_parameters, stretch_marks
from bend_ray.networks.protocols import Checkpoints, Member, Run, held_out_ids
from bend_ray.parameters.symmetry import align
from bend_ray.populations.contest import Contest
from bend_ray.populations.divergence import Divergence, Outcome, all_diverged, finite_rows, note
from bend_ray.populations.members import LAYOUT, ROOTS, early_name, load_roots, roots_name
from bend_ray.populations.networks import Classifiers
from bend_ray.process.computing import settle
from bend_ray.randomness import generator_for, seed_for
from bend_ray.runtime.interface import Shared, split

SHARD_BYTES = 2**28
"""Parameters of a shard, and of what a cohort holds at once."""


@dataclass(frozen=True)
class Cohort:
    """Runs that one worker trains, together or one after another.

    It holds all that they leave for a shard until that is written, ``chunk`` members of each: where
    that is much it has fewer runs, and a run that leaves more than a shard holds is a cohort of
    several. ``shards`` are by index, what each has of every run.
    """

    runs: Sequence[Run]
    chunk: int
    shards: dict[int, list[Run]]

    def rows(self) -> dict[int, int]:
        """How many members each shard has."""
        return {index: sum(map(len, parts)) for index, parts in self.shards.items()}


def cohorts_of(section: SeedsSection, num_parameters: int) -> list[Cohort]:
    """The cohorts of a population of so many parameters; of others' checkpoints a trunk is one."""
    runs, most = section.protocol.runs(), max(1, SHARD_BYTES // (4 * num_parameters))
    members = len(runs[0])
    together = max(1, min(section.cohort_size // section.protocol.begun, most // members))
    if isinstance(section.protocol, Checkpoints):
        together, most = 1, members
    cohorts: list[Cohort] = []
    index = count()
    for own in split(runs, together):
        pieces = [[run[first : first + most] for run in own] for first in range(0, members, most)]
        shards = {next(index): parts for parts in pieces}
        cohorts.append(Cohort(own, min(most, members), shards))
    return cohorts


@dataclass(frozen=True)
class _Part:
    """What a run leaves for a shard: G members, and the mean of its early checkpoints."""

    seed: int
    theta_GP: Tensor
    val_accuracy_G: Tensor
    val_nll_G: Tensor
    early_P: Tensor
    step_G: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether the run has not diverged."""
        return bool(self.theta_GP.isfinite().all() and self.val_nll_G.isfinite().all())


Left = tuple[int, Sequence[int], Tensor, Tensor, Tensor]
"""The first snapshot that runs leave now, seeds, members ``(R, G, P)``, early means ``(R, P)``
or ``(R, 0)``, and steps ``(R, G)``."""


class SeedTrainer:
    """An actor that trains roots and cohorts into an artifact; it keeps the data, nothing else."""

    def __init__(self, config: PipelineConfig, artifact: Artifact, dataset: Shared) -> None:
        self.section = config.seeds
        self.seed = config.seed
        self.artifact = artifact
        self.device = settle(self.section.resources.cpus, self.section.resources.num_gpus)
        self.classifiers = Classifiers(config, dataset.load(), self.device, artifact)
        self.runs = self.section.protocol.runs()
        self.cohorts = cohorts_of(self.section, self.classifiers.layout.size)
        # A second attempt is one more fork of its trunk, beyond all that there are.
        self.first_spare = 1 + max(run[0].fork for run in self.runs)
        share = generator_for(self.seed, "held out")
        self.held_out = held_out_ids(self.runs, self.section.held_out, share)

    def train_roots(self, chunk: int) -> None:
        """Train and leave one cohort of roots; those that diverge once more, with other seeds."""
        num_roots, name = self.section.protocol.num_roots, roots_name(chunk)
        ids = list(split(range(num_roots), self.section.cohort_size)[chunk])
        sources = torch.tensor(ids)
        with self._stopwatch() as watch:
            keeps = [self._checkpoint(f"roots-{chunk}-{attempt}", watch) for attempt in (0, 1)]
            theta_RW = self._fit_roots(ids, keeps[0])
            if again := (~finite_rows(theta_RW)).nonzero().flatten().tolist():
                sources[again] += num_roots
                theta_RW[again] = self._fit_roots(sources[again].tolist(), keeps[1])
        note(self.artifact, name, [self._diverged_root(ids[r], theta_RW[r]) for r in again])
        write_cost(self.artifact, name, self._spent(keeps))
        save_weights(self.artifact, name, {"theta": theta_RW, "source": sources})

    def _fit_roots(self, indices: Sequence[int], keep: Checkpoint) -> Tensor:
        """Whole vectors ``(R, W)`` of the roots that these seed indices give."""
        start_RW = torch.stack([self._fresh("root", index) for index in indices])
        stretch = self.section.protocol.root_stretch(self.section.recipe)
        generators = [generator_for(self.seed, "root order", index) for index in indices]
        given = (start_RW, None, stretch, generators)
        ((_, theta_RSW, _),) = self.classifiers.fitted(*given, keep=keep)
        return theta_RSW[:, -1]

    def _checkpoint(self, name: str, watch: Stopwatch) -> Checkpoint:
        return Checkpoint(self.artifact, name, self.section.checkpoint_seconds, watch)

    def _diverged_root(self, root: int, theta_W: Tensor) -> Divergence:
        """The record of a root, of which the second attempt has left this."""
        well = bool(theta_W.isfinite().all())
        failed = root if well else root + self.section.protocol.num_roots
        outcome: Outcome = "retrained" if well else "dropped"
        seed = seed_for(self.seed, "root", failed)
        return Divergence(kind="root", trunk=root, seed=seed, outcome=outcome)

    def store_roots(self, chunks: Sequence[int]) -> None:
        """Align roots to the first that did not diverge, store them; TrainingError if all did."""
        names = [roots_name(chunk) for chunk in chunks]
        with self._stopwatch() as watch:
            found = [load_weights(self.artifact, name) for name in names]
            theta_RW, sources = (torch.cat([f[key] for f in found]) for key in ("theta", "source"))
            finite_R = finite_rows(theta_RW)
            if not finite_R.any():
                raise all_diverged(f"all {len(theta_RW)} roots")
            if self.section.protocol.align:
                theta_RW = self._align(theta_RW[finite_R.nonzero()[0, 0]], theta_RW)
        write_cost(self.artifact, ROOTS, sum(read_costs(self.artifact, names), watch.cost))
        save_weights(self.artifact, ROOTS, {"theta": theta_RW, "source": sources})

    def train_cohort(self, index: int) -> None:
        """Train one cohort and write its shards, those whose models did not all diverge.

        Runs that diverge are trained once more, with other seeds; meanwhile the others wait for
        them. A run alone writes its shards as they come, and a second attempt writes them anew.
        """
        cohort, watch = self.cohorts[index], self._stopwatch()
        keeps = [self._checkpoint(f"{index}/{attempt}", watch) for attempt in (0, 1)]
        protocol = self.section.protocol
        roots_RW = load_roots(self.artifact) if protocol.num_roots else torch.empty(0)
        todo = list(range(len(cohort.runs)))
        if protocol.branches:  # from roots, which may have diverged
            finite_R = finite_rows(roots_RW)
            todo = [r for r in todo if finite_R[cohort.runs[r][0].trunk]]
        lost = {r: 0 for r in range(len(cohort.runs)) if r not in todo}
        found: dict[int, _Part] = {}
        # Where a second attempt at several shards was begun, the first is known to diverge.
        for attempt in range(int(len(cohort.shards) > 1 and keeps[1].is_there), 2):
            failed = list[int]()
            for shard, parts in self._trained(cohort, todo, roots_RW, attempt, keeps[attempt]):
                found |= {r: part for r, part in parts.items() if part.is_finite}
                failed = [r for r in todo if r not in found]
                lost |= dict.fromkeys(failed, 1) if attempt else {}
                if not found or (failed and not attempt):
                    break
                again = todo if attempt else []
                self._write_found(shard, cohort, self._spent(keeps), found, again, lost)
                found = {}
            todo = failed
        if len(lost) == len(cohort.runs):
            for shard in cohort.shards:
                for name in (shard_name(shard), early_name(shard)):
                    self.artifact.discard(name)
                self._write_found(shard, cohort, self._spent(keeps), {}, [], lost)
        self.artifact.discard(f"{DIRECTORY}/{index}")

    def _trained(
        self,
        cohort: Cohort,
        rows: Sequence[int],
        roots_RW: Tensor,
        attempt: int,
        keep: Checkpoint,
    ) -> Iterator[tuple[int, dict[int, _Part]]]:
        """Shards, and what some runs leave for each by their rows.

        They have the seeds of their forks (attempt 0), or of spare ones (1).
        """
        if not rows:
            return
        runs, shards = [cohort.runs[r] for r in rows], list(cohort.shards)
        protocol, trunks = self.section.protocol, [run[0].trunk for run in runs]
        given = (runs, roots_RW, attempt, cohort.chunk, keep)
        for first, seeds, theta_RGP, early_RP, step_RG in self._left(*given):
            shape = theta_RGP.shape
            theta_KP = theta_RGP.flatten(0, 1)
            if protocol.align and not protocol.branches:
                theta_KP = self._align(roots_RW[0], theta_KP)
            owners = np.repeat(trunks, shape[1]).tolist()
            scores = (each.view(shape[:2]) for each in self.classifiers.validate(theta_KP, owners))
            parts = map(_Part, seeds, theta_KP.view(shape), *scores, early_RP, step_RG)
            yield shards[first // cohort.chunk], dict(zip(rows, parts, strict=True))

    def _left(
        self, runs: Sequence[Run], roots_RW: Tensor, attempt: int, chunk: int, keep: Checkpoint
    ) -> Iterator[Left]:
        """What runs leave, ``chunk`` members of each at a time."""
        stretch = self.section.protocol.run_stretch(self.section.recipe)
        start_RP, streams = self._starts(runs, roots_RW, attempt)
        trunks, seeds = [run[0].trunk for run in runs], [s.initial_seed() for s in streams]
        recipe, num_images = self.section.recipe, len(self.classifiers.dataset.train)
        before = recipe.num_steps(stretch.start, num_images)
        steps = before + torch.tensor(stretch_marks(recipe, stretch, num_images)[stretch.early :])
        for first, theta_RGP, early_RP in self.classifiers.fitted(
            *(start_RP, trunks, stretch, streams), chunk=chunk, keep=keep
        ):
            shape = theta_RGP.shape[:2]
            step_RG = steps[first : first + shape[1]].expand(shape)
            yield first, seeds, theta_RGP, early_RP, step_RG

    def _spent(self, keeps: Sequence[Checkpoint]) -> Cost:
        """What attempts cost since the last shard was written; from here on they count anew."""
        cost, watch = sum((keep.spent for keep in keeps), keeps[0].watch.cost), self._stopwatch()
        for keep in keeps:
            keep.watch, keep.spent = watch, Cost()
        return cost

    def _write_found(
        self,
        shard: int,
        cohort: Cohort,
        cost: Cost,
        found: Mapping[int, _Part],
        again: Sequence[int],
        lost: Mapping[int, int],
    ) -> None:
        """Write a shard of what was found of runs, unless that is nothing, and what diverged."""
        runs, is_first = cohort.shards[shard], shard == min(cohort.shards)
        diverged = [self._diverged(runs[r], attempt, True) for r, attempt in lost.items()]
        if is_first:
            diverged += [self._diverged(runs[r], 0, False) for r in again if r in found]
        rows = sorted(found)
        parts, members = [found[r] for r in rows], [m for r in rows for m in runs[r]]
        self._note(shard, cost, diverged)
        if not members:
            return
        early_RP = torch.stack([part.early_P for part in parts])
        seconds = cost.cpu_seconds / len(members)
        if self.section.protocol.num_roots:
            seconds += read_cost(self.artifact, ROOTS).cpu_seconds / self.section.num_models
        self._write(
            *(shard, members),
            early_RP=early_RP if is_first and early_RP.shape[1] else None,
            seed=np.repeat([part.seed for part in parts], len(parts[0].theta_GP)),
            val_accuracy=torch.cat([part.val_accuracy_G for part in parts]).numpy(),
            val_nll=torch.cat([part.val_nll_G for part in parts]).numpy(),
            theta_KP=torch.cat([part.theta_GP for part in parts]).numpy(),
            step=torch.cat([part.step_G for part in parts]).numpy(),
            fit_seconds=np.full(len(members), seconds),
        )

    def _note(self, index: int, cost: Cost, diverged: Sequence[Divergence]) -> None:
        """Note what a shard cost, and what diverged: before it, so that they are there with it."""
        if index == 0:
            self.artifact.write_note(LAYOUT, self.classifiers.layout.to_json())
        note(self.artifact, shard_name(index), diverged)
        write_cost(self.artifact, shard_name(index), cost)

    def _write(
        self, index: int, members: Sequence[Member], *, early_RP: Tensor | None, **columns: Any
    ) -> None:
        """Write a shard of members, and their trunks' early means."""
        if early_RP is not None:
            trunks = torch.tensor(list(dict.fromkeys(member.trunk for member in members)))
            means = {"theta": early_RP, "trunk": trunks}
            save_weights(self.artifact, early_name(index), means)
        population = Population(
            model_id=np.array([m.model_id for m in members]),
            trunk=np.array([m.trunk for m in members]),
            fork=np.array([m.fork for m in members]),
            held_out=np.array([m.model_id in self.held_out for m in members]),
            origin="trained",
            layout_digest=self.classifiers.layout.digest,
            **columns,
        )
        write_shard(self.artifact, index, population)

    def _starts(
        self, runs: Sequence[Run], roots_RW: Tensor, attempt: int
    ) -> tuple[Tensor, list[torch.Generator]]:
        """Where runs start ``(R, P)``, and their generators."""
        forks = [run[0].fork + attempt * self.first_spare for run in runs]
        trunks = [run[0].trunk for run in runs]
        if self.section.protocol.branches:
            start_RP = self.classifiers.own(roots_RW[trunks])
        else:
            start_RP = torch.stack([self._fresh("start", fork) for fork in forks])
        purposes: list[tuple[str | int, ...]] = [
            ("run", trunk, fork) for trunk, fork in zip(trunks, forks, strict=True)
        ]
        return start_RP, [generator_for(self.seed, *purpose) for purpose in purposes]

    def _diverged(self, run: Run, attempt: int, dropped: bool) -> Divergence:
        """The record of a run whose given attempt diverged."""
        trunk, fork = run[0].trunk, run[0].fork
        return Divergence(
            kind="run",
            trunk=trunk,
            fork=fork,
            seed=seed_for(self.seed, "run", trunk, fork + attempt * self.first_spare),
            outcome="dropped" if dropped else "retrained",
            models=tuple(member.model_id for member in run) if dropped else (),
        )

    def _stopwatch(self) -> Stopwatch:
        return Stopwatch(self.section.resources.num_gpus if self.device == "cuda" else 0.0)

    def _fresh(self, purpose: str, index: int) -> Tensor:
        seed = seed_for(self.seed, purpose, index)
        return initial_parameters(self.classifiers.build, self.classifiers.whole.flatten, seed)

    def _align(self, reference_P: Tensor, theta_KP: Tensor) -> Tensor:
        """Models in the units of one; those that diverged stay as they are."""
        groups = self.classifiers.symmetries.groups
        generator = generator_for(self.seed, "align")
        finite_K = finite_rows(theta_KP)
        rows_KP = theta_KP if finite_K.all() else theta_KP[finite_K]
        aligned_KP = align(reference_P, rows_KP, self.classifiers.whole, groups, generator)
        if finite_K.all():
            return aligned_KP
        return theta_KP.index_put((finite_K,), aligned_KP)


class ContestTrainer(SeedTrainer):
    """Gives away the places of a cohort to the best of its candidates, as they train."""

    def _left(
        self, runs: Sequence[Run], roots_RW: Tensor, attempt: int, chunk: int, keep: Checkpoint
    ) -> Iterator[Left]:
        """Who has the places; a candidate has one."""
        places = [run[0].fork + attempt * self.first_spare for run in runs]
        bag = Contest([self.classifiers], self.seed, places, once=True, keep=keep).held()
        seeds = [seed_for(self.seed, "candidate", c) for c in bag.candidate_B.tolist()]
        yield 0, seeds, bag.theta_BFP, torch.empty(len(runs), 0), bag.step_B[:, None]


class CheckpointReader(SeedTrainer):
    """Takes a trunk's members from files instead: read, checked and validated, a cohort each."""

    def __init__(self, config: PipelineConfig, artifact: Artifact, dataset: Shared) -> None:
        super().__init__(config, artifact, dataset)
        assert isinstance(config.seeds.protocol, Checkpoints)
        self.protocol = config.seeds.protocol
        self.files, self.trunks = listed_trunks(self.protocol)

    def train_cohort(self, index: int) -> None:
        """Read one trunk and write its shard, with what it had cost if that is known."""
        files, early = self.trunks[index], self.protocol.early
        with self._stopwatch() as watch:
            theta_KP = torch.stack([self._vector(file) for file in files])
            if self.protocol.align and self._reference is not None:
                theta_KP = self._align(self._reference, theta_KP)
            early_KP, theta_KP = theta_KP[:early], theta_KP[early:]
            val_accuracy_K, val_nll_K = self.classifiers.validate(theta_KP, [0] * len(theta_KP))
            finite_K = finite_rows(theta_KP) & val_nll_K.isfinite()
        kept = np.flatnonzero(finite_K.numpy())
        members = [self.runs[index][row] for row in kept]
        lost = tuple(member.model_id for member in self.runs[index] if member not in members)
        dropped = Divergence(
            kind="run", trunk=index, fork=0, seed=0, outcome="dropped", models=lost
        )
        seconds = self.protocol.seconds or 0.0
        cost = watch.cost + Cost(cpu_seconds=seconds * len(files))
        self._note(index, cost, [dropped] if lost else [])
        if not members:
            return
        self._write(
            *(index, members),
            early_RP=early_KP.mean(dim=0, keepdim=True) if early else None,
            step=early + kept,
            seed=np.zeros(len(kept), dtype=np.int64),
            val_accuracy=val_accuracy_K.numpy()[kept],
            val_nll=val_nll_K.numpy()[kept],
            fit_seconds=np.full(len(kept), seconds),
            theta_KP=theta_KP[kept].numpy(),
        )

    @cached_property
    def _reference(self) -> Tensor | None:
        """What all are aligned to: the first trunk's last checkpoint that did not diverge."""
        files = (file for trunk in self.trunks for file in reversed(trunk))
        vectors = map(self._vector, files)
        return next((vector_P for vector_P in vectors if vector_P.isfinite().all()), None)

    def _vector(self, file: File) -> Tensor:
        layout = self.classifiers.layout
        shapes = {entry.name: entry.shape for entry in layout.entries}
        return layout.flatten(read_state(self.files, file, shapes, self.protocol.prefix))
