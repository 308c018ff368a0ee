"""The distributed training loop: workers, deaths and resumption change nothing."""

import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import own_processes

from bend_ray.artifacts.store import Artifact, Store
from bend_ray.artifacts.weights import DIRECTORY, load_weights
from bend_ray.config.resources import TrainResources
from bend_ray.config.schema import GeneratorSection
from bend_ray.errors import TrainingError
from bend_ray.generation.models import MlpDenoiser
from bend_ray.generation.training import Denoising
from bend_ray.optim import AdamW, Constant, Training
from bend_ray.runtime.interface import Rows, Runtime, vectors
from bend_ray.runtime.loop import TrainingTask

on_ray = pytest.mark.usefixtures("cluster")
pytestmark = pytest.mark.trains

WEIGHTS = "weights.safetensors"
SECTION = GeneratorSection(denoiser=MlpDenoiser(hidden=16, blocks=1))
TRAINING = Training(steps=120, batch_size=8, checkpoint_every=20)


def rows() -> Rows:
    values = np.random.default_rng(0).normal(size=(13, 5)).astype(np.float32)
    ids = np.arange(13)
    columns = {"model_id": ids, "trunk": ids % 2, "held_out": ids % 6 == 5}
    table = pa.table({**columns, "features": vectors(values)})
    return Rows(1, lambda _: table)


def fit_denoiser(
    path: Path,
    training: Training = TRAINING,
    workers: object = 0,
    until: int | None = None,
    stops: bool = False,
) -> Artifact:
    """In this process, or by so many workers of Ray Train."""
    artifact = Store(str(path)).artifact("generator", 1, {})
    given = {"training": training, "resources": TrainResources(workers=workers or 1)}
    section = SECTION.model_copy(update=given)
    job = TrainingTask(
        *(artifact, section, 0),
        lambda: Denoising(section.denoiser.build(5, 2), section.process),
        *(WEIGHTS, until),
    )
    runtime: Runtime = Runtime()
    if workers:
        from bend_ray.runtime.on_ray import RayRuntime

        runtime = RayRuntime(own=False)
    fitted = runtime.train(job, rows())
    assert stops or fitted.curve[-1][0] >= (until or training.steps) - 1
    assert fitted.cost.cpu_seconds > 0
    return artifact


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What one worker, in this process, makes of it undisturbed."""
    return load_weights(fit_denoiser(tmp_path_factory.mktemp("alone")), WEIGHTS)


def assert_close(
    a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0
) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance, err_msg=name)


def test_a_training_resumes_from_its_checkpoint_to_the_same_bits(
    tmp_path: Path, alone: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bend_ray.runtime.loop import _Worker

    checkpoint = _Worker.checkpoint

    def cut_short(worker: _Worker, done: int) -> None:
        checkpoint(worker, done)
        if done == 60:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_Worker, "checkpoint", cut_short)
        with pytest.raises(KeyboardInterrupt):
            fit_denoiser(tmp_path)
    steps: list[int] = []
    step = _Worker.step
    monkeypatch.setattr(_Worker, "step", lambda w, s: (steps.append(s), step(w, s))[1])
    artifact = fit_denoiser(tmp_path)
    assert steps == list(range(60, 120))
    assert "making/training/checkpoint.safetensors" in artifact.everything()
    assert_close(load_weights(artifact, WEIGHTS), alone)


def test_a_training_that_was_paused_goes_on_to_the_same_bits(
    tmp_path: Path, alone: dict[str, torch.Tensor]
) -> None:
    from bend_ray.runtime.loop import milestone

    # Milestones need not be checkpoints; one that was passed is not put back.
    for until in (30, 70, 50):
        artifact = fit_denoiser(tmp_path, until=until)
    names = set(artifact.list_files(DIRECTORY))
    assert {milestone(30), milestone(70)} <= names
    assert milestone(50) not in names
    assert_close(load_weights(fit_denoiser(tmp_path), WEIGHTS), alone)
    # At a milestone the averaged weights are those a training that ends there has of the same
    # steps: all but the schedule agrees, so with a constant one, they do.
    constant = TRAINING.model_copy(update={"schedule": Constant()})
    paused = fit_denoiser(tmp_path / "paused", constant, until=30)
    short = fit_denoiser(tmp_path / "short", constant.model_copy(update={"steps": 30}))
    assert_close(load_weights(paused, milestone(30)), load_weights(short, WEIGHTS))


def test_a_pause_that_was_cut_short_leaves_its_milestone_when_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bend_ray.runtime.loop import _Worker, milestone

    def killed(worker: _Worker, file: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_Worker, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            fit_denoiser(tmp_path / "cut", until=50)
    undisturbed = load_weights(fit_denoiser(tmp_path / "whole", until=50), milestone(50))
    again = fit_denoiser(tmp_path / "cut", until=50)
    assert_close(load_weights(again, milestone(50)), undisturbed)


LOOKS = TRAINING.model_copy(update={"patience": 3, "look_every": 4})


def test_a_training_that_stops_early_does_so_to_the_same_bits_however_it_was_cut(
    tmp_path: Path,
) -> None:
    from bend_ray.runtime.loop import milestone

    # The rows are noise: nothing that is learnt of them holds for those that are held out.
    whole = load_weights(fit_denoiser(tmp_path / "whole", LOOKS, stops=True), WEIGHTS)
    often = LOOKS.model_copy(update={"checkpoint_every": 3})
    for until in (2, 6, 60):
        paused = fit_denoiser(tmp_path / "paused", often, until=until, stops=True)
    assert milestone(60) in paused.list_files(DIRECTORY)
    assert_close(load_weights(paused, milestone(60)), whole)
    assert_close(load_weights(fit_denoiser(tmp_path / "paused", often, stops=True), WEIGHTS), whole)


def test_no_step_at_all_keeps_the_start(tmp_path: Path) -> None:
    none = TRAINING.model_copy(update={"steps": 0})
    kept = load_weights(fit_denoiser(tmp_path, none, stops=True), WEIGHTS)
    assert not kept["project_out.weight"].any()


@on_ray
@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_one_of_them_killed_compute_what_one_does(
    tmp_path: Path, alone: dict[str, torch.Tensor]
) -> None:
    killed: list[int] = []
    with killing_a_train_worker(tmp_path, killed):
        artifact = fit_denoiser(tmp_path, workers=2)
    assert killed
    # Two halves of a batch are added in another order than the whole.
    assert_close(load_weights(artifact, WEIGHTS), alone, tolerance=2e-4)


@on_ray
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_a_range_of_workers_trains_on_as_many_as_there_are(
    tmp_path: Path, alone: dict[str, torch.Tensor]
) -> None:
    artifact = fit_denoiser(tmp_path, workers=(1, 2))
    assert_close(load_weights(artifact, WEIGHTS), alone, tolerance=2e-4)


class killing_a_train_worker:  # noqa: N801 - reads as a statement
    """SIGKILL to one Ray Train worker as soon as there is a checkpoint."""

    def __init__(self, store: Path, killed: list[int]) -> None:
        self.store, self.killed, self.stop = store, killed, threading.Event()

    def __enter__(self) -> None:
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        while not self.stop.is_set():
            if list(self.store.glob("generator/*/making/training/checkpoint.safetensors")):
                for pid in own_processes("RayTrainWorker"):
                    os.kill(pid, signal.SIGKILL)
                    self.killed.append(pid)
                    return
            time.sleep(0.005)

    def __exit__(self, *raised: object) -> None:
        self.stop.set()
        self.thread.join()


def test_a_loss_that_is_not_finite_is_refused_with_advice(tmp_path: Path) -> None:
    wild = TRAINING.model_copy(update={"optimizer": AdamW(learning_rate=1e30, weight_decay=0.0)})
    with pytest.raises(TrainingError, match=r"finite loss.*generator\.training\.optimizer"):
        fit_denoiser(tmp_path, wild)


@pytest.mark.ray
@pytest.mark.parametrize("failures", [2, 3])
def test_a_controller_that_fails_is_replaced_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    import ray.train

    from bend_ray.runtime import training as fit

    left = iter([ray.train.ControllerError(RuntimeError("a helper is gone"))] * failures)

    def watched(*arguments: object) -> SimpleNamespace:
        if (error := next(left, None)) is not None:
            raise error
        return SimpleNamespace(return_value="fitted")

    monkeypatch.setattr(fit, "_trainer", lambda *arguments: None)
    monkeypatch.setattr(fit, "_watched", watched)
    job: Any = SimpleNamespace(artifact=SimpleNamespace(stage="generator"))
    nodes: Any = SimpleNamespace(check=lambda: False)
    dataset: Any = None
    if failures == 2:
        assert fit.fit(job, dataset, nodes) == "fitted"  # type: ignore[comparison-overlap]
    else:
        with pytest.raises(TrainingError, match=r"kept failing: a helper is gone; .* run again"):
            fit.fit(job, dataset, nodes)
