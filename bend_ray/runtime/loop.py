"""The one training loop: autoencoder and denoiser are fitted by it, here or by Ray Train's workers.

The population is small beside what it was made from, so every worker holds all its rows and a
step's batch is drawn alike on all of them; each computes its part and gradients are averaged.
Batches and noise come from generators of (seed, step), and checkpoints lie in the artifact itself:
a training that was killed and resumed on the same kind of processor computes, to the bit, what an
undisturbed one would. More workers compute it up to the order of sums, and up to a statistic of the
batch (see ``Reconstruction``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
import torch.distributed
from torch import Tensor, nn

from bend_ray.artifacts.cost import Cost, Stopwatch
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import DIRECTORY, Checkpoint, save_weights
from bend_ray.config.schema import AutoencoderSection, GeneratorSection
from bend_ray.errors import StoreError, TrainingError
from bend_ray.generation.training import AveragedSteps, HeldOut
from bend_ray.process.computing import settle
from bend_ray.randomness import generator_for, seed_for
from bend_ray.runtime.interface import from_vectors

CURVE_POINTS = 100
PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class TrainingTask:
    """One training, as its workers need it.

    Attributes:
        artifact: being made; progress and weights go there.
        section: of the config: how it is trained, and a worker's resources.
        build: makes the objective (``draw``, ``forward`` -> loss, ``kept``).
        weights: the file for the kept module's averaged weights.
        until: the step to pause at, None for the end. A paused training leaves a checkpoint, from
            which another ``fit`` goes on, and its averaged weights so far as ``milestone(until)``.
    """

    artifact: Artifact
    section: AutoencoderSection | GeneratorSection
    seed: int
    build: Callable[[], nn.Module]
    weights: str
    until: int | None = None


def milestone(step: int) -> str:
    """The file of the averaged weights at a step where the training was paused."""
    return f"{DIRECTORY}/milestone-{step:08d}.safetensors"


@dataclass(frozen=True)
class Fitted:
    """What a training tells about itself: losses by step, when, and cost over all its attempts."""

    curve: list[tuple[int, float]]
    held_out: list[tuple[int, float]]
    times: list[float]
    """Of the curve's points, seconds since 1970."""
    cost: Cost


@dataclass(frozen=True)
class Team:
    """Which of how many processes that train together this is.

    ``replicated`` makes a module whose gradients are the mean over all, if there are several;
    ``progress`` is told how many steps are done, in the first process.
    """

    rank: int = 0
    world: int = 1
    replicated: Callable[[nn.Module], nn.Module] = lambda module: module
    progress: Callable[[int], None] = lambda done: None


def train(job: TrainingTask, rows: pa.Table, team: Team) -> Fitted:
    """What every process of a team does with all rows; TrainingError where it diverges."""
    worker = _Worker(job, rows, team)
    training = worker.training
    last = training.steps if job.until is None else min(job.until, training.steps)
    done = worker.first_step
    while done < last and not worker.is_over(done):
        loss = worker.step(done)
        done += 1
        if done % max(1, training.steps // CURVE_POINTS) == 0 or done == training.steps:
            worker.record(done, loss)
        if done % training.checkpoint_every == 0 and done < training.steps:
            worker.checkpoint(done)
    if last == training.steps:
        worker.is_over(done)
        return worker.finish(job.weights)
    # A checkpoint further on, of a training that was not paused here, must not be put back.
    if worker.first_step > last:
        return worker.fitted()
    # Whoever was killed between the two has left the checkpoint alone.
    if worker.first_step < last:
        worker.checkpoint(done)
    return worker.finish(milestone(last))


class _Worker:
    """One process of the training: its rows, its replica, and what a checkpoint must hold."""

    def __init__(self, job: TrainingTask, rows: pa.Table, team: Team) -> None:
        self.job = job
        self.team = team
        self.told = -PROGRESS_SECONDS
        self.training, resources = job.section.training, job.section.resources
        self.device = settle(resources.cpus, resources.num_gpus)
        self.watch = Stopwatch(resources.num_gpus)
        self.purpose = job.seed, job.artifact.stage, self.training.seed
        # In the order of the population.
        rows = rows.sort_by("model_id")
        given = {
            "features": torch.tensor(from_vectors(rows["features"])).float(),
            "condition": torch.tensor(rows["trunk"].to_numpy()).long(),
        }
        held_out_K = torch.tensor(rows["held_out"].to_numpy())
        self.rows, unseen = (
            {name: column[keep_K].to(self.device) for name, column in given.items()}
            for keep_K in (~held_out_K, held_out_K)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(*self.purpose, "weights"))
            self.objective = job.build().to(self.device)
        self.steps = AveragedSteps(self.objective, self.training)
        generator = generator_for(*self.purpose, "held out")
        self.held_out = HeldOut(self.objective, self.steps, unseen, generator)
        self.curve: list[tuple[int, float]] = []
        self.times: list[float] = []
        self.first_step = 0
        self.keep = Checkpoint(job.artifact, "checkpoint", 0.0, self.watch)
        if (state := self.keep.load(self._tensors())) is not None:
            self._restore(state)
        self.model = team.replicated(self.objective) if team.world > 1 else self.objective

    def is_over(self, done: int) -> bool:
        """Whether to stop after so many steps; looks at held-out members where it is time to."""
        if done % self.training.look_every == 0 or done == self.training.steps:
            self.held_out.look(done)
        return self.held_out.is_over

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
        generator = generator_for(*self.purpose, step)
        num_rows = len(self.rows["features"])
        index_B = torch.randperm(num_rows, generator=generator)[: self.training.batch_size]
        batch = {name: column[index_B.to(self.device)] for name, column in self.rows.items()}
        draw: Callable[..., dict[str, Tensor]] = self.objective.draw  # type: ignore[assignment]
        noise = {
            name: drawn.to(self.device)
            for name, drawn in draw(batch["features"].shape, generator).items()
        }
        rank, world = self.team.rank, self.team.world
        part = {name: column[rank::world] for name, column in (batch | noise).items()}
        return part, len(part["features"]) * world / len(index_B)

    def record(self, done: int, loss: Tensor) -> None:
        """Note the loss and say, there now and then, how far the training has come."""
        value = float(loss)
        if not torch.isfinite(loss):
            raise self._diverged(f"loss, got {value} at step {done}")
        self.curve.append((done, value))
        self.times.append(time.time())
        if self.team.rank > 0:
            return
        self.team.progress(done)
        if time.monotonic() - self.told > PROGRESS_SECONDS:
            self.told = time.monotonic()
            # A line that cannot be shown is no reason to end the training.
            with suppress(StoreError):
                self.job.artifact.report_progress(done, self.training.steps, "steps")

    def _diverged(self, expected: str) -> TrainingError:
        stage = self.job.artifact.stage
        knob = f"{stage}.training.optimizer.learning_rate"
        return TrainingError(f"{stage}: expected a finite {expected}; lower {knob}")

    def checkpoint(self, done: int) -> None:
        """Store a checkpoint from which any number of workers can go on."""
        spent = self._cost()
        if self.team.rank > 0:
            return
        told: dict[str, Any] = {"curve": self.curve, "times": self.times, "done": done}
        told["held_out"] = self.held_out.curve
        doubles = {name: torch.tensor(value, dtype=torch.float64) for name, value in told.items()}
        self.keep.save(self._tensors() | doubles, spent)

    def _tensors(self) -> dict[str, Tensor]:
        """Those that steps change, by their names in a checkpoint."""
        tensors = {f"model.{k}": v for k, v in self.objective.state_dict().items()}
        tensors |= {f"average.{i}": v for i, v in enumerate(self.steps.average)}
        for name, kept in self.steps.optimizer.state().items():
            tensors |= {f"optimizer.{name}.{i}": v for i, v in enumerate(kept)}
        return tensors | {f"best.{i}": v for i, v in enumerate(self.held_out.best)}

    def finish(self, file: str) -> Fitted:
        """Store the averaged weights of what is kept, if they are finite."""
        if not all(average.isfinite().all() for average in self.steps.average):
            raise self._diverged("average of the weights, got another")
        self.held_out.settle()
        self.steps.settle()
        fitted = self.fitted()
        if self.team.rank == 0:
            kept: nn.Module = self.objective.kept  # type: ignore[assignment]
            save_weights(self.job.artifact, file, kept.state_dict())
        return fitted

    def fitted(self) -> Fitted:
        return Fitted(self.curve, self.held_out.curve, self.times, self._cost())

    def _cost(self) -> Cost:
        """Of all workers and attempts so far."""
        here = self.watch.cost
        used = [here.cpu_seconds, here.gpu_seconds]
        seconds = torch.tensor(used, dtype=torch.float64, device=self.device)
        if self.team.world > 1:
            torch.distributed.all_reduce(seconds)
        whole = dict(zip(("cpu_seconds", "gpu_seconds"), seconds.tolist(), strict=True))
        return self.keep.spent + here.model_copy(update=whole)

    def _restore(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self.curve, self.held_out.curve = (
            [(int(step), loss) for step, loss in state[name].tolist()]
            for name in ("curve", "held_out")
        )
        self.times = state["times"].tolist()
        self.first_step = int(state["done"])
