"""Stage 5, samples: Ray Data draws classifiers from noise, decodes and validates them.

A generated population has the format of a trained one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import ray.data

from bend_ray.artifacts.cost import COST_DIRECTORY, Stopwatch, read_costs
from bend_ray.artifacts.shards import shard_name
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import Plan
from bend_ray.config.graph import plan as plan_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import TrainingError
from bend_ray.populations.divergence import DIRECTORY as DIVERGED
from bend_ray.populations.divergence import done_shards, left_rows, notes, told
from bend_ray.process.log import Progress
from bend_ray.runtime import cluster
from bend_ray.runtime.sharing import SharedDataset, share_dataset
from bend_ray.stages.probes import check_samples
from bend_ray.stages.sample_drawer import SampleDrawer, shards_of


def make(config: PipelineConfig, plan: Plan) -> None:
    """Draw ``config.samples.count`` classifiers and commit them."""
    artifact, section = plan.samples, config.samples
    rows = {index: len(shard) for index, shard in enumerate(shards_of(config, plan))}
    done = done_shards(artifact, rows)
    missing = sorted(set(rows) - done)
    with Stopwatch() as watch, Progress("samples", section.count, "models") as progress:
        progress.update(sum(rows[index] for index in done))
        for index in _draw_shards(config, plan, missing):
            done.add(index)
            progress.update(sum(rows[index] for index in done))
    left = {index: count for index, count in left_rows(artifact, rows).items() if count}
    if not left:
        raise TrainingError(
            f"samples: expected finite parameters, all {section.count} drawn models have others; "
            "train the generator for longer"
        )
    names = [shard_name(index) for index in left]
    check_samples(config, plan, names)
    costs = list(read_costs(artifact, map(shard_name, rows)).values())
    diverged = [each for piece in notes(artifact).values() for each in piece]
    artifact.commit(
        files=names,
        rows=dict(zip(names, left.values(), strict=True)),
        metrics={
            "models": sum(left.values()),
            "diverged": told("samples", diverged, section.count),
        },
        cost=cluster.total(costs, watch.cost.wall_seconds),
    )
    artifact.discard(COST_DIRECTORY)
    artifact.discard(DIVERGED)


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
