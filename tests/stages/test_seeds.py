"""Stage 1: the population does not depend on who trained it, or who died meanwhile."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import MakeConfig, make, own_processes

from bend_ray.artifacts.cost import Cost, write_cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import Graph, graph_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.populations.members import LAYOUT, ROOTS
from bend_ray.runtime.on_ray import RayRuntime

pytestmark = [pytest.mark.ray, pytest.mark.trains, pytest.mark.usefixtures("cluster")]


def train(config: PipelineConfig, store: Store) -> Population:
    """By actors."""
    return read_population(make(config, store, "seeds", RayRuntime(own=True)).seeds)


def assert_equal(a: Population, b: Population) -> None:
    for name in ("model_id", "trunk", "fork", "step", "seed", "held_out", "val_accuracy"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_array_equal(a.theta_KP, b.theta_KP)


def test_one_or_three_actors_train_the_same_population_as_this_process(
    tiny: MakeConfig, shared_store: Store, fresh_store: Store, tmp_path: Path
) -> None:
    alone = train(tiny("seeds.resources.workers=1"), shared_store)
    together = train(tiny("seeds.resources.workers=3"), fresh_store)
    assert_equal(alone, together)
    # And so does this process.
    here = read_population(make(tiny(), Store(str(tmp_path / "here")), "seeds").seeds)
    assert_equal(alone, here)
    assert alone.trunk.tolist() == [0] * 6 + [1] * 6
    assert alone.held_out.sum() == 2
    assert (alone.fit_seconds > 0).all()


def test_a_killed_actor_costs_its_cohort_and_nothing_else(
    tiny: MakeConfig, shared_store: Store, fresh_store: Store
) -> None:
    config = tiny()
    undisturbed = train(config, shared_store)
    artifacts, killed = graph_of(config, fresh_store), []

    def kill_after_the_first_shard() -> None:
        while not list_shards(artifacts):
            time.sleep(0.002)
        for pid in own_processes("ray::SeedTrainer"):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    killer = threading.Thread(target=kill_after_the_first_shard)
    killer.start()
    disturbed = train(config, fresh_store)
    killer.join()
    assert killed
    assert_equal(undisturbed, disturbed)


def list_shards(graph: Graph) -> list[str]:
    return list(graph.seeds.list_files("shard-"))


def test_shards_of_an_earlier_attempt_are_kept(
    tiny: MakeConfig, shared_store: Store, fresh_store: Store
) -> None:
    config = tiny()
    made, again = make(config, shared_store, "seeds").seeds, graph_of(config, fresh_store).seeds
    kept = ["shard-00000.parquet", "shard-00002.parquet", ROOTS, LAYOUT]
    for name in kept:
        with again.open_output(name) as stream:
            stream.write(made.read_bytes(name))
    for name in [*kept[:2], ROOTS]:
        write_cost(again, name, Cost(cpu_seconds=1.0))
    written = {name: os.stat(again.child(name)).st_mtime_ns for name in kept}
    assert_equal(read_population(made), train(config, fresh_store))
    assert {name: os.stat(again.child(name)).st_mtime_ns for name in kept} == written
    assert again.manifest().cost.cpu_seconds > 3.0


@pytest.mark.parametrize(
    ("overrides", "models"),
    [
        (["seeds.protocol={kind: independent, models: 8}"], 8),
        (["seeds.protocol={kind: independent, models: 8, align: false}"], 8),
        (["seeds.protocol={kind: trajectory, bases: 2, checkpoints: 5, epochs: 2}"], 10),
        (["seeds.protocol={kind: tails, trunks: 2, tails: 4, tail_fraction: 0.25}"], 8),
    ],
)
def test_other_protocols_leave_working_classifiers(
    tiny: MakeConfig, shared_store: Store, overrides: list[str], models: int
) -> None:
    config = tiny(*overrides, "autoencoder.model.latent_size=4")
    population = read_population(make(config, shared_store, "seeds").seeds)
    assert population.model_id.tolist() == list(range(models))
    assert (population.val_accuracy > 0.7).all()
    assert len(np.unique(population.theta_KP, axis=0)) == models
