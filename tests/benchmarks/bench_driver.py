"""What the driver itself spends on a population: Ray's calls, shards, costs, the manifest.

    uv run python tests/benchmarks/bench_driver.py [100 1000 10000]

The real stage of seeds, a model a shard, with trainers that train nothing and write what a trainer
writes. One JSON line a size: seconds of the driver's CPU and of the stage, and what its memory grew
by.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any

from bend_ray.runtime.environment import prepare_environment

prepare_environment(None)

import psutil
import ray

from bend_ray.artifacts.cost import Cost, write_cost
from bend_ray.artifacts.shards import shard_name, write_shard
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.graph import graph_of
from bend_ray.config.reading import load_config
from bend_ray.forecast.calibration import blank_population
from bend_ray.populations.members import LAYOUT
from bend_ray.runtime import cluster
from bend_ray.runtime.interface import Runtime
from bend_ray.runtime.on_ray import RayRuntime
from bend_ray.stages import seeds

WORKERS = 2


class NoTrainer:
    """Writes a shard of one model of one parameter."""

    def __init__(self, config: Any, artifact: Artifact, dataset: Any) -> None:
        self.artifact = artifact

    def train_cohort(self, index: int) -> None:
        if index == 0:
            self.artifact.write_json(LAYOUT, {})
        write_cost(self.artifact, shard_name(index), Cost())
        write_shard(self.artifact, index, blank_population(1, 1))


def measure(models: int, runtime: Runtime) -> dict[str, float]:
    """One size, in a store of its own."""
    protocol = f"{{kind: independent, models: {models}, align: false}}"
    config = load_config(
        None,
        [
            f"seeds.protocol={protocol}",
            "seeds.cohort_size=1",
            "autoencoder.model.latent_size=2",
            f"seeds.resources.workers={WORKERS}",
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        artifacts = graph_of(config, Store(folder))
        process = psutil.Process()
        before, cpu, wall = process.memory_info().rss, time.process_time(), time.perf_counter()
        seeds.make(config, artifacts, runtime)
        return {
            "models": models,
            "driver_cpu_s": round(time.process_time() - cpu, 2),
            "wall_s": round(time.perf_counter() - wall, 2),
            "grown_mb": round((process.memory_info().rss - before) / 2**20, 1),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }


def main() -> None:
    """Measure and print."""
    sizes = [int(word) for word in sys.argv[1:]] or [100, 1000, 10000]
    seeds.SeedTrainer = NoTrainer  # type: ignore[misc, assignment]
    seeds._check = lambda config, classifiers: None
    runtime = RayRuntime(cluster.connect(None))
    measure(10, runtime)  # processes start, libraries are imported
    for size in sizes:
        print(json.dumps(measure(size, runtime)), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
