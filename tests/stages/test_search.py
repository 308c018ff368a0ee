"""A search on the session's cluster: what its trials share, and what it leaves."""

from pathlib import Path

import pytest
from tiny import MakeConfig, make

from bend_ray.artifacts.store import Store
from bend_ray.config.graph import graph_of
from bend_ray.config.reading import load_config
from bend_ray.process.computing import usable_cores
from bend_ray.tune.search import RAY, tune
from bend_ray.tune.space import TuneSection
from bend_ray.tune.study import Study

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

SECTION = TuneSection.model_validate(
    {
        "trials": 8,
        "ensemble_counts": [1, 3, 6],
        "knobs": {
            # The last of them cannot be: there are 10 members to learn from.
            "autoencoder.model.latent_size": [6, 10],
            "samples.temperature": [0.9, 1.0],
            "evaluation.vote": [{"kind": "soft"}, {"kind": "majority"}],
        },
        "searcher": {"kind": "grid"},
        "scheduler": {"kind": "none"},
    }
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("tune")))


@pytest.fixture
def study(tiny: MakeConfig, store: Store) -> Study:
    """Made by the first test that asks, read by the others: a study is an artifact."""
    return tune(tiny(), SECTION, store.uri)


def test_trials_share_everything_they_may(study: Study, store: Store) -> None:
    assert study.stages() == {
        "seeds": (4, 1),
        "autoencoder": (4, 1),
        "latents": (4, 1),
        "generator": (4, 1),
        "samples": (4, 2),
    }
    made = [stage for trial in study.trials for stage in trial.stages if stage.made]
    # Each was made by one trial, and found by the others, which ran nothing of it.
    assert len(made) == len({stage.fingerprint for stage in made}) == 1 + 1 + 1 + 1 + 2
    # Of two trials that differ by their vote alone, one found what the other had made.
    assert sum(not any(stage.made for stage in trial.stages) for trial in study.done) >= 1
    for stage, (_, different) in study.stages().items():
        assert len(list((Path(store.path) / stage).iterdir())) == different


def test_a_trial_that_cannot_be_is_recorded_and_the_others_go_on(study: Study) -> None:
    failed = [trial for trial in study.trials if trial.status == "failed"]
    assert {trial.point["autoencoder.model.latent_size"] for trial in failed} == {10}
    assert len(failed) == 4
    assert len(study.done) == 4
    for trial in failed:
        assert trial.error is not None
        assert trial.error.startswith("autoencoder.model.latent_size: expected fewer than the 10")


def test_bags_grow_along_one_set_of_samples(study: Study, store: Store) -> None:
    for trial in study.done:
        assert [bag.size for bag in trial.bags] == [1, 3, 6]
        assert len({bag.flops // bag.size for bag in trial.bags}) == 1
        costs = [bag.cost_seconds for bag in trial.bags]
        assert costs == sorted(costs)
    assert not (Path(store.path) / "evaluation").exists(), "the test part is nobody's business"


def test_best_yaml_is_what_bend_run_takes(study: Study, store: Store) -> None:
    trial, bag = study.winner
    best = load_config(Path(study.artifact.path) / "best.yaml")
    assert best == study.config_of(trial, bag)
    assert graph_of(best, store).generator.exists()


def test_every_trial_has_curves_for_tensorboard(study: Study) -> None:
    folder = Path(study.artifact.path)
    assert len(study.trials) == 8
    for trial in study.trials:
        assert list((folder / RAY / trial.name).glob("events.out.tfevents.*"))


@pytest.mark.trains
def test_a_trial_behind_the_others_is_stopped_at_a_milestone(
    tiny: MakeConfig, store: Store
) -> None:
    section = TuneSection.model_validate(
        {
            "trials": 3,
            "ensemble_counts": [1, 6],
            # At the other rates nothing is learnt, and one of noises that has learnt nothing draws
            # models a hundred times further from their trunk than members are.
            "knobs": {"generator.training.optimizer.learning_rate": [2e-3, 1e-12, 2e-12]},
            "searcher": {"kind": "grid"},
            "scheduler": {"kind": "asha", "first": 0.5, "members": 6},
        }
    )
    make(tiny(), store, "latents")
    # One at a time, the one that learns first: ASHA judges by who has come so far.
    one_by_one = f"evaluation.resources.cpus={usable_cores()}"
    # One that does not start as each trunk's Gaussian, which would be good enough untrained.
    of_noise = (
        "generator.process={kind: ddpm, prediction: eps}",
        "generator.denoiser={kind: conv1d, channels: [8, 16]}",
    )
    study = tune(tiny(*of_noise, one_by_one), section, store.uri)
    assert sorted(trial.status for trial in study.trials) == ["done", "stopped", "stopped"]
    stopped = [trial for trial in study.trials if trial.status == "stopped"]
    for trial in stopped:
        assert [milestone.share for milestone in trial.milestones] == [0.5]
        assert "generator" not in {stage.stage for stage in trial.stages}
    # Seeds, autoencoder and latents were there.
    made = {stage.stage for trial in study.trials for stage in trial.stages if stage.made}
    assert made <= {"generator", "samples"}
