"""The one distributed training loop: autoencoder and denoiser are fitted by it.

The population is small beside what it was made from, so every worker holds all its rows and a
step's batch is drawn alike on all of them; each computes its part and gradients are averaged.
Batches and noise come from generators of (seed, step), and checkpoints lie in the artifact itself:
a training that was killed and resumed computes, to the bit, what an undisturbed one would, and more
workers compute it up to the order of sums (and a statistic of the batch, see ``Reconstruction``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.data
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor, nn

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import load_weights, save_weights
from bend_ray.config.resources import TrainResources
from bend_ray.errors import BendError, StoreError, TrainingError
from bend_ray.generation.steps import AveragedSteps
from bend_ray.optim import Training
from bend_ray.process.log import Progress
from bend_ray.randomness import generator_for, seed_for
from bend_ray.runtime import capacity, cluster
from bend_ray.runtime.pool import LOST

logger = logging.getLogger(__name__)

TRAIN_DIRECTORY = "train"
"""What a training leaves in its artifact until the commit."""
CHECKPOINT = f"{TRAIN_DIRECTORY}/checkpoint.safetensors"
PROGRESS_SECONDS = 1.0
ABANDON_SECONDS = 5.0
"""How long an interrupted process waits for the end of a step."""
CURVE_POINTS = 100
MOST_CONTROLLER_DEATHS = 2
_OF_THE_CONTROLLER = (ray.train.ControllerError, *LOST)


@dataclass(frozen=True)
class Job:
    """One training, as its workers need it.

    Attributes:
        stage: whose it is.
        build: makes the objective (``draw``, ``forward`` -> loss, ``kept``).
        training: how.
        resources: of a worker.
        seed: of the run.
        artifact: being made; progress and weights go there.
        weights: the file for the kept module's averaged weights.
        until: the step to pause at, None for the end. A paused training leaves a checkpoint, from
            which another ``fit`` goes on, and its averaged weights so far as ``milestone(until)``.
    """

    stage: str
    build: Callable[[], nn.Module]
    training: Training
    resources: TrainResources
    seed: int
    artifact: Artifact
    weights: str
    until: int | None = None


def milestone(step: int) -> str:
    """The file of the averaged weights at a step where the training was paused."""
    return f"{TRAIN_DIRECTORY}/milestone-{step:08d}.safetensors"


@dataclass(frozen=True)
class Fitted:
    """What a training tells about itself: loss by step, when, and cost over all its attempts."""

    curve: list[tuple[int, float]]
    times: list[float]
    """Of the curve's points, seconds since 1970."""
    cost: Cost


def fit(job: Job, dataset: ray.data.Dataset) -> Fitted:
    """Train ``job`` on all rows of ``dataset`` and store the weights.

    Args:
        job: what and how.
        dataset: rows of ``features``, ``trunk`` and ``model_id``.

    Raises:
        TrainingError: the training diverged, or its workers or Ray Train's controller failed more
            often than they may.
        ray.exceptions.RayError: the controller's process died so often, one of ``pool.LOST``.
    """
    # On one machine a single worker without a GPU is best off in this process: starting Ray
    # Train's own processes takes 25 s on two cores, ten times as long as the training.
    resources = job.resources
    in_process = resources.workers == 1 and not resources.gpus and cluster.is_own()
    deaths = 0
    while True:
        try:
            result = _watched(_trainer(job, dataset, in_process), job, in_process)
        except _OF_THE_CONTROLLER as error:
            # Ray Train replaces workers that die; nobody replaces its controller but we, be it dead
            # or at a loss because one of its own helpers is.
            deaths += 1
            if deaths <= MOST_CONTROLLER_DEATHS:
                logger.debug("the training's controller is gone, another goes on: %s", error)
                continue
            if isinstance(error, ray.train.TrainingFailedError):
                raise _translated(error, job) from error
            raise
        except ray.train.TrainingFailedError as error:
            raise _translated(error, job) from error
        else:
            fitted: Fitted = result.return_value
            return fitted


def _trainer(job: Job, dataset: ray.data.Dataset, in_process: bool) -> ray.train.torch.TorchTrainer:
    resources = job.resources
    return ray.train.torch.TorchTrainer(
        _train,
        train_loop_config={"job": job},
        datasets={"train": dataset.materialize()},
        dataset_config=ray.train.DataConfig(datasets_to_split=[]),
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if in_process else resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=capacity.bundle(resources),
            placement_strategy=resources.placement.upper(),
            label_selector=dict(resources.labels) or None,
        ),
        torch_config=ray.train.torch.TorchConfig(timeout_s=120),
        run_config=ray.train.RunConfig(
            name=job.artifact.fingerprint,
            storage_path=job.artifact.child(TRAIN_DIRECTORY),
            storage_filesystem=job.artifact.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=5, controller_failure_limit=3),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


_abandoned = threading.Event()
"""Set when nobody waits for this process's training any more: it ends at its next step."""


def _watched(trainer: ray.train.torch.TorchTrainer, job: Job, in_process: bool) -> Any:
    """The trainer's result; shows meanwhile what rank 0 says in the artifact.

    The trainer runs in a thread: in the main one it would take SIGINT for itself, and keep it
    after its end.
    """
    _abandoned.clear()
    outcome: Future[Any] = Future()

    def train() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=train, daemon=True, name=job.stage)
    thread.start()
    try:
        return _awaited(outcome, job)
    except BaseException:
        # The end of Python would unwind the thread through torch's frames, which abort then.
        _abandoned.set()
        thread.join(ABANDON_SECONDS if in_process else 0.0)
        raise


def _awaited(outcome: Future[Any], job: Job) -> Any:
    with Progress(job.stage, job.training.steps, "steps") as line:
        while True:
            try:
                return outcome.result(timeout=PROGRESS_SECONDS)
            except TimeoutError:
                if outcome.done():
                    raise
            # A line that cannot be shown is no reason to end the training.
            with suppress(StoreError):
                if (said := job.artifact.progress()) is not None:
                    line.update(said.done)


def _translated(error: ray.train.TrainingFailedError, job: Job) -> BendError:
    failures = getattr(error, "worker_failures", {})
    for cause in failures.values():
        if isinstance(cause, BendError):
            return cause
    reasons = [str(cause) for cause in failures.values()] or [
        str(getattr(error, "controller_failure", error))
    ]
    first = reasons[0].strip().splitlines()[0] if reasons[0].strip() else type(error).__name__
    return TrainingError(
        f"{job.stage}: the training kept failing: {first}; checkpoints are kept: run again"
    )


def _train(config: dict[str, Any]) -> Fitted:
    """The loop every worker runs."""
    job: Job = config["job"]
    worker = _Worker(job)
    training = job.training
    last = training.steps if job.until is None else job.until
    for step in range(worker.first_step, last):
        if _abandoned.is_set():
            raise TrainingError(f"{job.stage}: given up at step {step}")
        loss = worker.step(step)
        done = step + 1
        if done % max(1, training.steps // CURVE_POINTS) == 0 or done == training.steps:
            worker.record(done, loss)
        if done % training.checkpoint_every == 0 and done < training.steps:
            worker.checkpoint(done)
    if last == training.steps:
        return worker.finish(job.weights)
    # A checkpoint further on, of a training that was not paused here, must not be put back.
    if worker.first_step > last:
        return worker.fitted()
    # Whoever was killed between the two has left the checkpoint alone.
    if worker.first_step < last:
        worker.checkpoint(last)
    return worker.finish(milestone(last))


class _Worker:
    """One process of the training: its rows, its replica, and what a checkpoint must hold."""

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.job = job
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = cluster.settle(job.resources)
        self.started = time.process_time(), time.perf_counter()
        self.rows = _gather(ray.train.get_dataset_shard("train"), self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(job.seed, job.stage, job.training.seed, "weights"))
            self.objective = job.build().to(self.device)
        self.steps = AveragedSteps(self.objective, job.training)
        self.curve: list[tuple[int, float]] = []
        self.times: list[float] = []
        self.spent = Cost()
        self.first_step = 0
        self.reported = time.monotonic()
        if any(file.name == CHECKPOINT for file in job.artifact.list_files(TRAIN_DIRECTORY)):
            self._restore(load_weights(job.artifact, CHECKPOINT))
        self.model = (
            ray.train.torch.prepare_model(self.objective, move_to_device=False)
            if self.world > 1
            else self.objective
        )

    def step(self, step: int) -> Tensor:
        """One optimizer step; returns the loss on this worker's part of the batch."""
        batch, share = self._batch(step)
        loss: Tensor = self.model(batch)
        # Parts may differ by a row: weighted so that the workers' mean is the batch's mean.
        (loss * share).backward()  # type: ignore[no-untyped-call]
        self.steps.step(step)
        return loss.detach()

    def _batch(self, step: int) -> tuple[dict[str, Tensor], float]:
        """This worker's part of a step's batch, and the part's size in equal shares."""
        generator = generator_for(self.job.seed, self.job.stage, self.job.training.seed, step)
        num_rows = len(self.rows["features"])
        index_B = torch.randperm(num_rows, generator=generator)[: self.job.training.batch_size]
        batch = {name: column[index_B.to(self.device)] for name, column in self.rows.items()}
        draw: Callable[..., dict[str, Tensor]] = self.objective.draw  # type: ignore[assignment]
        noise = {
            name: drawn.to(self.device)
            for name, drawn in draw(batch["features"].shape, generator).items()
        }
        part = {name: column[self.rank :: self.world] for name, column in (batch | noise).items()}
        return part, len(part["features"]) * self.world / len(index_B)

    def record(self, done: int, loss: Tensor) -> None:
        """Note the loss and say how far the training has come."""
        value = float(loss)
        if not torch.isfinite(loss):
            raise self._diverged(f"loss, got {value} at step {done}")
        self.curve.append((done, value))
        self.times.append(time.time())
        if self.rank == 0 and time.monotonic() - self.reported > PROGRESS_SECONDS:
            self.reported = time.monotonic()
            with suppress(StoreError):
                self.job.artifact.report_progress(done, self.job.training.steps, "steps")

    def _diverged(self, expected: str) -> TrainingError:
        return TrainingError(
            f"{self.job.stage}: expected a finite {expected}; lower "
            f"{self.job.stage}.training.optimizer.learning_rate"
        )

    def checkpoint(self, done: int) -> None:
        """Store a checkpoint from which any number of workers can go on."""
        spent = self._cost()
        if self.rank > 0:
            return
        tensors = {f"model.{k}": v for k, v in self.objective.state_dict().items()}
        tensors |= {f"average.{i}": v for i, v in enumerate(self.steps.average)}
        for name, kept in self.steps.optimizer.state().items():
            tensors |= {f"optimizer.{name}.{i}": v for i, v in enumerate(kept)}
        tensors["curve"] = torch.tensor(self.curve, dtype=torch.float64)
        tensors["times"] = torch.tensor(self.times, dtype=torch.float64)
        tensors["spent"] = torch.tensor(list(spent.model_dump().values()), dtype=torch.float64)
        tensors["done"] = torch.tensor(done)
        save_weights(self.job.artifact, CHECKPOINT, tensors)

    def finish(self, file: str) -> Fitted:
        """Store the averaged weights of what is kept.

        Raises:
            TrainingError: the last steps made them infinite or not a number.
        """
        if not all(average.isfinite().all() for average in self.steps.average):
            raise self._diverged("average of the weights, got another")
        self.steps.settle()
        fitted = self.fitted()
        if self.rank == 0:
            kept: nn.Module = self.objective.kept  # type: ignore[assignment]
            save_weights(self.job.artifact, file, kept.state_dict())
        return fitted

    def fitted(self) -> Fitted:
        """What the training tells so far."""
        return Fitted(self.curve, self.times, self._cost())

    def _cost(self) -> Cost:
        """Of all workers and attempts so far."""
        cpu, wall = time.process_time() - self.started[0], time.perf_counter() - self.started[1]
        gpu = wall * self.job.resources.gpus if self.device == "cuda" else 0.0
        seconds = torch.tensor([cpu, gpu], dtype=torch.float64, device=self.device)
        if self.world > 1:
            torch.distributed.all_reduce(seconds)
        cpu, gpu = seconds.tolist()
        return self.spent + Cost(cpu_seconds=cpu, gpu_seconds=gpu, wall_seconds=wall)

    def _restore(self, state: dict[str, Tensor]) -> None:
        model = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
        self.objective.load_state_dict(model)
        for i, average in enumerate(self.steps.average):
            average.copy_(state[f"average.{i}"])
        self.steps.optimizer.load(
            {
                name: [state[f"optimizer.{name}.{i}"] for i in range(len(kept))]
                for name, kept in self.steps.optimizer.state().items()
            }
        )
        self.curve = [(int(step), loss) for step, loss in state["curve"].tolist()]
        # A checkpoint of an earlier bend-ray does not say when its points were made.
        now = torch.full((len(self.curve),), time.time(), dtype=torch.float64)
        self.times = state.get("times", now).tolist()
        cpu, gpu, wall = state["spent"].tolist()
        self.spent = Cost(cpu_seconds=cpu, gpu_seconds=gpu, wall_seconds=wall)
        self.first_step = int(state["done"])


def _gather(shard: ray.data.DataIterator, device: str) -> dict[str, Tensor]:
    """All rows as tensors, in the order of the population: Ray Data's order is anybody's."""
    batches = list(shard.iter_batches(batch_size=None, batch_format="numpy"))
    columns = {
        name: torch.from_numpy(np.concatenate([batch[name] for batch in batches]))
        for name in ("model_id", "trunk", "features")
    }
    order = columns.pop("model_id").argsort()
    return {
        "features": columns["features"][order].float().to(device),
        "condition": columns["trunk"][order].long().to(device),
    }
