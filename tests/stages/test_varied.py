"""A population that differs by hyper-parameters: the best of those that begin go on."""

import torch
from tiny import MakeConfig, make

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.artifacts.weights import load_weights
from bend_ray.populations.members import ROOTS

VARIED = (
    "seeds.protocol={kind: varied, models: 4, candidates: 3, align: false}",
    "autoencoder.model.latent_size=2",
    "samples.finish=null",
)


def test_the_best_that_begin_go_on(tiny: MakeConfig, shared_store: Store) -> None:
    graph = make(tiny(*VARIED), shared_store, "seeds")
    population = read_population(graph.seeds)
    assert population.trunk.tolist() == [0, 1, 2, 3]
    roots = load_weights(graph.seeds, ROOTS)
    assert len(set(roots["source"].tolist())) == len(roots["theta"]) == 4
    assert set(roots["source"].tolist()) <= set(range(12))
    assert not torch.equal(roots["theta"], torch.from_numpy(population.theta_KP))
