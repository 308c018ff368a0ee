"""The process of the samples stage: noise in, validated classifiers out.

Every classifier has its own stream of noise, so it does not depend on the shard it is in or the
process that drew it. Shape letters: N drawn, P parameters, Z latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bend_ray.artifacts.cost import Stopwatch, write_cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import shard_name, write_shard
from bend_ray.artifacts.weights import load_weights
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig, SamplesSection
from bend_ray.generation.conditioning import ConditionedDenoiser
from bend_ray.generation.latent_diffusion import LatentScale, sample_latents
from bend_ray.populations.divergence import Divergence, finite_rows, note
from bend_ray.populations.members import load_roots, read_layout, training_trunks
from bend_ray.populations.networks import Classifiers
from bend_ray.process.computing import settle
from bend_ray.randomness import generator_for, seed_for
from bend_ray.runtime.interface import Shared
from bend_ray.runtime.pieces import split
from bend_ray.stages import autoencoder
from bend_ray.stages.finish import Finisher
from bend_ray.stages.representations import load_representation

WEIGHTS = "denoiser.safetensors"
SCALE = "scale.safetensors"

SHARD_BYTES = 512 * 2**20
"""Parameters that a process draws, recalibrates and writes at once; at least one model's."""


def load_generator(
    config: PipelineConfig, graph: Graph, weights: str = WEIGHTS
) -> tuple[ConditionedDenoiser, LatentScale]:
    """The denoiser, committed or as it was at a milestone, and the scale of its latents."""
    scale = LatentScale.from_state(load_weights(graph.generator, SCALE))
    denoiser = config.generator.denoiser.build(scale.mean_CZ.shape[1], config.num_conditions)
    denoiser.load_state_dict(load_weights(graph.generator, weights))
    return denoiser, scale


def shards_of(config: PipelineConfig, graph: Graph) -> list[Sequence[int]]:
    """Which classifiers are drawn together: no more at once than ``SHARD_BYTES`` of parameters."""
    size = drawn_together(config.samples, read_layout(graph.seeds).size)
    return split(range(config.samples.count), size)


def drawn_together(section: SamplesSection, num_parameters: int) -> int:
    """How many classifiers of so many parameters a process draws at once."""
    fitting = max(1, SHARD_BYTES // (4 * num_parameters))
    return min(section.count, section.shard_size, fitting)


@dataclass(frozen=True)
class Drawn:
    """Classifiers that did not diverge.

    Attributes:
        model_ids: (N,) int64.
        trunks_N: whose each was asked to be, -1 where nobody was asked.
        theta_NP: parameters.
        val_accuracy_N: on validation images.
        val_nll_N: on validation images, nats.
    """

    model_ids: NDArray[np.int64]
    trunks_N: NDArray[np.int32]
    theta_NP: torch.Tensor
    val_accuracy_N: torch.Tensor
    val_nll_N: torch.Tensor


class SampleDrawer:
    """One process that draws shards: it holds the generator and the training members.

    Args:
        config: of the pipeline.
        graph: of its artifacts.
        dataset: of the config.
        weights: the generator's, committed or at a milestone.
    """

    def __init__(
        self,
        config: PipelineConfig,
        graph: Graph,
        dataset: Shared,
        weights: str = WEIGHTS,
    ) -> None:
        self.config = config
        self.artifact = graph.samples
        self.device = settle(config.samples.resources.cpus, config.samples.resources.gpus)
        self.classifiers = Classifiers(
            config, dataset.load(), self.device, partial(load_roots, graph.seeds)
        )
        self.finish = Finisher(config, graph.seeds, self.classifiers)
        self.shards = shards_of(config, graph)
        # Sampling is a few small products: it runs beside the training members, on the CPU.
        self.denoiser, self.scale = load_generator(config, graph, weights)
        model = config.autoencoder.model
        representation = load_representation(model.features, graph.autoencoder)
        self.autoencoder = model.build(representation.num_features).eval()
        self.autoencoder.load_state_dict(load_weights(graph.autoencoder, autoencoder.WEIGHTS))
        self.decode = representation.decoder(graph.seeds)
        self.trunks = training_trunks(graph.seeds)

    def draw(self, index: int) -> None:
        """Draw one shard, validate its classifiers, and write those that did not diverge."""
        section = self.config.samples
        ids = list(self.shards[index])
        gpus = section.resources.gpus if self.device == "cuda" else 0.0
        with Stopwatch(gpus) as watch:
            drawn = self.classifiers_of(ids)
        left = drawn.model_ids.tolist()
        # Note and cost first: where the shard is whole, they are there.
        note(self.artifact, shard_name(index), [self._diverged(i) for i in ids if i not in left])
        write_cost(self.artifact, shard_name(index), watch.cost)
        if not left:
            return
        population = Population(
            model_id=drawn.model_ids,
            trunk=drawn.trunks_N,
            fork=(drawn.model_ids // len(self.trunks)).astype(np.int32),
            step=np.full(len(left), self.finish.num_steps),
            seed=np.array([self._seed(i) for i in left]),
            held_out=np.full(len(left), False),
            val_accuracy=drawn.val_accuracy_N.numpy(),
            val_nll=drawn.val_nll_N.numpy(),
            fit_seconds=np.full(len(left), watch.cost.cpu_seconds / len(left)),
            origin="generated",
            theta_KP=drawn.theta_NP.numpy(),
            layout_digest=self.classifiers.layout.digest,
        )
        write_shard(self.artifact, index, population)

    def classifiers_of(self, ids: Sequence[int]) -> Drawn:
        """Draw classifiers that can vote: finished, recalibrated, validated; no diverged one."""
        model_ids, trunks_N = np.array(ids), self._trunks(ids)
        with torch.no_grad():
            theta_NP = self.decode(self.autoencoder.decode(self.latents(ids)))
        keep_N = finite_rows(theta_NP)
        model_ids, trunks_N, theta_NP = _kept(keep_N, model_ids, trunks_N, theta_NP)
        if not len(model_ids):
            return Drawn(model_ids, trunks_N, theta_NP, torch.zeros(0), torch.zeros(0))
        theta_NP = self.finish(theta_NP, trunks_N, model_ids.tolist())
        theta_NP = self.classifiers.recalibrate(theta_NP, trunks_N.tolist())
        val_accuracy_N, val_nll_N = self.classifiers.validate(theta_NP, trunks_N.tolist())
        keep_N = finite_rows(theta_NP, val_nll_N)
        model_ids, trunks_N, theta_NP = _kept(keep_N, model_ids, trunks_N, theta_NP)
        return Drawn(model_ids, trunks_N, theta_NP, val_accuracy_N[keep_N], val_nll_N[keep_N])

    def _trunks(self, ids: Sequence[int]) -> NDArray[np.int32]:
        """The trunk each was asked to be of; -1 where the generator cannot be asked for one."""
        asked = self.config.generator.conditional or self.config.seeds.protocol.num_trunks == 1
        turn = self.trunks if asked else [-1]
        return np.array([turn[i % len(turn)] for i in ids], dtype=np.int32)

    def conditions(self, ids: Sequence[int]) -> torch.Tensor:
        """What the denoiser is told of each, ``(N,)``."""
        trunks_N = torch.from_numpy(self._trunks(ids)).long()
        return trunks_N if self.config.generator.conditional else torch.zeros_like(trunks_N)

    def latents(self, ids: Sequence[int]) -> torch.Tensor:
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

    def _seed(self, model_id: int) -> int:
        return seed_for(self.config.seed, "sample", model_id)

    def _diverged(self, model_id: int) -> Divergence:
        return Divergence(
            kind="sample",
            trunk=int(self._trunks([model_id])[0]),
            fork=model_id // len(self.trunks),
            seed=self._seed(model_id),
            outcome="dropped",
            models=(model_id,),
        )


def _kept(
    keep_N: torch.Tensor,
    model_ids: NDArray[np.int64],
    trunks_N: NDArray[np.int32],
    theta_NP: torch.Tensor,
) -> tuple[NDArray[np.int64], NDArray[np.int32], torch.Tensor]:
    """Some rows of each; usually all, and nothing is copied."""
    if keep_N.all():
        return model_ids, trunks_N, theta_NP
    return model_ids[keep_N.numpy()], trunks_N[keep_N.numpy()], theta_NP[keep_N]
