"""Stage 5, samples: actors draw classifiers from noise, decode and validate them.

A generated population has the format of a trained one.
"""

from __future__ import annotations

from bend_ray.artifacts.cost import Stopwatch
from bend_ray.artifacts.shards import shard_name
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import TrainingError
from bend_ray.populations.divergence import commit_left, done_shards, left_rows
from bend_ray.process.log import ProgressLine
from bend_ray.runtime.interface import Runtime
from bend_ray.stages.probes import check_samples
from bend_ray.stages.sample_drawer import SampleDrawer, shards_of


def make(config: PipelineConfig, graph: Graph, runtime: Runtime) -> None:
    """Draw ``config.samples.count`` classifiers and commit them."""
    artifact, section = graph.samples, config.samples
    rows = {index: len(shard) for index, shard in enumerate(shards_of(config, graph))}
    done = done_shards(artifact, rows)
    with Stopwatch() as watch, ProgressLine("samples", section.count, "models") as progress:
        progress.update(sum(rows[index] for index in done))
        if missing := sorted(set(rows) - done):
            with runtime.workers(
                *(SampleDrawer, config, graph, runtime.share(config.dataset)),
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
    check_samples(config, graph, runtime, left)
    commit_left(artifact, "samples", rows, watch.cost.wall_seconds)
