"""A population that owns a part of its parameters goes through all stages on its trunks' bases."""

from __future__ import annotations

import pytest
import torch
from tiny import MakeConfig, make
from torch import Tensor

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import Graph
from bend_ray.config.schema import ParametersSection
from bend_ray.errors import ConfigError
from bend_ray.populations.members import load_roots
from bend_ray.populations.networks import Classifiers

pytestmark = pytest.mark.trains

SUBSET = (
    "seeds.architecture={kind: convnet, channels: [6, 8]}",
    "seeds.recipe.epochs=2",
    "seeds.protocol.trunk_fraction=0.5",
    "parameters.include=[block1.norm.*, head.weight]",
    "evaluation.rivals=[{kind: weight_average}, {kind: trunk_averages}, {kind: deep_ensemble}]",
)
SIZE = 4 * 8 + 8 * 10


@pytest.fixture(scope="module")
def made(shared_store: Store) -> Graph:
    from tiny import TINY

    from bend_ray.config.reading import load_config

    return make(load_config(None, [*TINY, *SUBSET]), shared_store)


def validated_whole(theta_KP: Tensor, trunks_K: Tensor, tiny: MakeConfig, made: Graph) -> Tensor:
    """Validation NLL of the members with their trunk's base written out, as whole models."""
    config = tiny(*SUBSET)
    dataset = config.dataset.load()
    roots_RW = load_roots(made.seeds)
    part = Classifiers(config, dataset, "cpu")
    states = part.whole.unflatten(roots_RW[trunks_K]) | part.layout.unflatten(theta_KP)
    whole = config.model_copy(update={"parameters": ParametersSection()})
    return Classifiers(whole, dataset, "cpu").validate(part.whole.flatten(states))[1].float()


@pytest.mark.parametrize("stage", ["seeds", "samples"])
def test_members_are_their_trunk_s_base_and_their_own_part(
    stage: str, tiny: MakeConfig, made: Graph
) -> None:
    population = read_population(made[stage])
    assert population.theta_KP.shape[1] == SIZE
    trunks_K = torch.from_numpy(population.trunk).long()
    assert set(trunks_K.tolist()) == {0, 1}
    nll_K = validated_whole(torch.from_numpy(population.theta_KP), trunks_K, tiny, made)
    torch.testing.assert_close(torch.from_numpy(population.val_nll), nll_K, rtol=1e-4, atol=1e-5)


def test_rivals_share_the_bases_and_the_deep_ensemble_does_not(made: Graph) -> None:
    rivals = made.evaluation.manifest().metrics["rivals"]
    assert rivals["trunk_averages"]["size"] == 2
    # Better than a coin among ten classes, which a part on a wrong base is not.
    assert rivals["trunk_averages"]["accuracy"] > 0.2
    ordinary = rivals["deep_ensemble"]
    assert ordinary["size"] == 6
    assert ordinary["accuracy"] > 0.2


def test_the_same_population_whoever_trains_it(tiny: MakeConfig, fresh_store: Store, made: Graph):
    config = tiny(*SUBSET, "seeds.cohort_size=7", "seeds.resources.workers=2")
    again = make(config, fresh_store, "seeds")
    one, other = (read_population(p.seeds).theta_KP for p in (made, again))
    torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other))


def test_a_pattern_that_matches_nothing_is_refused_before_any_training(
    tiny: MakeConfig, fresh_store: Store
) -> None:
    config = tiny(*SUBSET, "parameters.include=[hed.*]")
    with pytest.raises(ConfigError, match=r"'hed\.\*'.*closest: head\."):
        make(config, fresh_store, until="seeds")
