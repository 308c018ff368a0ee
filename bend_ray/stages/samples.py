"""Stage 5, samples: Ray Data draws classifiers from noise, decodes and validates them.

A generated population has the format of a trained one. Every classifier has its own stream of
noise, so it does not depend on the shard it is in or the actor that drew it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
import ray.data
import torch
from numpy.typing import NDArray

from bend_ray.artifacts.cost import COST_DIRECTORY, Stopwatch, read_costs, write_cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import complete_shards, shard_name, write_shard
from bend_ray.artifacts.store import Store
from bend_ray.artifacts.weights import load_roots, load_weights
from bend_ray.classifiers.images import ImageDataset
from bend_ray.config import PipelineConfig
from bend_ray.errors import TrainingError
from bend_ray.generation.latent_diffusion import sample_latents
from bend_ray.log import Progress
from bend_ray.plan import Plan
from bend_ray.plan import plan as plan_of
from bend_ray.randomness import generator_for, seed_for
from bend_ray.stages import autoencoder, cluster, generator
from bend_ray.stages.classifiers import Classifiers, SharedDataset, share_dataset
from bend_ray.stages.pool import split
from bend_ray.stages.representations import load_representation
from bend_ray.stages.seeds import read_layout

SHARD_BYTES = 512 * 2**20
"""Parameters that a process draws, recalibrates and writes at once; at least one model's."""


def make(config: PipelineConfig, plan: Plan) -> None:
    """Draw ``config.samples.count`` classifiers and commit them."""
    artifact, section = plan.samples, config.samples
    shards = _shards(config, plan)
    rows = {index: len(shard) for index, shard in enumerate(shards)}
    done = complete_shards(artifact, rows)
    missing = sorted(set(rows) - done)
    with Stopwatch() as watch, Progress("samples", section.count, "models") as progress:
        progress.update(sum(rows[index] for index in done))
        for index in _draw_shards(config, plan, missing):
            done.add(index)
            progress.update(sum(rows[index] for index in done))
    names = [shard_name(index) for index in rows]
    costs = list(read_costs(artifact, names).values())
    artifact.commit(
        files=names,
        rows=dict(zip(names, rows.values(), strict=True)),
        metrics={"models": section.count},
        cost=cluster.total(costs, watch.cost.wall_seconds),
    )
    artifact.discard(COST_DIRECTORY)


def _shards(config: PipelineConfig, plan: Plan) -> list[Sequence[int]]:
    """Which classifiers are drawn together: no more at once than ``SHARD_BYTES`` of parameters."""
    section = config.samples
    fitting = max(1, SHARD_BYTES // (4 * read_layout(plan.seeds).size))
    return split(range(section.count), min(section.shard_size, fitting))


def _draw_shards(config: PipelineConfig, plan: Plan, missing: Sequence[int]) -> Iterator[int]:
    """Draw the missing shards; yields the index of each when it is written."""
    if not missing:
        return
    resources = config.samples.resources
    workers = cluster.num_actors(resources, len(missing))
    store_uri = plan.samples.store.uri
    dataset = share_dataset(config.dataset)

    def draw(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        drawer = _drawer(config, store_uri, dataset)
        for index in batch["shard"].tolist():
            drawer.draw(index)
        return {"shard": batch["shard"]}

    # Tasks, not actors: they run in processes that already have torch.
    drawn = ray.data.from_items(
        [{"shard": index} for index in missing], override_num_blocks=len(missing)
    ).map_batches(
        draw,
        batch_size=1,
        compute=ray.data.TaskPoolStrategy(size=workers),
        **cluster.options(resources),
    )
    for row in drawn.iter_rows():
        yield int(row["shard"])


@lru_cache(maxsize=1)
def _drawer(config: PipelineConfig, store_uri: str, dataset: SharedDataset) -> SampleDrawer:
    """This process's drawer, kept from task to task."""
    return SampleDrawer(config, plan_of(config, Store(store_uri)), dataset.load())


class SampleDrawer:
    """One process that draws shards: it holds the generator and the training members.

    Args:
        config: of the pipeline.
        plan: of its artifacts.
        dataset: of the config, loaded.
        weights: the generator's, committed or at a milestone.
    """

    def __init__(
        self,
        config: PipelineConfig,
        plan: Plan,
        dataset: ImageDataset,
        weights: str = generator.WEIGHTS,
    ) -> None:
        self.config = config
        self.artifact = plan.samples
        self.device = cluster.settle(config.samples.resources)
        self.classifiers = Classifiers(
            config, dataset, self.device, partial(load_roots, plan.seeds)
        )
        self.shards = _shards(config, plan)
        # Sampling is a few small products: it runs beside the training members, on the CPU.
        self.denoiser, self.scale = generator.load_generator(config, plan, weights)
        model = config.autoencoder.model
        representation = load_representation(model.features, plan.autoencoder)
        self.autoencoder = model.build(representation.num_features).eval()
        self.autoencoder.load_state_dict(load_weights(plan.autoencoder, autoencoder.WEIGHTS))
        self.decode = representation.decoder(plan.seeds)
        self.num_trunks = config.seeds.protocol.num_trunks

    def draw(self, index: int) -> None:
        """Draw one shard, check and validate its classifiers, and write it."""
        section = self.config.samples
        ids = list(self.shards[index])
        gpus = section.resources.gpus if self.device == "cuda" else 0.0
        with Stopwatch(gpus) as watch:
            theta_NP, trunks_N = self.classifiers_of(ids)
            val_accuracy_N, val_nll_N = self.classifiers.validate(theta_NP, trunks_N.tolist())
        none = np.zeros(len(ids), dtype=np.int64)
        population = Population(
            model_id=np.array(ids),
            trunk=trunks_N,
            fork=np.array(ids) // self.num_trunks,
            step=none,
            seed=np.array([seed_for(self.config.seed, "sample", i) for i in ids]),
            held_out=np.full(len(ids), False),
            val_accuracy=val_accuracy_N.numpy(),
            val_nll=val_nll_N.numpy(),
            fit_seconds=np.full(len(ids), watch.cost.cpu_seconds / len(ids)),
            origin="generated",
            theta_KP=theta_NP.numpy(),
            layout_digest=self.classifiers.layout.digest,
        )
        # The cost first: where the shard is whole, its cost is there.
        write_cost(self.artifact, shard_name(index), watch.cost)
        write_shard(self.artifact, index, population)

    def classifiers_of(self, ids: Sequence[int]) -> tuple[torch.Tensor, NDArray[np.int32]]:
        """Parameters ``(N, P)`` that can vote, checked and recalibrated, and their trunks.

        Raises:
            TrainingError: parameters that are not finite.
        """
        trunks_N = self._trunks(ids)
        theta_NP = self.sample(ids)
        broken = [i for i, ok in zip(ids, theta_NP.isfinite().all(dim=1), strict=True) if not ok]
        if broken:
            raise TrainingError(
                f"samples: expected finite parameters, {len(broken)} of {len(ids)} drawn "
                f"models have others (models {broken[:5]}); train the generator for longer"
            )
        return self.classifiers.recalibrate(theta_NP, trunks_N.tolist()), trunks_N

    def _trunks(self, ids: Sequence[int]) -> NDArray[np.int32]:
        """The trunk each was asked to be of; -1 where the generator cannot be asked for one."""
        asked = self.config.generator.conditional or self.num_trunks == 1
        return np.array([i % self.num_trunks if asked else -1 for i in ids], dtype=np.int32)

    @torch.no_grad()
    def sample(self, ids: Sequence[int]) -> torch.Tensor:
        """Parameters ``(N, P)`` of the classifiers ``ids``."""
        conditions = self.config.num_conditions
        z_NZ = sample_latents(
            self.denoiser,
            self.config.generator.process,
            self.config.samples.sampler,
            self.scale,
            torch.tensor([i % conditions for i in ids]),
            [generator_for(self.config.seed, "sample", i) for i in ids],
            self.config.samples.temperature,
        )
        return self.decode(self.autoencoder.decode(z_NZ))
