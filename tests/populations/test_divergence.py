"""Models that diverge: tried again once, else left out of all that follows, and told of."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import MakeConfig, make

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import read_population, write_shard
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.graph import graph_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import TrainingError
from bend_ray.populations.divergence import Divergence, done_shards, finite_rows, left_rows, note
from bend_ray.populations.members import learnt_vectors, load_roots
from bend_ray.report.evaluation import Result
from bend_ray.stages import samples, seeds
from bend_ray.stages.samples import SampleDrawer
from bend_ray.stages.seed_trainer import SeedTrainer

pytestmark = pytest.mark.trains

SCRATCH = "seeds.protocol={kind: independent, models: 8, align: false}"

NO_FIGURES: dict[str, Any] = {"metrics": {}, "cost": Cost()}
ONE_MODEL = Population(
    **{
        name: np.zeros(1)
        for name in (
            *("model_id", "trunk", "fork", "step", "seed", "held_out"),
            *("val_accuracy", "val_nll", "fit_seconds"),
        )
    },
    origin="trained",
    theta_KP=np.ones((1, 4), dtype=np.float32),
    layout_digest="0123abcd",
)


class Planted(SeedTrainer):
    """Trains some models from starts so large that they overflow."""

    purpose = "start"
    bad: tuple[int, ...] = ()

    def _fresh(self, purpose: str, index: int) -> torch.Tensor:
        theta = super()._fresh(purpose, index)
        return theta * 1e30 if purpose == self.purpose and index in self.bad else theta


class OfOneTrunk(Planted):
    """Of two trunks the first diverges, and so does its second attempt."""

    purpose, bad = "root", (0, 2)


def train(
    config: PipelineConfig, store: Store, purpose: str = "start", bad: tuple[int, ...] = ()
) -> tuple[Population, Artifact]:
    """All that ``seeds.make`` does, in this process, with some starts spoilt."""
    graph = graph_of(config, store)
    artifact = graph.seeds
    trainer = Planted(config, artifact, config.dataset)  # type: ignore[arg-type]
    trainer.purpose, trainer.bad = purpose, bad
    if config.seeds.protocol.num_roots:
        trainer.train_roots(0)
        trainer.store_roots([0])
    for index in range(len(trainer.cohorts)):
        trainer.train_cohort(index)
    rows = {i: len(own) for each in trainer.cohorts for i, own in each.shards.items()}
    assert done_shards(artifact, rows) == set(rows)
    seeds._commit(graph, rows, 1.0)
    assert not artifact.list_files("making")
    return read_population(artifact), artifact


def test_a_model_is_trained_again_with_a_seed_of_its_own_or_left_out(
    tiny: MakeConfig, fresh_store: Store, shared_store: Store
) -> None:
    small = tiny(SCRATCH, "autoencoder.model.latent_size=4")
    healthy = read_population(make(small, shared_store, "seeds").seeds)
    # Of 8 models, 13 is the second attempt of model 5, and 10 that of model 2.
    found, artifact = train(small, fresh_store, bad=(5, 2, 10))
    assert found.model_id.tolist() == [0, 1, 3, 4, 5, 6, 7]
    same = found.model_id != 5
    kept = np.isin(healthy.model_id, found.model_id[same])
    np.testing.assert_array_equal(found.theta_KP[same], healthy.theta_KP[kept])
    larger = tiny("seeds.protocol={kind: independent, models: 14, align: false}")
    spare = read_population(make(larger, shared_store, "seeds").seeds).select([13])
    np.testing.assert_allclose(found.theta_KP[~same], spare.theta_KP, atol=1e-4)
    assert found.seed[~same] == spare.seed
    told = [Divergence.model_validate(each) for each in artifact.manifest().metrics["diverged"]]
    assert [(each.fork, each.outcome, each.models) for each in told] == [
        (2, "dropped", (2,)),
        (5, "retrained", ()),
    ]
    assert healthy.seed[5] == told[1].seed


def test_a_trunk_that_diverges_takes_its_forks_with_it(
    tiny: MakeConfig, fresh_store: Store
) -> None:
    config = tiny("seeds.protocol.trunks=3")
    # Root 0 and its second attempt; root 1, whose second attempt does well.
    found, artifact = train(config, fresh_store, "root", bad=(0, 3, 1))
    assert sorted(set(found.trunk.tolist())) == [1, 2]
    assert finite_rows(load_roots(artifact)).tolist() == [False, True, True]
    told = [Divergence.model_validate(each) for each in artifact.manifest().metrics["diverged"]]
    roots = [(each.trunk, each.outcome) for each in told if each.kind == "root"]
    assert roots == [(0, "dropped"), (1, "retrained")]
    assert [each.models for each in told if each.kind == "run"] == [(i,) for i in range(6)]
    assert learnt_vectors(artifact)[1].unique().tolist() == [1, 2]


def test_a_population_that_partly_diverges_still_makes_a_bag(
    tiny: MakeConfig,
    fresh_store: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seeds, "SeedTrainer", OfOneTrunk)
    config = tiny("autoencoder.model.latent_size=3")
    artifacts = make(config, fresh_store)
    trained, drawn = read_population(artifacts.seeds), read_population(artifacts.samples)
    assert trained.model_id.tolist() == list(range(6, 12))
    for population in (trained, drawn):
        assert np.isfinite(population.theta_KP).all()
        assert np.isfinite(population.val_nll).all()
    # Who trains them does not matter to which of them diverge.
    alone, _ = train(config, Store(str(tmp_path / "alone")), "root", OfOneTrunk.bad)
    assert alone.model_id.tolist() == trained.model_id.tolist()
    np.testing.assert_array_equal(alone.theta_KP, trained.theta_KP)
    assert set(drawn.trunk.tolist()) == {1}
    assert Result.of(artifacts).bag.size == 6
    assert "6 of 12 models diverged and are left out" in caplog.text
    with pytest.raises(TrainingError, match=r"autoencoder\.model\.latent_size = 6 .*diverged"):
        make(tiny(), fresh_store, "autoencoder")


def test_a_diverged_population_is_refused_with_advice(tiny: MakeConfig, fresh_store: Store) -> None:
    config = tiny("seeds.recipe.optimizer={kind: sgd, learning_rate: 1.0e+30}")
    with pytest.raises(TrainingError, match=r"all 2 roots diverged.*lower seeds\.recipe\.opt"):
        make(config, fresh_store, "seeds")


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the latents of some drawn models overflow."""
    draw = samples.sample_latents

    def spoilt(every: int) -> None:
        def sample(*given: object) -> torch.Tensor:
            z_NZ = draw(*given)  # type: ignore[arg-type]
            z_NZ[::every] = torch.inf
            return z_NZ

        monkeypatch.setattr(samples, "sample_latents", sample)

    return spoilt


def test_a_drawn_model_that_is_not_finite_is_left_out(
    tiny: MakeConfig, shared_store: Store, fresh_store: Store, spoil: Callable[[int], None]
) -> None:
    config = tiny()
    made = make(config, shared_store, "samples")
    again = Store(fresh_store.uri).artifact("samples", 1, {})
    drawer = SampleDrawer(replace(made, samples=again), config.dataset)
    spoil(2)
    drawer.draw(0)
    spoil(1)
    drawer.draw(1)
    assert left_rows(again, {0: 3, 1: 3}) == {0: 1, 1: 0}
    assert done_shards(again, {0: 3, 1: 3}) == {0, 1}
    again.commit(files=["shard-00000.parquet"], rows={"shard-00000.parquet": 1}, **NO_FIGURES)
    left, whole = read_population(again), read_population(made.samples).select([1])
    assert left.model_id.tolist() == [1]
    np.testing.assert_allclose(left.theta_KP, whole.theta_KP, atol=1e-5)


def test_a_torn_shard_is_not_done_whatever_its_note_says(fresh_store: Store) -> None:
    artifact = fresh_store.artifact("seeds", 1, {})
    dropped = Divergence(kind="run", trunk=0, fork=1, seed=3, outcome="dropped", models=(1,))
    note(artifact, "shard-00000.parquet", [dropped])
    assert done_shards(artifact, {0: 2}) == set()
    write_shard(artifact, 0, ONE_MODEL)
    assert done_shards(artifact, {0: 2}) == {0}
    assert done_shards(artifact, {0: 3}) == set()
