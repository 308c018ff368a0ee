"""Nothing long is lost: a training that is killed anywhere goes on, to the same bits."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY, MakeConfig, make
from torch import Tensor

from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.artifacts.weights import DIRECTORY, Checkpoint, load_weights, save_weights
from bend_ray.config.graph import graph_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.networks.fitting import Training
from bend_ray.populations.members import load_early
from bend_ray.randomness import seed_for
from bend_ray.stages import seed_trainer

TAILS = "seeds.protocol={kind: tails, trunks: 2, tails: 5, tail_fraction: 0.25, early_tails: 3}"
FORKS = "seeds.protocol={kind: forks, trunks: 2, forks: 3, trunk_fraction: 0.25}"
ALONE = "seeds.protocol={kind: independent, models: 3}"
OFTEN, NEVER = "seeds.checkpoint_seconds=1e-9", "seeds.checkpoint_seconds=1e9"
IN_SHARDS = 4 * 3466 * 2
"""Of two members of the default network."""


class KilledError(BaseException):
    """Of a process that is gone."""


VARIED = (
    "seeds.protocol={kind: varied, models: 3, align: false, looks: 12, trial: 4, patience: null}"
)


def trained(config: PipelineConfig, store: Path) -> Artifact:
    return make(config, Store(str(store)), "seeds").seeds


def killed(config: PipelineConfig, store: Path, saves: int, patch: pytest.MonkeyPatch) -> Artifact:
    """Made until so many checkpoints were left."""
    save, left = Checkpoint.save, [saves]

    def save_and_die(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
        save(checkpoint, tensors)
        left[0] -= 1
        if not left[0]:
            raise KilledError

    with patch.context() as while_killed:
        while_killed.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(KilledError):
            trained(config, store)
    return graph_of(config, Store(str(store))).seeds


def steps_of(patch: pytest.MonkeyPatch) -> list[int]:
    """Is told every step that is taken from now on."""
    taken: list[int] = []
    advance = Training.advance

    def counted(training: Training, *given: object) -> None:
        taken.append(training.step)
        advance(training, *given)  # type: ignore[arg-type]

    patch.setattr(Training, "advance", counted)
    return taken


def assert_same(one: Artifact, other: Artifact) -> None:
    a, b = (read_population(artifact) for artifact in (one, other))
    for name in ("model_id", "trunk", "fork", "step", "seed", "held_out", "val_nll", "theta_KP"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def files_of(artifact: Artifact) -> list[str]:
    return sorted(name for name in artifact.everything() if "events" not in name)


@pytest.mark.trains
@pytest.mark.parametrize("saves", [3, 30, 70], ids="killed after {}".format)
@pytest.mark.parametrize("shard_bytes", [2**28, IN_SHARDS], ids=["one shard", "shards"])
@pytest.mark.parametrize("protocol", [TAILS, FORKS, ALONE], ids=["tails", "forks", "alone"])
def test_a_killed_training_goes_on_to_the_same_bits(
    tiny: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    shard_bytes: int,
    saves: int,
) -> None:
    monkeypatch.setattr(seed_trainer, "SHARD_BYTES", shard_bytes)
    given = (protocol, "seeds.recipe.ema_decay=0.9", "seeds.recipe.epochs=2.6")
    often, never = (
        tiny(*given, seconds, "autoencoder.model.latent_size=2") for seconds in (OFTEN, NEVER)
    )
    undisturbed = trained(never, tmp_path / "undisturbed")
    again = killed(often, tmp_path / "killed", saves, monkeypatch)
    assert any(DIRECTORY in name for name in again.everything())
    taken = steps_of(monkeypatch)
    assert_same(undisturbed, trained(never, tmp_path / "killed"))
    resumed = len(taken)
    trained(never, tmp_path / "whole")
    # Every training leaves a checkpoint before its first step too.
    assert resumed < len(taken) - resumed - saves / 2
    assert files_of(again) == files_of(undisturbed)
    if protocol == TAILS:
        early = [load_early(seeds, 2, 3466) for seeds in (undisturbed, again)]
        np.testing.assert_array_equal(*early)
        assert again.manifest().cost.cpu_seconds > 0


@pytest.mark.trains
@pytest.mark.parametrize("saves", [2, 6], ids="killed after {}".format)
def test_a_killed_contest_goes_on_to_the_same_bits(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    given = (VARIED, "seeds.recipe.ema_decay=0.9", "autoencoder.model.latent_size=2")
    often, never = (tiny(*given, seconds) for seconds in (OFTEN, NEVER))
    undisturbed = trained(never, tmp_path / "undisturbed")
    killed(often, tmp_path / "killed", saves, monkeypatch)
    taken = steps_of(monkeypatch)
    assert_same(undisturbed, trained(never, tmp_path / "killed"))
    resumed = len(taken)
    trained(never, tmp_path / "whole")
    assert 0 < resumed < len(taken) - resumed


@pytest.mark.trains
def test_shards_of_a_run_hold_what_one_shard_would(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(TAILS, "autoencoder.model.latent_size=2")
    whole = trained(config, tmp_path / "one")
    monkeypatch.setattr(seed_trainer, "SHARD_BYTES", IN_SHARDS)
    parts = trained(config, tmp_path / "many")
    sizes = [file.rows for file in parts.manifest().files if file.name.startswith("shard-")]
    assert sizes == [2, 2, 1] * 2
    a, b = read_population(whole), read_population(parts)
    for name in ("model_id", "trunk", "fork", "step", "seed", "held_out"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    # A run alone is summed up in another order than in its cohort.
    np.testing.assert_allclose(a.theta_KP, b.theta_KP, atol=1e-3)
    np.testing.assert_allclose(load_early(whole, 2, 3466), load_early(parts, 2, 3466), atol=1e-3)
    assert b.fit_seconds.sum() == pytest.approx(parts.manifest().cost.cpu_seconds, rel=0.2)


@pytest.mark.trains
@pytest.mark.parametrize("twice", [False, True])
def test_a_run_in_shards_that_diverges_is_dropped_or_trained_again(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, twice: bool
) -> None:
    config = tiny(TAILS, NEVER, "autoencoder.model.latent_size=2")
    monkeypatch.setattr(seed_trainer, "SHARD_BYTES", IN_SHARDS)
    advance = Training.advance

    def spoilt(training: Training, *given: object) -> None:
        advance(training, *given)  # type: ignore[arg-type]
        # Late, when shards of the run were written.
        if training._seeds[0] in spoilt_seeds and training.step == training.num_steps - 3:
            training._trained_KT.detach().fill_(float("nan"))

    runs = [(0, 0), (1, 0), (1, 1)] if twice else [(0, 0)]
    spoilt_seeds = {seed_for(config.seed, "run", trunk, fork) for trunk, fork in runs}
    monkeypatch.setattr(Training, "advance", spoilt)
    seeds = trained(config, tmp_path / "store")
    population: Population = read_population(seeds)
    told = seeds.manifest().metrics["diverged"]
    retrained = [each for each in told if each["outcome"] == "retrained"]
    assert [each["trunk"] for each in retrained] == [0]
    assert set(population.trunk.tolist()) == ({0} if twice else {0, 1})
    lost = [model for each in told for model in each["models"]]
    assert lost == ([5, 6, 7, 8, 9] if twice else [])
    assert np.isfinite(population.theta_KP).all()


RUINS = ("garbage", "half of it", "another bit", "another's", "of another shape")


@pytest.mark.trains
@pytest.mark.parametrize("ruin", RUINS)
def test_a_damaged_checkpoint_is_told_in_a_line_and_its_training_begins_again(
    tiny: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ruin: str,
) -> None:
    often, never = (
        tiny(FORKS, seconds, "autoencoder.model.latent_size=2") for seconds in (OFTEN, NEVER)
    )
    undisturbed = trained(never, tmp_path / "undisturbed")
    again = killed(often, tmp_path / "killed", 40, monkeypatch)
    (name,) = again.list_files(f"{DIRECTORY}/0/")
    path = Path(again.child(name))
    content = path.read_bytes()
    if ruin == "garbage":
        path.write_bytes(b"no tensors")
    if ruin == "half of it":
        path.write_bytes(content[: len(content) // 2])
    if ruin == "another bit":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    if ruin == "another's":
        other = killed(
            tiny(FORKS, OFTEN, "seed=1", "autoencoder.model.latent_size=2"),
            *(tmp_path / "other", 40, monkeypatch),
        )
        path.write_bytes(Path(other.child(name)).read_bytes())
    if ruin == "of another shape":
        save_weights(
            again, name, {k: v[:1] for k, v in load_weights(again, name).items() if v.ndim}
        )
    with caplog.at_level(logging.WARNING):
        assert_same(undisturbed, trained(never, tmp_path / "killed"))
    (line,) = [
        record.getMessage() for record in caplog.records if f"{DIRECTORY}/" in record.getMessage()
    ]
    assert "it begins again" in line
    assert "\n" not in line


@pytest.mark.slow
@pytest.mark.trains
@pytest.mark.parametrize("where", ["roots-0-0.safetensors", "0/0.safetensors"])
def test_a_process_killed_in_the_middle_of_a_root_or_a_run_goes_on(
    tiny: MakeConfig, tmp_path: Path, where: str
) -> None:
    sets = [*TINY, FORKS, "seeds.recipe.epochs=60", "seeds.checkpoint_seconds=0.02"]
    sets += ["autoencoder.model.latent_size=2"]
    config, store = tiny(*sets), tmp_path / "killed"
    command = [sys.executable, "-m", "bend_ray", "seeds", "--local", "--store", str(store)]
    command += [word for each in sets for word in ("--set", each)]
    seeds = graph_of(config, Store(str(store))).seeds
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoint, deadline = Path(seeds.child(f"{DIRECTORY}/{where}")), time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists()
    assert not seeds.list_files("shard-")
    assert_same(trained(config, tmp_path / "undisturbed"), trained(config, store))
