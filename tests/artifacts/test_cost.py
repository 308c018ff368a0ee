from __future__ import annotations

import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from bend_ray.artifacts.cost import Cost, Stopwatch, read_cost, write_cost
from bend_ray.artifacts.store import Store
from bend_ray.errors import StoreError


def test_costs_add_up() -> None:
    costs = [Cost(cpu_seconds=1, gpu_seconds=2, wall_seconds=4)] * 3
    assert sum(costs, Cost()) == Cost(cpu_seconds=3, gpu_seconds=6, wall_seconds=12)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_cost_is_a_finite_non_negative_number(seconds: float) -> None:
    with pytest.raises(ValidationError):
        Cost(cpu_seconds=seconds)


def test_sleeping_costs_wall_time_and_gpus_but_no_cpu() -> None:
    with Stopwatch(num_gpus=2) as watch:
        time.sleep(0.05)
        so_far = watch.cost
    time.sleep(0.05)
    cost = watch.cost
    assert 0.05 <= so_far.wall_seconds <= cost.wall_seconds < 0.1 + so_far.wall_seconds
    assert cost.gpu_seconds == 2 * cost.wall_seconds
    assert cost.cpu_seconds < 0.05
    assert watch.cost == cost


def test_computing_costs_cpu_time() -> None:
    with Stopwatch() as watch:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
    assert watch.cost.cpu_seconds >= 0.05
    assert watch.cost.gpu_seconds == 0


def test_a_noted_cost_is_read_back(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).artifact("seeds", 1, {})
    write_cost(artifact, "shard-00000.parquet", Cost(cpu_seconds=1.5, wall_seconds=2.0))
    assert read_cost(artifact, "shard-00000.parquet") == Cost(cpu_seconds=1.5, wall_seconds=2.0)
    with pytest.raises(StoreError, match=r"shard-00001\.parquet"):
        read_cost(artifact, "shard-00001.parquet")


def test_the_processor_that_decides_is_the_gpu_where_one_was_used() -> None:
    assert Cost(cpu_seconds=3.0).seconds == 3.0
    assert Cost(cpu_seconds=3.0, gpu_seconds=1.0).seconds == 1.0
