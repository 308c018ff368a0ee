"""The actor of the seeds stage: trains roots and cohorts, one cohort a shard.

Shape letters: R roots or runs, S snapshots of a run, K models, W parameters of a whole model, P of
what is a member's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bend_ray.artifacts.checkpoint import DIRECTORY, Checkpoint
from bend_ray.artifacts.cost import Cost, Stopwatch, read_cost, read_costs, write_cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import shard_name, write_shard
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import load_weights, save_weights
from bend_ray.config.schema import PipelineConfig
from bend_ray.networks.fitting import initial_parameters, stretch_marks
from bend_ray.networks.protocols import Member, Run, held_out_ids
from bend_ray.networks.recipe import Stretch
from bend_ray.parameters.symmetry import align
from bend_ray.populations.cohorts import Cohort, cohorts_of
from bend_ray.populations.divergence import Divergence, Outcome, all_diverged, finite_rows, note
from bend_ray.populations.members import LAYOUT, ROOTS, early_name, load_roots, roots_name
from bend_ray.populations.networks import Classifiers
from bend_ray.process.computing import settle
from bend_ray.randomness import generator_for, seed_for
from bend_ray.runtime.interface import Shared, split


@dataclass(frozen=True)
class _Runs:
    """What runs leave: members ``(R, S, P)``, and ``(R, S)`` each; R runs, S members of a run.

    ``early_RP`` is the mean of a run's early snapshots, ``(R, 0)`` where there are none.
    """

    theta_RSP: Tensor
    early_RP: Tensor
    val_accuracy_RS: Tensor
    val_nll_RS: Tensor
    seeds_R: list[int]

    def finite(self) -> list[bool]:
        """Which runs did not diverge, ``(R,)``."""
        return finite_rows(self.theta_RSP, self.val_nll_RS).tolist()

    def replace(self, rows: list[int], other: _Runs) -> None:
        """Take another's for some rows."""
        self.theta_RSP[rows] = other.theta_RSP
        self.early_RP[rows] = other.early_RP
        self.val_accuracy_RS[rows] = other.val_accuracy_RS
        self.val_nll_RS[rows] = other.val_nll_RS
        for row, seed in zip(rows, other.seeds_R, strict=True):
            self.seeds_R[row] = seed


class SeedTrainer:
    """An actor that trains roots and cohorts into an artifact; it keeps the data, nothing else."""

    def __init__(self, config: PipelineConfig, artifact: Artifact, dataset: Shared) -> None:
        self.section = config.seeds
        self.seed = config.seed
        self.artifact = artifact
        self.device = settle(self.section.resources.cpus, self.section.resources.num_gpus)
        self.classifiers = Classifiers(
            config, dataset.load(), self.device, partial(load_roots, artifact)
        )
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
        diverged = []
        with self._stopwatch() as watch:
            keeps = [self._checkpoint(f"roots-{chunk}-{attempt}", watch) for attempt in (0, 1)]
            theta_RW, sources = self._fit_roots(ids, keeps[0]), torch.tensor(ids)
            if rows := (~finite_rows(theta_RW)).nonzero().flatten().tolist():
                spare = [num_roots + ids[row] for row in rows]
                theta_RW[rows] = self._fit_roots(spare, keeps[1])
                sources[rows] = torch.tensor(spare)
                diverged = [
                    self._diverged_root(ids[row], index, theta_RW[row])
                    for row, index in zip(rows, spare, strict=True)
                ]
        note(self.artifact, name, diverged)
        write_cost(self.artifact, name, sum((keep.spent for keep in keeps), watch.cost))
        save_weights(self.artifact, name, {"theta": theta_RW, "source": sources})

    def _fit_roots(self, indices: Sequence[int], keep: Checkpoint) -> Tensor:
        """Whole vectors ``(R, W)`` of the roots that these seed indices give."""
        start_RW = torch.stack([self._fresh("root", index) for index in indices])
        stretch = self.section.protocol.root_stretch(self.section.recipe)
        generators = [generator_for(self.seed, "root order", index) for index in indices]
        ((_, theta_SRW),) = self.classifiers.fitted(start_RW, None, stretch, generators, keep=keep)
        return theta_SRW[-1]

    def _checkpoint(self, name: str, watch: Stopwatch) -> Checkpoint:
        return Checkpoint(self.artifact, name, self.section.checkpoint_seconds, watch)

    def _diverged_root(self, root: int, spare: int, theta_W: Tensor) -> Divergence:
        well = bool(theta_W.isfinite().all())
        failed = seed_for(self.seed, "root", root if well else spare)
        outcome: Outcome = "retrained" if well else "dropped"
        return Divergence(kind="root", trunk=root, seed=failed, outcome=outcome)

    def store_roots(self, chunks: Sequence[int]) -> None:
        """Align roots to the first that did not diverge, store them; TrainingError if all did."""
        names = [roots_name(chunk) for chunk in chunks]
        with self._stopwatch() as watch:
            found = [load_weights(self.artifact, name) for name in names]
            theta_RW, sources = (torch.cat([f[key] for f in found]) for key in ("theta", "source"))
            if self.section.protocol.ranks_roots:
                best = self._best_roots(theta_RW)
                theta_RW, sources = theta_RW[best], sources[best]
            finite_R = finite_rows(theta_RW)
            if not finite_R.any():
                raise all_diverged(f"all {len(theta_RW)} roots")
            if self.section.protocol.align:
                theta_RW = self._align(theta_RW[finite_R.nonzero()[0, 0]], theta_RW)
        write_cost(self.artifact, ROOTS, sum(read_costs(self.artifact, names), watch.cost))
        save_weights(self.artifact, ROOTS, {"theta": theta_RW, "source": sources})

    def _best_roots(self, theta_RW: Tensor) -> Tensor:
        """The places of as many roots as there are trunks, the lowest validation NLL first."""
        _, nll_R = self.classifiers.validate(theta_RW, [0] * len(theta_RW))
        nll_R = nll_R.nan_to_num(nan=torch.inf)
        return nll_R.argsort(stable=True)[: self.section.protocol.num_trunks]

    def train_cohort(self, index: int) -> None:
        """Train one cohort and write its shards, those whose models did not all diverge."""
        cohort, protocol = self.cohorts[index], self.section.protocol
        roots_RW = load_roots(self.artifact) if protocol.num_roots else None
        if len(cohort.shards) > 1:
            self._train_long(index, cohort, roots_RW)
        else:
            self._train_short(index, cohort, roots_RW)
        self.artifact.discard(f"{DIRECTORY}/{index}")

    def _train_short(self, index: int, cohort: Cohort, roots_RW: Tensor | None) -> None:
        """All that the cohort leaves is held until its one shard is written."""
        ((shard, _),) = cohort.shards.items()
        stretch = self.section.protocol.run_stretch(self.section.recipe)
        with self._stopwatch() as watch:
            keeps = [self._checkpoint(f"{index}/{attempt}", watch) for attempt in (0, 1)]
            runs, left, diverged = self._train_runs(cohort.runs, roots_RW, keeps)
        cost = sum((keep.spent for keep in keeps), watch.cost)
        members = [member for run, _ in left for member in run]
        if runs is None or not members:
            self._write(shard, [], cost, diverged)
            return
        rows = [row for _, row in left]
        # All of them, usually: then nothing is copied.
        theta_RSP = runs.theta_RSP if len(rows) == len(runs.theta_RSP) else runs.theta_RSP[rows]
        self._write(
            *(shard, members, cost, diverged),
            early_RP=runs.early_RP[rows] if stretch.early else None,
            seed=np.array([runs.seeds_R[row] for run, row in left for _ in run]),
            val_accuracy=runs.val_accuracy_RS[rows].flatten().numpy(),
            val_nll=runs.val_nll_RS[rows].flatten().numpy(),
            theta_KP=theta_RSP.flatten(0, 1).numpy(),
            **self._told(members, cost),
        )

    def _told(self, members: Sequence[Member], cost: Cost) -> dict[str, Any]:
        """Of each member its step, and its part of the cost of its shard and of the roots."""
        steps = self._steps(self.section.protocol.run_stretch(self.section.recipe))
        seconds = cost.cpu_seconds / len(members)
        if self.section.protocol.num_roots:
            seconds += read_cost(self.artifact, ROOTS).cpu_seconds / self.section.num_models
        return {
            "step": np.array([steps[member.snapshot] for member in members]),
            "fit_seconds": np.full(len(members), seconds),
        }

    def _train_long(self, index: int, cohort: Cohort, roots_RW: Tensor | None) -> None:
        """One run whose shards are written as they come; a second attempt writes them anew."""
        (run,) = cohort.runs
        if self.section.protocol.branches and not self._is_rooted(run, roots_RW):
            self._drop(cohort, 0)
            return
        # Where the second was begun, the first is known to diverge.
        second = self._checkpoint(f"{index}/1", self._stopwatch()).is_there
        for attempt in (1,) if second else (0, 1):
            if self._train_in_shards(index, cohort, roots_RW, attempt):
                return
        self._drop(cohort, 1)

    def _drop(self, cohort: Cohort, attempt: int) -> None:
        """Of a run that diverged nothing is left."""
        for shard, members in cohort.shards.items():
            for name in (shard_name(shard), early_name(shard)):
                self.artifact.discard(name)
            dropped = self._diverged(members, attempt, True)
            self._write(shard, [], Cost(), [dropped])

    def _train_in_shards(
        self, index: int, cohort: Cohort, roots_RW: Tensor | None, attempt: int
    ) -> bool:
        """Whether the run did not diverge; its shards are written, and its early mean."""
        (run,), stretch = cohort.runs, self.section.protocol.run_stretch(self.section.recipe)
        starts_RP, streams, seeds = self._starts([run], roots_RW, attempt)
        keep = self._checkpoint(f"{index}/{attempt}", self._stopwatch())
        again = [self._diverged(run, 0, False)] if attempt else []
        chunks = self.classifiers.fitted(
            *(starts_RP, [run[0].trunk], stretch, streams), chunk=cohort.chunk, keep=keep
        )
        for first, theta_GKP in chunks:
            theta_GP, last = theta_GKP[:, 0], first + len(theta_GKP)
            if first < stretch.early:
                sum_P = theta_GP[: stretch.early - first].sum(dim=0)
                save_weights(self.artifact, _sum_name(index, attempt, first), {"theta": sum_P})
            own = [m for m in run if first <= stretch.early + m.snapshot < last]
            if not own:
                continue
            theta_GP = self._in_units_of(roots_RW, theta_GP[-len(own) :])
            accuracy_G, nll_G = self.classifiers.validate(theta_GP, [m.trunk for m in own])
            if not finite_rows(theta_GP, nll_G).all():
                return False
            shard = next(i for i, members in cohort.shards.items() if members[0] == own[0])
            is_first, early_RP = own[0] == run[0], None
            if is_first and stretch.early:
                firsts = range(0, stretch.early, cohort.chunk)
                names = [_sum_name(index, attempt, first) for first in firsts]
                sums = [load_weights(self.artifact, name)["theta"] for name in names]
                early_RP = torch.stack(sums).sum(dim=0, keepdim=True) / stretch.early
            cost = keep.watch.cost + keep.spent
            self._write(
                *(shard, own, cost, again if is_first else []),
                early_RP=early_RP,
                seed=np.array(seeds * len(own)),
                val_accuracy=accuracy_G.numpy(),
                val_nll=nll_G.numpy(),
                theta_KP=theta_GP.numpy(),
                **self._told(own, cost),
            )
            keep.watch, keep.spent = self._stopwatch(), Cost()
        return True

    def _write(
        self,
        index: int,
        members: Sequence[Member],
        cost: Cost,
        diverged: Sequence[Divergence],
        *,
        early_RP: Tensor | None = None,
        **columns: Any,
    ) -> None:
        """Write a shard of members, unless none is left, and of their trunks' early means."""
        if index == 0:
            self.artifact.write_note(LAYOUT, self.classifiers.layout.to_json())
        # Note and cost first: where the shard is whole, they are there.
        note(self.artifact, shard_name(index), diverged)
        write_cost(self.artifact, shard_name(index), cost)
        if not members:
            return
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

    def _train_runs(
        self, cohort: Sequence[Run], roots_RW: Tensor | None, keeps: Sequence[Checkpoint]
    ) -> tuple[_Runs | None, list[tuple[Run, int]], list[Divergence]]:
        """What the runs leave, the runs that are left with their rows, and what diverged."""
        trained = [run for run in cohort if self._is_rooted(run, roots_RW)]
        diverged = [self._diverged(run, 0, True) for run in cohort if run not in trained]
        if not trained:
            return None, [], diverged
        runs = self._attempt(trained, roots_RW, 0, keeps[0])
        if again := [row for row, well in enumerate(runs.finite()) if not well]:
            runs.replace(
                again, self._attempt([trained[row] for row in again], roots_RW, 1, keeps[1])
            )
        finite = runs.finite()
        for row in again:
            first = 0 if finite[row] else 1
            diverged.append(self._diverged(trained[row], first, not finite[row]))
        left = [(run, row) for row, run in enumerate(trained) if finite[row]]
        return runs, left, diverged

    def _is_rooted(self, run: Run, roots_RW: Tensor | None) -> bool:
        """Whether a run has a root to start from that did not diverge, or needs none."""
        if roots_RW is None or not self.section.protocol.branches:
            return True
        return bool(roots_RW[run[0].trunk].isfinite().all())

    def _starts(
        self, runs: Sequence[Run], roots_RW: Tensor | None, attempt: int
    ) -> tuple[Tensor, list[torch.Generator], list[int]]:
        """Where runs start ``(R, P)``, their generators, and the seeds of these."""
        forks = [run[0].fork + attempt * self.first_spare for run in runs]
        trunks = [run[0].trunk for run in runs]
        if self.section.protocol.branches:
            assert roots_RW is not None
            start_RP = self.classifiers.own(roots_RW[trunks])
        else:
            start_RP = torch.stack([self._fresh("start", fork) for fork in forks])
        purposes: list[tuple[str | int, ...]] = [
            ("run", trunk, fork) for trunk, fork in zip(trunks, forks, strict=True)
        ]
        if self.section.protocol.ranks_roots and attempt == 0:
            # They go on with the hyper-parameters and the order of examples that they began with.
            sources = load_weights(self.artifact, ROOTS)["source"]
            purposes = [("root order", int(sources[trunk])) for trunk in trunks]
        streams = [generator_for(self.seed, *purpose) for purpose in purposes]
        return start_RP, streams, [stream.initial_seed() for stream in streams]

    def _in_units_of(self, roots_RW: Tensor | None, theta_KP: Tensor) -> Tensor:
        """Models from scratch in the units of the reference, where that is asked."""
        protocol = self.section.protocol
        if not protocol.align or protocol.branches:
            return theta_KP
        assert roots_RW is not None
        return self._align(roots_RW[0], theta_KP)

    def _attempt(
        self, runs: Sequence[Run], roots_RW: Tensor | None, attempt: int, keep: Checkpoint
    ) -> _Runs:
        """Train runs, each with the seed of its fork (attempt 0) or of a spare one (1)."""
        stretch = self.section.protocol.run_stretch(self.section.recipe)
        start_RP, streams, seeds = self._starts(runs, roots_RW, attempt)
        trunks = [run[0].trunk for run in runs]
        snapshots_RSP = self.classifiers.fit_members(start_RP, trunks, stretch, streams, keep)
        early_RSP = snapshots_RSP[:, : stretch.early]
        early_RP = early_RSP.mean(dim=1) if stretch.early else early_RSP.flatten(1)
        theta_RSP = snapshots_RSP[:, stretch.early :]
        shape = theta_RSP.shape
        theta_KP = self._in_units_of(roots_RW, theta_RSP.flatten(0, 1))
        members = [member.trunk for run in runs for member in run]
        val_accuracy_K, val_nll_K = self.classifiers.validate(theta_KP, members)
        return _Runs(
            theta_KP.view(shape),
            early_RP,
            val_accuracy_K.view(shape[:2]),
            val_nll_K.view(shape[:2]),
            seeds,
        )

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

    def _steps(self, stretch: Stretch) -> list[int]:
        """Optimizer steps behind each member, counted from the start of the recipe."""
        num_images, recipe = len(self.classifiers.dataset.train), self.section.recipe
        first = recipe.num_steps(stretch.start, num_images)
        marks = stretch_marks(recipe, stretch, num_images)[stretch.early :]
        return [first + step for step in marks]


def _sum_name(index: int, attempt: int, first: int) -> str:
    """The file of a sum of early snapshots ``theta (P,)``, of a cohort's chunk from ``first``."""
    return f"{DIRECTORY}/{index}/early-{attempt}-{first:08d}.safetensors"
