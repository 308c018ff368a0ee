"""A population that differs by hyper-parameters: a bag of the best is chosen as they train."""

import torch
from tiny import MakeConfig, make

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store

VARIED = (
    "seeds.protocol={kind: varied, models: 4, candidates: 3, align: false, looks: 4, trial: 2}",
    "seeds.cohort_size=6",
    "autoencoder.model.latent_size=2",
    "samples.finish=null",
)


def test_each_cohort_gives_its_places_to_some_of_its_candidates(
    tiny: MakeConfig, shared_store: Store
) -> None:
    population = read_population(make(tiny(*VARIED), shared_store, "seeds").seeds)
    assert population.fork.tolist() == population.model_id.tolist() == [0, 1, 2, 3]
    assert set(population.trunk.tolist()) == {0}
    seeds = torch.from_numpy(population.seed)
    assert not set(seeds[:2].tolist()) & set(seeds[2:].tolist())
    assert len(torch.from_numpy(population.theta_KP).unique(dim=0)) == 4
    assert population.val_nll.shape == population.step.shape == (4,)
    assert (population.step > 0).all()
