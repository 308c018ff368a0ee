"""Early tails are no members; drawn models are moved on along their way, and trained a little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import MakeConfig, make

from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.artifacts.weights import load_weights
from bend_ray.config.graph import graph_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.populations.members import early_name, read_layout
from bend_ray.populations.networks import Classifiers
from bend_ray.report.evaluation import Result
from bend_ray.stages import seeds
from bend_ray.stages.samples import Finisher
from bend_ray.stages.seed_trainer import SeedTrainer

NETWORK = "seeds.architecture={kind: convnet, channels: [4, 4]}"
TAILS = "kind: tails, trunks: 2, trunk_fraction: 0.25, tail_fraction: 0.05"
SHORT = ("seeds.recipe.epochs=1", "seeds.held_out=0.4", "autoencoder.model.latent_size=3")
GUIDED = (
    *SHORT,
    f"seeds.protocol={{{TAILS}, early_tails: 2, tails: 3}}",
    "samples.finish={guidance: 0, annealing: {fraction: 0}}",
)


def trained(config: PipelineConfig, store: Store) -> tuple[Artifact, Population]:
    """What ``seeds.make`` makes, in this process, and its members."""
    graph = graph_of(config, store)
    artifact = graph.seeds
    trainer = SeedTrainer(config, artifact, config.dataset)  # type: ignore[arg-type]
    trainer.train_roots(0)
    trainer.store_roots([0])
    trainer.train_cohort(0)
    seeds._commit(graph, {0: config.seeds.num_models}, 1.0)
    return artifact, read_population(artifact)


def finish_of(config: PipelineConfig, artifact: Artifact) -> Finisher:
    return Finisher(config, artifact, Classifiers(config, config.dataset.load(), "cpu"))


def finished(
    config: PipelineConfig, artifact: Artifact, members: Population, ids: list[int]
) -> torch.Tensor:
    """Members of these rows and model ids, as if they were drawn."""
    chosen = members.select(ids)
    return finish_of(config, artifact)(torch.from_numpy(chosen.theta_KP), chosen.trunk, ids)


@pytest.mark.trains
def test_early_tails_leave_their_mean_and_are_no_members(
    tiny: MakeConfig, fresh_store: Store
) -> None:
    none_early = tiny(*SHORT, f"seeds.protocol={{{TAILS}, early_tails: 0, tails: 5}}")
    _, all_of_them = trained(none_early, fresh_store)
    artifact, members = trained(tiny(*GUIDED), fresh_store)
    means = load_weights(artifact, early_name(0))
    early = np.arange(10) % 5 < 2
    np.testing.assert_array_equal(members.theta_KP, all_of_them.theta_KP[~early])
    np.testing.assert_array_equal(members.step, all_of_them.step[~early])
    assert members.model_id.tolist() == list(range(6))
    expected = all_of_them.theta_KP[early].reshape(2, 2, -1).mean(axis=1)
    np.testing.assert_allclose(means["theta"].numpy(), expected, atol=1e-6)
    assert means["trunk"].tolist() == [0, 1]


def test_a_model_is_moved_on_along_the_way_of_its_own_trunk(
    tiny: MakeConfig, fresh_store: Store
) -> None:
    config = tiny(*GUIDED, NETWORK, "samples.finish.guidance=0.5")
    artifact, members = trained(config, fresh_store)
    early_TP = load_weights(artifact, early_name(0))["theta"].numpy()
    moved_NP = finished(config, artifact, members, [4, 0]).numpy()
    weights = slice(0, read_layout(artifact).num_trainable)
    for row, model in enumerate((4, 0)):
        trunk = members.trunk[model]
        seen = ~members.held_out & (members.trunk == trunk)
        assert seen.sum() == 2
        way_P = members.theta_KP[seen].mean(axis=0) - early_TP[trunk]
        expected_P = members.theta_KP[model] + 0.5 * way_P
        np.testing.assert_allclose(moved_NP[row, weights], expected_P[weights], atol=1e-5)
        # Statistics that are moved on may be variances below zero.
        statistics = slice(weights.stop, None)
        np.testing.assert_array_equal(
            moved_NP[row, statistics], members.theta_KP[model, statistics]
        )


@pytest.mark.trains
def test_annealing_trains_a_model_the_same_way_in_any_company(
    tiny: MakeConfig, fresh_store: Store
) -> None:
    config = tiny(*GUIDED, NETWORK, "samples.finish.annealing.fraction=0.25")
    artifact, members = trained(config, fresh_store)
    together_NP = finished(config, artifact, members, [0, 3])
    assert torch.equal(finished(config, artifact, members, [3]), together_NP[1:])
    finish = finish_of(config, artifact)
    assert finish.num_steps == 5
    theta_NP = torch.from_numpy(members.select([0, 3]).theta_KP)
    nll = [finish.classifiers.validate(each)[1].mean() for each in (theta_NP, together_NP)]
    assert nll[1] < nll[0]


def test_switched_off_nothing_is_done(tiny: MakeConfig, fresh_store: Store) -> None:
    config = tiny(*GUIDED, "samples.finish=null")
    artifact = graph_of(config, fresh_store).seeds  # and nothing is read: there is nothing
    theta_NP = torch.ones(2, 3)
    finish = finish_of(config, artifact)
    assert finish(theta_NP, np.zeros(2, dtype=np.int32), [0, 1]) is theta_NP


def test_guided_and_annealed_models_go_through_the_pipeline(
    tiny: MakeConfig, shared_store: Store
) -> None:
    finish = "samples.finish={guidance: 0.5, annealing: {fraction: 0.1}}"
    config = tiny(*GUIDED, finish)
    made = make(config, shared_store)
    for artifact in made:
        listed = {file.name for file in artifact.manifest().files}
        assert set(artifact.list_files()) == listed
    assert Path(made.seeds.child(early_name(0))).is_file()
    assert read_population(made.samples).step.tolist() == [2] * 6
    told = Result.of(made).as_json()
    # Four of six members are learnt from, of ten checkpoints.
    assert told["rivals"]["originals_bag"]["size"] == 4
    assert told["prices"]["marginal_seconds"] > 0
