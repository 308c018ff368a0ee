"""What the driver itself spends on a population: Ray's calls, shards, costs, the manifest.

    uv run python tests/benchmarks/bench_driver.py [100 1000 10000]
    uv run python tests/benchmarks/bench_driver.py --parameters 23528522 30 300     # of a ResNet-50

The real stage of seeds, a model a shard, with trainers that train nothing and write what a trainer
writes. One JSON line a size: seconds of the driver's CPU and of the stage, bytes of the shards,
and the driver's own memory before and at most meanwhile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from functools import partial
from typing import Any

from bend_ray.process.environment import prepare_environment

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
from bend_ray.runtime.on_ray import RayRuntime
from bend_ray.stages import seeds

WORKERS = 2


class NoTrainer:
    """Writes a shard of one model."""

    def __init__(self, parameters: int, config: Any, artifact: Artifact, dataset: Any) -> None:
        self.parameters, self.artifact = parameters, artifact

    def train_cohort(self, index: int) -> None:
        if index == 0:
            self.artifact.write_json(LAYOUT, {})
        write_cost(self.artifact, shard_name(index), Cost())
        write_shard(self.artifact, index, blank_population(1, self.parameters))


class Watch:
    """The most anonymous memory of this process while it is entered, MB."""

    def __enter__(self) -> Watch:
        self.before = self.most = self.now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def now(self) -> float:
        return psutil.Process().memory_full_info().uss / 2**20

    def _look(self) -> None:
        while not self._over.wait(0.1):
            self.most = max(self.most, self.now())


def measure(models: int, parameters: int, runtime: RayRuntime) -> dict[str, float]:
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
    # Not below /tmp, which may be memory.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        artifacts = graph_of(config, Store(folder))
        cpu, wall = time.process_time(), time.perf_counter()
        with Watch() as memory:
            seeds.make(artifacts, runtime)
        return {
            "models": models,
            "shards_mb": round(sum(f.bytes for f in artifacts.seeds.manifest().files) / 2**20, 1),
            "driver_cpu_s": round(time.process_time() - cpu, 2),
            "wall_s": round(time.perf_counter() - wall, 2),
            "before_mb": round(memory.before, 1),
            "most_mb": round(memory.most, 1),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[100, 1000, 10000])
    parser.add_argument("--parameters", type=int, default=1)
    given = parser.parse_args()
    make = partial(NoTrainer, given.parameters)
    make.__name__ = "NoTrainer"  # type: ignore[attr-defined]
    seeds.SeedTrainer = make  # type: ignore[misc, assignment]
    runtime = RayRuntime(cluster.connect(None))
    measure(10, 1, runtime)  # processes start, libraries are imported
    for size in given.sizes:
        print(json.dumps(measure(size, given.parameters, runtime)), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
