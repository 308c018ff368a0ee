"""Stage 5, samples: actors draw classifiers from noise, decode, finish and validate them.

A generated population has the format of a trained one. Every classifier has its own stream of
noise, so it does not depend on the shard it is in or the process that drew it. Before it is
validated it is finished: guidance moves it on along the way that its trunk's training has come,
from early to later checkpoints, which is where more training would lead if it is far from its end;
annealing trains it for a little. All that were drawn are looked at before they are committed.

Source of the guidance: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself"
(arXiv 2406.02507), with the means of two parts of a training for the two models.

Shape letters: N drawn, K members, P parameters, T trunks, Z latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bend_ray.artifacts.cost import Stopwatch, write_cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import open_table, read_population, shard_name, write_shard
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import load_weights
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig, SamplesSection
from bend_ray.errors import TrainingError
from bend_ray.generation.latent_diffusion import LatentScale, sample_latents
from bend_ray.generation.rivals import trunk_means
from bend_ray.populations.divergence import (
    Divergence,
    commit_left,
    done_shards,
    finite_rows,
    left_rows,
    note,
)
from bend_ray.populations.members import learnt_vectors, load_early, read_layout
from bend_ray.populations.networks import Classifiers
from bend_ray.process.computing import settle
from bend_ray.process.log import ProgressLine
from bend_ray.process.matrix import Matrix, column_slices
from bend_ray.randomness import generator_for, seed_for
from bend_ray.runtime.interface import Runtime, Shared, split
from bend_ray.stages import autoencoder
from bend_ray.stages.representations import load_representation
from bend_ray.storage.filesystems import side_by_side

WEIGHTS = "denoiser.safetensors"
SCALE = "scale.safetensors"

SHARD_BYTES = 512 * 2**20
"""Parameters that a process draws, recalibrates and writes at once; at least one model's."""
CLEARLY = 3.0
"""Standard errors by which members must be better than chance, else nothing can be asked."""


def make(graph: Graph, runtime: Runtime) -> None:
    """Draw ``config.samples.count`` classifiers and commit them."""
    artifact, section = graph.samples, graph.config.samples
    rows = {index: len(shard) for index, shard in enumerate(shards_of(graph))}
    done = done_shards(artifact, rows)
    with Stopwatch() as watch, ProgressLine("samples", section.count, "models") as progress:
        progress.update(sum(rows[index] for index in done))
        if missing := sorted(set(rows) - done):
            with runtime.workers(
                *(SampleDrawer, graph, runtime.share(graph.config.dataset)),
                resources=section.resources,
            ) as drawers:
                for index, _ in drawers.run("draw", missing):
                    done.add(index)
                    progress.update(sum(rows[index] for index in done))
    left = [shard_name(index) for index, count in left_rows(artifact, rows).items() if count]
    if not left:
        raise TrainingError(
            f"samples: expected finite parameters, all {section.count} drawn models have others; "
            "train the generator for longer"
        )
    check_samples(graph, runtime, left)
    commit_left(artifact, rows, watch.cost.wall_seconds)


def shards_of(graph: Graph) -> list[Sequence[int]]:
    """Which classifiers are drawn together: no more at once than ``SHARD_BYTES`` of parameters."""
    size = drawn_together(graph.config.samples, read_layout(graph.seeds).size)
    return split(range(graph.config.samples.count), size)


def drawn_together(section: SamplesSection, num_parameters: int) -> int:
    """How many classifiers of so many parameters a process draws at once."""
    fitting = max(1, SHARD_BYTES // (4 * num_parameters))
    return min(section.count, section.shard_size, fitting)


def ways(members_KP: Matrix, trunks_K: Tensor, early_TP: Tensor) -> Tensor:
    """Each trunk's way ``(T, P)``, from the mean of its early checkpoints to that of its members.

    It is 0 for a trunk without members, or whose early mean is nan.
    """
    way_TP, found = torch.zeros_like(early_TP), torch.unique(trunks_K)
    for own in column_slices(way_TP.shape[1], len(members_KP)):
        means_UP, _ = trunk_means(members_KP[:, own], trunks_K)
        way_TP[found, own] = torch.nan_to_num(means_UP - early_TP[found, own])
    return way_TP


class Finisher:
    """Guidance and annealing of a config's drawn models; the first holds a vector a trunk."""

    def __init__(self, config: PipelineConfig, seeds: Artifact, classifiers: Classifiers) -> None:
        self.config = config
        self.seeds = seeds
        self.classifiers = classifiers
        self.stretch = config.finish.annealing.stretch(config.seeds.recipe)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a model's annealing."""
        num_images = len(self.classifiers.dataset.train)
        return self.config.seeds.recipe.num_steps(self.stretch.epochs, num_images)

    def __call__(
        self, theta_NP: Tensor, trunks_N: NDArray[np.int32], model_ids: Sequence[int]
    ) -> Tensor:
        """Models ``(N, P)``, each moved on along its trunk's way, and trained."""
        if guidance := self.config.finish.guidance:
            theta_NP = theta_NP + guidance * self._ways[torch.from_numpy(trunks_N).long()]
        if self.num_steps:
            streams = [generator_for(self.config.seed, "annealing", i) for i in model_ids]
            given = (theta_NP, trunks_N.tolist(), self.stretch, streams)
            ((_, theta_NSP, _),) = self.classifiers.fitted(*given)
            theta_NP = theta_NSP[:, -1]
        return theta_NP

    @cached_property
    def _ways(self) -> Tensor:
        """Every trunk's way ``(T, P)``; running statistics stay."""
        layout, trunks = self.classifiers.layout, self.config.seeds.protocol.num_trunks
        way_TP = ways(*learnt_vectors(self.seeds), load_early(self.seeds, trunks, layout.size))
        # A variance that is moved on may be negative.
        way_TP[:, layout.num_trainable :] = 0.0
        return way_TP


class SampleDrawer:
    """One process that draws shards: it holds the training members and the generator.

    That is the committed one, unless ``weights`` names a milestone's file.
    """

    def __init__(self, graph: Graph, dataset: Shared, weights: str = WEIGHTS) -> None:
        self.config = config = graph.config
        self.artifact = graph.samples
        device = settle(config.samples.resources.cpus, config.samples.resources.num_gpus)
        self.classifiers = Classifiers(config, dataset.load(), device, graph.seeds)
        self.finish = Finisher(config, graph.seeds, self.classifiers)
        self.shards = shards_of(graph)
        # Sampling is a few small products: it runs beside the training members, on the CPU.
        self.scale = LatentScale(**load_weights(graph.generator, SCALE))
        latent_size = self.scale.mean_CZ.shape[1]
        self.denoiser = config.generator.denoiser.build(latent_size, config.num_conditions)
        self.denoiser.load_state_dict(load_weights(graph.generator, weights))
        model = config.autoencoder.model
        representation = load_representation(model.features, graph.autoencoder)
        self.autoencoder = model.build(representation.num_features).eval()
        self.autoencoder.load_state_dict(load_weights(graph.autoencoder, autoencoder.WEIGHTS))
        self.decode = representation.decoder(graph.seeds)
        self.trunks: list[int] = torch.unique(learnt_vectors(graph.seeds)[1]).tolist()

    def draw(self, index: int) -> None:
        """Draw one shard, validate its classifiers, and write those that did not diverge."""
        ids = list(self.shards[index])
        with Stopwatch(self.config.samples.resources.num_gpus) as watch:
            drawn = self.classifiers_of(ids)
        left = drawn.model_id.tolist()
        # Note and cost first: where the shard is whole, they are there.
        note(self.artifact, shard_name(index), [self._diverged(i) for i in ids if i not in left])
        write_cost(self.artifact, shard_name(index), watch.cost)
        if left:
            seconds = np.full(len(left), watch.cost.cpu_seconds / len(left), np.float32)
            write_shard(self.artifact, index, replace(drawn, fit_seconds=seconds))

    def classifiers_of(self, ids: Sequence[int]) -> Population:
        """Draw classifiers that can vote: finished, recalibrated, validated; no diverged one."""
        with torch.no_grad():
            theta_NP = self.decode(self.autoencoder.decode(self.latents(ids)))
        val_accuracy_N = val_nll_N = torch.zeros(0)
        keep_N = finite_rows(theta_NP)
        if not keep_N.all():  # else nothing is copied
            ids, theta_NP = np.array(ids)[keep_N.numpy()].tolist(), theta_NP[keep_N]
        trunks_N = self._trunks(ids)
        if ids:
            theta_NP = self.finish(theta_NP, trunks_N, ids)
            theta_NP = self.classifiers.recalibrate(theta_NP, trunks_N.tolist())
            val_accuracy_N, val_nll_N = self.classifiers.validate(theta_NP, trunks_N.tolist())
        drawn = Population(
            model_id=np.array(ids),
            trunk=trunks_N,
            fork=np.array(ids) // len(self.trunks),
            step=np.full(len(ids), self.finish.num_steps),
            seed=np.array([seed_for(self.config.seed, "sample", i) for i in ids]),
            held_out=np.full(len(ids), False),
            val_accuracy=val_accuracy_N.numpy(),
            val_nll=val_nll_N.numpy(),
            fit_seconds=np.zeros(len(ids), np.float32),
            origin="generated",
            theta_KP=theta_NP.numpy(),
            layout_digest=self.classifiers.layout.digest,
        )
        keep_N = finite_rows(theta_NP, val_nll_N)
        return drawn if keep_N.all() else drawn.select(keep_N.numpy())

    def _trunks(self, ids: Sequence[int]) -> NDArray[np.int32]:
        """The trunk each was asked to be of; -1 where the generator cannot be asked for one."""
        asked = self.config.generator.conditional or self.config.seeds.protocol.num_trunks == 1
        turn = self.trunks if asked else [-1]
        return np.array([turn[i % len(turn)] for i in ids], dtype=np.int32)

    def conditions(self, ids: Sequence[int]) -> Tensor:
        """What the denoiser is told of each, ``(N,)``."""
        trunks_N = torch.from_numpy(self._trunks(ids)).long()
        return trunks_N if self.config.generator.conditional else torch.zeros_like(trunks_N)

    def latents(self, ids: Sequence[int]) -> Tensor:
        """Latents ``(N, Z)`` of the classifiers ``ids``."""
        return sample_latents(
            self.denoiser,
            self.config.generator.process,
            self.config.samples.sampler,
            self.scale,
            self.conditions(ids),
            [generator_for(self.config.seed, "sample", i) for i in ids],
            self.config.samples.temperature,
        )

    def _diverged(self, model_id: int) -> Divergence:
        return Divergence(
            kind="sample",
            trunk=int(self._trunks([model_id])[0]),
            fork=model_id // len(self.trunks),
            seed=seed_for(self.config.seed, "sample", model_id),
            outcome="dropped",
            models=(model_id,),
        )


@dataclass(frozen=True)
class Floor:
    """What is asked of drawn models: their score (accuracy, or R^2) on validation examples.

    A model works if it keeps a share of what training members are better than chance.
    """

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


def check_samples(graph: Graph, runtime: Runtime, shards: Sequence[str]) -> None:
    """Look at all that were drawn, before they are committed; TrainingError where none works."""
    accuracy = np.concatenate(side_by_side(partial(_accuracy, graph), shards)).tolist()
    floor_of(graph, runtime.share(graph.config.dataset)).require(
        accuracy,
        f"samples: the generator collapsed: none of {len(accuracy)} drawn models",
        "train it for longer, or set generator.probes.floor to 0",
    )


def _accuracy(graph: Graph, shard: str) -> NDArray[np.float32]:
    with open_table(graph.samples, shard) as file:
        column: NDArray[np.float32] = file.read(columns=["val_accuracy"])[0].to_numpy()
    return column


def floor_of(graph: Graph, dataset: Shared) -> Floor:
    """What a config asks of drawn models, by what its training members reach."""
    members = read_population(graph.seeds, theta=False)
    its = dataset.load()
    chance = its.task.chance(its.validation.labels_N)
    learnt = members.val_accuracy[~members.held_out]
    return Floor.of(learnt, chance, graph.config.generator.probes.floor)
