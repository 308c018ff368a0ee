"""The same config gives the same result, whoever computes it and however many they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import MakeConfig, make

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import read_population, shard_name
from bend_ray.artifacts.store import Store
from bend_ray.artifacts.weights import load_weights
from bend_ray.config.graph import graph_of
from bend_ray.runtime.on_ray import RayRuntime
from bend_ray.stages import autoencoder, seeds


def trained(make_config: MakeConfig, folder: Path, cohort_size: int, actors: int) -> Population:
    """A population whose cohorts were shared out among so many trainers, the last one first."""
    config = make_config(f"seeds.cohort_size={cohort_size}")
    artifact = graph_of(config, Store(str(folder / f"{cohort_size}-{actors}"))).seeds
    trainers = [seeds.SeedTrainer(config, artifact, config.dataset) for _ in range(actors)]
    chunks = range(-(-config.seeds.protocol.num_roots // cohort_size))
    for chunk in chunks:
        trainers[chunk % actors].train_roots(chunk)
    trainers[-1].store_roots(chunks)
    rows = {}
    for index in reversed(range(len(trainers[0].cohorts))):
        trainers[index % actors].train_cohort(index)
        rows[shard_name(index)] = len(trainers[0].cohorts[index].shards[index])
    artifact.commit(files=list(rows), rows=rows, metrics={}, cost=Cost())
    return read_population(artifact)


@pytest.mark.trains
@pytest.mark.slow
def test_a_population_is_the_same_to_the_bit_whoever_trained_its_cohorts(
    tiny: MakeConfig, tmp_path: Path
) -> None:
    alone, *others = (trained(tiny, tmp_path, 4, actors) for actors in (1, 2, 8))
    for other in others:
        np.testing.assert_array_equal(alone.theta_KP, other.theta_KP)
        np.testing.assert_array_equal(alone.val_nll, other.val_nll)
    # Models trained in other company differ by the order of sums, and no more.
    for cohort_size in (1, 12):
        other = trained(tiny, tmp_path, cohort_size, 1)
        np.testing.assert_array_equal(alone.model_id, other.model_id)
        np.testing.assert_allclose(alone.theta_KP, other.theta_KP, atol=2e-5)
        np.testing.assert_allclose(alone.val_nll, other.val_nll, atol=1e-5)


@pytest.mark.trains
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(900)
def test_eight_actors_and_two_train_workers_give_what_one_of_each_gives(
    tiny: MakeConfig, tmp_path: Path
) -> None:
    many = tiny(
        "seeds.cohort_size=2",
        "seeds.resources={workers: 8, cpus: 0.25}",
        "autoencoder.resources.workers=2",
        "generator.resources.workers=2",
        "samples.resources.workers=2",
    )
    one = tiny("seeds.cohort_size=2")
    alone = make(one, Store(str(tmp_path / "one")))
    together = make(many, Store(str(tmp_path / "many")), runtime=RayRuntime(own=False))
    assert alone.evaluation.fingerprint == together.evaluation.fingerprint
    np.testing.assert_array_equal(
        read_population(alone.seeds).theta_KP, read_population(together.seeds).theta_KP
    )
    # Two workers add two halves of a batch, in another order than one adds the whole.
    weights = [load_weights(each.autoencoder, autoencoder.WEIGHTS) for each in (alone, together)]
    for name, tensor in weights[0].items():
        np.testing.assert_allclose(weights[1][name], tensor, atol=1e-6, err_msg=name)
    bags: list[Any] = [each.evaluation.manifest().metrics["bag"] for each in (alone, together)]
    assert abs(bags[0]["nll"] - bags[1]["nll"]) < 1e-6
    assert bags[0]["accuracy"] == bags[1]["accuracy"]
