"""What a processor of this machine does in a second, measured on the config's own networks.

Every rate is the difference between a longer and a shorter piece of the real work, so that what a
piece costs once is not counted with each step. Of a CPU the process's own time is taken, as stages
do, so that a busy machine does not make it look slower; of a GPU the time that passes.

Shape letters: K members, T of them for training, P parameters, W of a whole model, F features.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bend_ray.artifacts.cost import Cost, Stopwatch, read_cost, write_cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import complete_shards, read_population, shard_name, write_shard
from bend_ray.artifacts.store import Store
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Parts, moved
from bend_ray.generation.latent_diffusion import LatentScale, sample_latents
from bend_ray.generation.training import AveragedSteps, Denoising, Reconstruction
from bend_ray.networks.fitting import fit, initial_parameters
from bend_ray.networks.recipe import Stretch
from bend_ray.networks.stacking import Stack, form_for, predict_logits
from bend_ray.optim import Training
from bend_ray.parameters.features import gram_sums, mix
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.process.computing import lent, settle

SHORT_STEPS = 3
LEAST_STEPS = 4 * SHORT_STEPS
"""Behind a rate of steps."""
FEW_IMAGES = 2
MEASURED_SECONDS = 0.5
"""Of work behind each rate; more where a single step takes longer."""
MOST_SECONDS = 3.0
"""Of work behind the rates of the classifiers' steps."""
MOST_STEPS = 400
PIECES = 40
"""Shards behind the driver's rate."""
MOST_ROWS = 2000
"""Members in a measured Gram matrix; more are extrapolated, by the square and the cube."""
BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Problem:
    """The numbers of a config that decide its cost."""

    members: int
    training: int
    parameters: int
    whole: int
    features: int
    coder_parameters: int
    denoiser_parameters: int
    train_images: int
    validation_images: int
    test_images: int

    @classmethod
    def of(cls, config: PipelineConfig, dataset: Parts, test_images: int | None) -> Problem:
        """Sizes of everything; ``test_images`` None: as many as validation images.

        The test part is not opened, not even to count it.
        """
        module = _build(config, dataset)
        layout = ParameterLayout.of(module, config.parameters.include)
        principal = config.autoencoder.model.features == "principal"
        features = config.num_training_models - 1 if principal else layout.size
        coder, denoiser = config.autoencoder.model.build(features), _denoiser(config)
        validation = len(dataset.validation)
        return cls(
            members=config.seeds.num_models,
            training=config.num_training_models,
            parameters=layout.size,
            whole=ParameterLayout.of(module).size,
            features=features,
            coder_parameters=ParameterLayout.of(coder).size,
            denoiser_parameters=ParameterLayout.of(denoiser).size,
            train_images=len(dataset.train),
            validation_images=validation,
            test_images=validation if test_images is None else test_images,
        )


@dataclass(frozen=True)
class Line:
    """Seconds of a piece by its size: a constant, and so much for each."""

    constant: float
    each: float

    @classmethod
    def through(cls, points: dict[int, float]) -> Line:
        """The line through two points; through one and the origin where there is one."""
        (first, low), (last, high) = min(points.items()), max(points.items())
        if first == last:
            return cls(0.0, low / first)
        each = max(0.0, (high - low) / (last - first))
        return cls(low - each * first, each)

    def __call__(self, size: int) -> float:
        """Seconds of a piece of a size."""
        return max(0.0, self.constant + self.each * size)


@dataclass(frozen=True)
class Rates:
    """Seconds of one processor; bytes a second where it says so.

    Attributes:
        step: of a training step of so many models at once.
        setup: of starting to train so many.
        answer: of one model on one image.
        coder_step: of a training step of the autoencoder.
        denoiser_step: of the denoiser.
        gram_column: of a column of all members' Gram matrix.
        eigenvectors: of the principal directions.
        draw: of drawing so many latents.
        mixed: of a parameter of a drawn model.
        piece: that the driver spends on a shard.
        write_bytes: of shards, in a second.
        read_bytes: likewise.
    """

    step: Line
    setup: Line
    answer: float
    coder_step: float
    denoiser_step: float
    gram_column: float
    eigenvectors: float
    draw: Line
    mixed: float
    piece: float
    write_bytes: float
    read_bytes: float


def calibrate(config: PipelineConfig, dataset: Parts, problem: Problem) -> Rates:
    """Measure this machine: its GPU where there is one, else one thread of its CPU."""
    with lent():
        # As a process of a stage computes that is given one CPU.
        device = settle(cpus=1, gpus=float(torch.cuda.is_available()))
        return Rates(
            **_classifiers(config, dataset, device),
            **_weight_models(config, problem, device),
            **_gram(problem),
            **_store(problem),
            draw=_drawing(config),
        )


def _seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    wait: Callable[[], None] = (lambda: None) if device == "cpu" else torch.cuda.synchronize
    wait()
    with Stopwatch(num_gpus=float(device != "cpu")) as watch:
        work()
        wait()
    return watch.cost.seconds


def _steps(work: Callable[[int], Any], device: str = "cpu") -> Line:
    """Of work that takes a number of steps; the constant is what comes before the first.

    The first call warms up: it allocates, and picks kernels.
    """
    work(SHORT_STEPS)
    short = _seconds(partial(work, SHORT_STEPS), device)
    guess = max(short / SHORT_STEPS, 1e-9)
    more = min(MOST_STEPS, max(SHORT_STEPS, round(MEASURED_SECONDS / guess)))
    long = _seconds(partial(work, SHORT_STEPS + more), device)
    return Line.through({SHORT_STEPS: short, SHORT_STEPS + more: long})


def _repeated(work: Callable[[], Any]) -> float:
    return _steps(lambda count: [work() for _ in range(count)]).each


def _build(config: PipelineConfig, dataset: Parts) -> nn.Module:
    return config.seeds.architecture.build(dataset.input_shape, dataset.num_outputs)


def _denoiser(config: PipelineConfig) -> Any:
    return config.generator.denoiser.build(config.latent_size, config.num_conditions)


def _classifiers(config: PipelineConfig, dataset: Parts, device: str) -> dict[str, Any]:
    """Training, by models at once, and answering."""
    module = _build(config, dataset)
    whole = ParameterLayout.of(module)
    stack = Stack(module.to(device), whole, form_for(module, device, dataset.shown(2)))
    recipe, build = config.seeds.recipe, partial(_build, config, dataset)

    def models(count: int) -> Tensor:
        seeds = range(count)
        return torch.stack([initial_parameters(build, whole.flatten, s) for s in seeds]).to(device)

    def train(theta_KP: Tensor, images: int, steps: int) -> None:
        generators = [torch.Generator().manual_seed(k) for k in range(len(theta_KP))]
        own = recipe.model_copy(update={"batch_size": images})
        stretch = Stretch(start=0.0, epochs=steps / own.num_steps(1.0, len(dataset.train)))
        given = dataset.train, dataset.normalise, own, stretch, generators, dataset.task
        fit(stack, theta_KP, *given)

    def once(images: int) -> float:
        return _seconds(partial(train, one, images, 1), device)

    one, batch = models(1), recipe.batch_size
    few, images = min(FEW_IMAGES, batch), len(dataset.validation)
    short = once(few)
    guess = short * batch / few
    if guess < MOST_SECONDS:  # by a cold start: it is less
        guess = once(batch)
    cohort = min(config.seeds.cohort_size, len(config.seeds.protocol.runs()))
    sizes = [max(1, cohort // 4), cohort]
    if LEAST_STEPS * guess * cohort > MOST_SECONDS:
        sizes = [1]
    if LEAST_STEPS * guess > MOST_SECONDS:
        # Of a large network a step on few images: it is as long for each more.
        images = min(batch, images, max(few, int(few * MOST_SECONDS / short)))
        measured = {1: Line(0.0, Line.through({few: short, images: once(images)})(batch))}
    else:
        measured = {n: _steps(partial(train, models(n), batch), device) for n in sizes}
    inputs = dataset.normalise(moved(dataset.validation.take(slice(images)), device))
    ask = partial(predict_logits, stack, models(sizes[0]), inputs)
    ask()
    return {
        "step": Line.through({n: line.each for n, line in measured.items()}),
        "setup": Line.through({n: max(0.0, line.constant) for n, line in measured.items()}),
        "answer": _seconds(ask, device) / (sizes[0] * images),
    }


def _weight_models(config: PipelineConfig, problem: Problem, device: str) -> dict[str, Any]:
    """Training steps of the autoencoder and of the denoiser, as their stages take them."""

    def step_of(objective: nn.Module, training: Training, width: int) -> float:
        if not training.steps:
            return 0.0
        rows = min(problem.training, training.batch_size)
        batch = {
            "features": torch.randn(rows, width).to(device),
            "condition": torch.zeros(rows, dtype=torch.int64).to(device),
        }
        averaged = AveragedSteps(objective.to(device), training)
        generator = torch.Generator().manual_seed(0)

        def steps(count: int) -> None:
            for step in range(count):
                noise = objective.draw(batch["features"].shape, generator)  # type: ignore[operator]
                noise = {name: drawn.to(device) for name, drawn in noise.items()}
                objective(batch | noise).backward()
                averaged.step(step % training.steps)

        return _steps(steps, device).each

    model, latent = config.autoencoder.model, config.latent_size
    module = model.build(problem.features)
    coder = Reconstruction(module, latent, model.input_noise, model.latent_noise)
    denoiser = Denoising(_denoiser(config), config.generator.process)
    return {
        "coder_step": step_of(coder, config.autoencoder.training, problem.features),
        "denoiser_step": step_of(denoiser, config.generator.training, latent),
    }


def _drawing(config: PipelineConfig) -> Line:
    """Drawing latents, by how many at once; on the CPU, as the stage does."""
    conditions = config.num_conditions
    denoiser, process = _denoiser(config), config.generator.process
    zeros = torch.zeros(conditions, config.latent_size)
    scale = LatentScale.diagonal(zeros, torch.arange(conditions), conditions)

    def draw(count: int) -> None:
        generators = [torch.Generator().manual_seed(i) for i in range(count)]
        condition_B = torch.zeros(count, dtype=torch.int64)
        sample_latents(denoiser, process, config.samples.sampler, scale, condition_B, generators)

    draw(1)
    sizes = (1, min(config.samples.count, config.samples.shard_size))
    return Line.through({size: _seconds(partial(draw, size)) for size in sizes})


def _gram(problem: Problem) -> dict[str, Any]:
    """A column of all members' Gram matrix, principal directions, a parameter of a drawn model."""
    rows, drawn = min(problem.members, MOST_ROWS), 8
    columns = max(1, min(problem.parameters, BLOCK_BYTES // (4 * rows)))
    theta_KW = torch.randn(rows, columns)
    train_K = torch.ones(rows, dtype=torch.bool)
    layout = ParameterLayout.of(nn.Linear(columns, 1, bias=False))
    weights_NK = torch.randn(drawn, rows)

    more = problem.members / rows
    symmetric = torch.randn(rows, rows, dtype=torch.float64)
    symmetric = symmetric @ symmetric.T
    column = _repeated(partial(gram_sums, layout, train_K, [theta_KW])) / columns
    mixed = _repeated(partial(mix, weights_NK, theta_KW)) / (drawn * columns)
    return {
        "gram_column": column * more**2,
        "eigenvectors": _seconds(partial(torch.linalg.eigh, symmetric)) * more**3,
        "mixed": mixed * (problem.training / rows),
    }


def _store(problem: Problem) -> dict[str, Any]:
    """What the driver spends on a shard; bytes written and read a second, in a folder."""
    with tempfile.TemporaryDirectory(prefix="bend-plan-") as folder:
        artifact = Store(folder).artifact("seeds", 1, {})
        few = range(PIECES)
        for index in few:
            write_cost(artifact, shard_name(index), Cost())
            write_shard(artifact, index, blank_population(1, 1))

        def book() -> None:
            complete_shards(artifact, dict.fromkeys(few, 1))
            for index in few:
                read_cost(artifact, shard_name(index))

        book()
        piece = _seconds(book) / PIECES
        columns = min(problem.parameters, BLOCK_BYTES // 4)
        rows = min(problem.members, BLOCK_BYTES // (4 * columns))
        large, name = Store(folder).artifact("seeds", 1, {"large": True}), shard_name(0)
        writing = _seconds(partial(write_shard, large, 0, blank_population(rows, columns)))
        large.commit(files=[name], rows={name: rows}, metrics={}, cost=Cost())
        reading, size = _seconds(partial(read_population, large)), 4 * rows * columns
        return {
            "piece": piece,
            "write_bytes": size / max(writing, 1e-6),
            "read_bytes": size / max(reading, 1e-6),
        }


def blank_population(rows: int, parameters: int) -> Population:
    """Members that were never trained, to be written and read."""
    theta_KP = np.ones((rows, parameters), dtype=np.float32)
    given = (np.arange(rows), *[np.zeros(rows)] * 8, "trained", theta_KP, "plan")
    return Population(*given)  # type: ignore[arg-type]
