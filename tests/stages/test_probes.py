"""A generator that collapses is stopped half-way, and none of what it drew is committed."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import MakeConfig, make

from bend_ray.artifacts.shards import read_population, write_shard
from bend_ray.artifacts.store import Store
from bend_ray.errors import TrainingError
from bend_ray.runtime.interface import Runtime
from bend_ray.stages.samples import Floor, check_samples

# One that has learnt nothing predicts no noise, and so takes what it starts from for a latent that
# was made a hundred times smaller. What a training that runs wild draws hangs on its last bits.
UNTAUGHT = (
    "generator.process={kind: ddpm, prediction: eps}",
    "generator.denoiser={kind: conv1d, channels: [4, 8], kernel: 3}",
    "generator.training.patience=null",
    "generator.training.optimizer.learning_rate=1.0e-12",
)
CHANCE = (0.25, 0.043)


def test_the_floor_is_a_share_of_the_members_lead_over_chance() -> None:
    floor = Floor.of(np.array([0.5, 0.85, 0.95], dtype=np.float32), CHANCE, 0.1)
    assert (floor.chance, floor.members) == (0.25, pytest.approx(0.85))
    assert floor.least == pytest.approx(0.31)
    floor.require([0.1, 0.32], "none", "mend it")
    for accuracy in ([0.3], []):
        with pytest.raises(TrainingError, match=r"none .*; mend it"):
            floor.require(accuracy, "none", "mend it")


@pytest.mark.parametrize(("member", "share"), [(0.95, 0.0), (0.3, 0.5), (0.1, 0.5)])
def test_nothing_is_asked_of_a_generator_where_members_know_nothing(
    member: float, share: float
) -> None:
    floor = Floor.of(np.array([member], dtype=np.float32), CHANCE, share)
    floor.require([0.0], "none", "mend it")
    with pytest.raises(TrainingError, match="none is finite; mend it"):
        floor.require([], "none", "mend it")


@pytest.mark.trains
def test_a_generator_that_collapses_is_stopped_half_way(
    tiny: MakeConfig, shared_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    strict = "generator.probes.floor=0.9"
    at = "collapsed: at step 100 of 200 none of 6 drawn models comes up to"
    with pytest.raises(TrainingError, match=at):
        make(tiny(*UNTAUGHT, strict), shared_store, "generator")
    # Without a floor it is there for whoever wants it.
    made = make(tiny(*UNTAUGHT, "generator.probes.floor=0"), shared_store, "generator")
    assert made.generator.manifest().metrics["probes"]["step"] == 100
    assert "what it draws lies far from all members" in caplog.text
    # Nobody can wish for models that are not finite.
    other = ("generator.training.patience=null", "samples.temperature=1.0e+38")
    with pytest.raises(TrainingError, match="none of 6 drawn models is finite"):
        make(tiny(*other, "generator.probes.floor=0"), shared_store, "generator")


@pytest.mark.parametrize(
    ("overrides", "step"),
    [
        ((), None),
        (("generator.training.patience=null",), 100),
        (("seeds.held_out=0",), 100),
        (("generator.denoiser={kind: conv1d, channels: [4, 8], kernel: 3}",), 100),
        ((*UNTAUGHT, "generator.probes.at=0.25"), 50),
        ((*UNTAUGHT, "generator.probes.count=0"), None),
        ((*UNTAUGHT, "generator.training.steps=0"), None),
    ],
)
def test_what_cannot_become_worse_than_a_gaussian_is_not_probed(
    tiny: MakeConfig, overrides: tuple[str, ...], step: int | None
) -> None:
    assert tiny(*overrides).probed_at == step


def test_samples_of_which_none_works_are_refused(
    tiny: MakeConfig, shared_store: Store, fresh_store: Store
) -> None:
    made = make(tiny(), shared_store, "seeds")
    graph = replace(made, samples=fresh_store.artifact("samples", 1, {}))
    population = read_population(made.seeds).select([0, 1])
    worse = replace(population, val_accuracy=np.array([0.1, 0.05]), origin="generated")
    shard = write_shard(graph.samples, 0, worse)
    with pytest.raises(TrainingError, match=r"samples: the generator collapsed: none of 2 drawn"):
        check_samples(graph, Runtime(), [shard])
    lenient = replace(graph, config=tiny("generator.probes.floor=0"))
    check_samples(lenient, Runtime(), [shard])
