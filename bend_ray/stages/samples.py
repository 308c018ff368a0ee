"""Stage 5, samples: actors draw classifiers from noise, decode and validate them.

A generated population has the format of a trained one.
"""

from __future__ import annotations

from bend_ray.artifacts.cost import COST_DIRECTORY, Stopwatch, cost_of_pieces, read_costs
from bend_ray.artifacts.shards import shard_name
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import TrainingError
from bend_ray.populations.divergence import DIRECTORY as DIVERGED
from bend_ray.populations.divergence import done_shards, left_rows, noted, notes
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
    left = {index: count for index, count in left_rows(artifact, rows).items() if count}
    if not left:
        raise TrainingError(
            f"samples: expected finite parameters, all {section.count} drawn models have others; "
            "train the generator for longer"
        )
    names = [shard_name(index) for index in left]
    check_samples(config, graph, runtime, names)
    costs = list(read_costs(artifact, map(shard_name, rows)).values())
    diverged = [each for piece in notes(artifact).values() for each in piece]
    artifact.commit(
        files=names,
        rows=dict(zip(names, left.values(), strict=True)),
        metrics={
            "models": sum(left.values()),
            "diverged": noted("samples", diverged, section.count),
        },
        cost=cost_of_pieces(costs, watch.cost.wall_seconds),
    )
    artifact.discard(COST_DIRECTORY)
    artifact.discard(DIVERGED)
