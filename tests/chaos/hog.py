"""Fills the object store of every node of a cluster, half as much again, and keeps reading it.

    python hog.py ADDRESS

Prints a line when all are full; ends with its standard input's other end, or when it is killed.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

BLOCK_BYTES = 8 * 2**20


@ray.remote(num_cpus=0)
class Hog:
    def fill(self, num_bytes: int) -> None:
        self.kept = [
            ray.put(np.full(BLOCK_BYTES, i % 251, dtype=np.uint8))
            for i in range(num_bytes // BLOCK_BYTES)
        ]

    def read(self) -> int:
        return sum(int(ray.get(reference)[0]) for reference in self.kept[:2])


ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR", namespace="hog")
hogs = []
for node in ray.nodes():
    where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    hogs.append(Hog.options(scheduling_strategy=where).remote())
    ray.get(hogs[-1].fill.remote(int(node["Resources"]["object_store_memory"] * 1.5)))
print("full", flush=True)
while True:
    time.sleep(3)
    for hog in hogs:
        ray.get(hog.read.remote())
