"""What a processor of this machine does in a second, measured on the config's own networks.

Every rate is the difference between a longer and a shorter piece of the real work, so that what a
piece costs once is not counted with each step. Of a CPU the process's own time is taken, as stages
do, so that a busy machine does not make it look slower; of a GPU the time that passes.

Shape letters: K members, T of them for training, P parameters, W of a whole model, F features.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bend_ray.artifacts.cost import Cost, read_cost, write_cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import complete_shards, read_population, shard_name, write_shard
from bend_ray.artifacts.store import Store
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Parts, moved, rows
from bend_ray.generation.latent_diffusion import LatentScale, sample_latents
from bend_ray.generation.objectives import Denoising, Reconstruction
from bend_ray.generation.steps import AveragedSteps
from bend_ray.networks.fitting import fit, initial_parameters
from bend_ray.networks.recipe import Recipe, Stretch
from bend_ray.networks.stacking import Stack, form_for, predict_logits
from bend_ray.optim import Training
from bend_ray.parameters.gram import GramSum, mix
from bend_ray.parameters.layout import ParameterLayout

SHORT_STEPS = 3
FEW_IMAGES = 4
MEASURED_SECONDS = 1.0
"""Of work behind each rate; more where a single step takes longer."""
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


@dataclass(frozen=True)
class Line:
    """Seconds of a piece by its size: a constant, and so much for each."""

    constant: float
    each: float

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


def problem_of(config: PipelineConfig, dataset: Parts, test_images: int | None) -> Problem:
    """Sizes of everything; ``test_images`` None: as many as validation images.

    The test part is not opened, not even to count it.
    """
    module = _build(config, dataset)
    layout = ParameterLayout.of(module, config.parameters.include)
    principal = config.autoencoder.model.features == "principal"
    validation = len(dataset.validation)
    features = config.num_training_models - 1 if principal else layout.size
    latent, section = config.latent_size, config.generator
    denoiser = section.denoiser.build(latent, config.num_conditions)
    return Problem(
        members=config.seeds.num_models,
        training=config.num_training_models,
        parameters=layout.size,
        whole=ParameterLayout.of(module).size,
        features=features,
        coder_parameters=ParameterLayout.of(config.autoencoder.model.build(features)).size,
        denoiser_parameters=ParameterLayout.of(denoiser).size,
        train_images=len(dataset.train),
        validation_images=validation,
        test_images=validation if test_images is None else test_images,
    )


def calibrate(config: PipelineConfig, dataset: Parts, problem: Problem) -> Rates:
    """Measure this machine: its GPU where there is one, else one thread of its CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _one_thread():
        step, setup, answer = _classifiers(config, dataset, device)
        gram_column, eigenvectors = _gram(problem)
        piece, write_bytes, read_bytes = _store(problem)
        draw = _drawing(config, problem)
        return Rates(
            step=step,
            setup=setup,
            answer=answer,
            coder_step=_coder(config, problem, device),
            denoiser_step=_denoiser(config, problem, device),
            gram_column=gram_column,
            eigenvectors=eigenvectors,
            draw=draw,
            mixed=_mixing(problem),
            piece=piece,
            write_bytes=write_bytes,
            read_bytes=read_bytes,
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a process of a stage computes that is given one CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    started = _now(device)
    work()
    return _now(device) - started


def _per_step(work: Callable[[int], Any], device: str = "cpu") -> tuple[float, float]:
    """Seconds of a step, and of what comes before the first, of work that takes a number of them.

    The first call warms up: it allocates, and picks kernels.
    """
    work(SHORT_STEPS)
    short = _seconds(lambda: work(SHORT_STEPS), device)
    guess = max(short / SHORT_STEPS, 1e-9)
    steps = SHORT_STEPS + min(MOST_STEPS, max(SHORT_STEPS, round(MEASURED_SECONDS / guess)))
    long = _seconds(lambda: work(steps), device)
    each = max(long - short, 0.0) / (steps - SHORT_STEPS)
    return each, max(0.0, short - SHORT_STEPS * each)


def _build(config: PipelineConfig, dataset: Parts) -> nn.Module:
    return config.seeds.architecture.build(dataset.input_shape, len(dataset.class_names))


def _classifiers(config: PipelineConfig, dataset: Parts, device: str) -> tuple[Line, Line, float]:
    """Training, by models at once, and answering."""
    module = _build(config, dataset)
    whole = ParameterLayout.of(module)
    form = form_for(module, device, dataset.shown(2))
    stack = Stack(module.to(device), whole, form)
    recipe, build = config.seeds.recipe, partial(_build, config, dataset)

    def models(count: int) -> Tensor:
        seeds = range(count)
        return torch.stack([initial_parameters(build, whole.flatten, s) for s in seeds]).to(device)

    def train(recipe: Recipe, theta_KP: Tensor, steps: int) -> None:
        generators = [torch.Generator().manual_seed(k) for k in range(len(theta_KP))]
        stretch = Stretch(start=0.0, epochs=steps / recipe.num_steps(1.0, len(dataset.train)))
        fit(stack, theta_KP, dataset.train, dataset.normalise, recipe, stretch, generators)

    # Of a large network a step of few images, one model at a time: it is as long for each more.
    few = recipe.model_copy(update={"batch_size": min(FEW_IMAGES, recipe.batch_size)})
    first = _seconds(partial(train, few, models(1), 1), device) * recipe.batch_size / few.batch_size
    cohort = min(config.seeds.cohort_size, len(config.seeds.protocol.runs()))
    sizes, images, scale = sorted({max(1, cohort // 4), cohort}), len(dataset.validation), 1.0
    if first * sum(sizes) > MEASURED_SECONDS:
        sizes = [1]
    if first > MEASURED_SECONDS:
        recipe, scale = few, recipe.batch_size / few.batch_size
        images = min(images, FEW_IMAGES)
    measured = []
    for size in sizes:
        theta_KP = models(size)
        measured.append((size, *_per_step(partial(train, recipe, theta_KP), device)))
    inputs = dataset.normalise(moved(rows(dataset.validation.inputs, slice(images)), device))
    theta_KP = models(sizes[0])
    predict_logits(stack, theta_KP, inputs)
    answering = _seconds(lambda: predict_logits(stack, theta_KP, inputs), device)
    return (
        _through([(size, scale * each) for size, each, _ in measured]),
        _through([(size, once) for size, _, once in measured]),
        answering / (len(theta_KP) * images),
    )


def _through(points: list[tuple[int, float]]) -> Line:
    """The line through the first and the last point; through the origin where there is one."""
    (first, low), (last, high) = points[0], points[-1]
    if first == last:
        return Line(0.0, low / first)
    each = max(0.0, (high - low) / (last - first))
    return Line(low - each * first, each)


def _weight_space_step(
    objective: nn.Module, training: Training, batch: dict[str, Tensor], device: str
) -> float:
    """A training step as the stages take it."""
    averaged = AveragedSteps(objective.to(device), training)
    generator = torch.Generator().manual_seed(0)
    batch = {name: column.to(device) for name, column in batch.items()}

    def steps(count: int) -> None:
        for step in range(count):
            noise = objective.draw(batch["features"].shape, generator)  # type: ignore[operator]
            noise = {name: drawn.to(device) for name, drawn in noise.items()}
            objective(batch | noise).backward()
            averaged.step(step % training.steps)

    return _per_step(steps, device)[0]


def _coder(config: PipelineConfig, problem: Problem, device: str) -> float:
    model, training = config.autoencoder.model, config.autoencoder.training
    objective = Reconstruction(
        model.build(problem.features), config.latent_size, model.input_noise, model.latent_noise
    )
    rows = min(problem.training, training.batch_size)
    return _weight_space_step(
        objective, training, {"features": torch.randn(rows, problem.features)}, device
    )


def _denoiser(config: PipelineConfig, problem: Problem, device: str) -> float:
    section, latent = config.generator, config.latent_size
    objective = Denoising(section.denoiser.build(latent, config.num_conditions), section.process)
    rows = min(problem.training, section.training.batch_size)
    batch = {
        "features": torch.randn(rows, latent),
        "condition": torch.zeros(rows, dtype=torch.int64),
    }
    return _weight_space_step(objective, section.training, batch, device)


def _drawing(config: PipelineConfig, problem: Problem) -> Line:
    """Drawing latents, by how many at once; on the CPU, as the stage does."""
    latent, conditions = config.latent_size, config.num_conditions
    denoiser = config.generator.denoiser.build(latent, conditions)
    scale = LatentScale.diagonal(
        torch.zeros(conditions, latent), torch.arange(conditions), conditions
    )

    def draw(count: int) -> None:
        sample_latents(
            denoiser,
            config.generator.process,
            config.samples.sampler,
            scale,
            torch.zeros(count, dtype=torch.int64),
            [torch.Generator().manual_seed(i) for i in range(count)],
        )

    sizes = sorted({1, min(config.samples.count, config.samples.shard_size)})
    draw(sizes[0])
    return _through([(size, _seconds(partial(draw, size))) for size in sizes])


def _columns(rows: int, size: int) -> int:
    return max(1, min(size, BLOCK_BYTES // (4 * rows)))


def _gram(problem: Problem) -> tuple[float, float]:
    """A column of all members' Gram matrix, and the principal directions."""
    rows = min(problem.members, MOST_ROWS)
    columns = _columns(rows, problem.parameters)
    theta_KW = torch.randn(rows, columns)
    train_K = torch.ones(rows, dtype=torch.bool)
    layout = ParameterLayout.of(nn.Linear(columns, 1, bias=False))

    def sums(count: int) -> None:
        for _ in range(count):
            GramSum(layout, train_K).extend(theta_KW)

    more = problem.members / rows
    column = _per_step(sums)[0] / columns * more**2
    symmetric = torch.randn(rows, rows, dtype=torch.float64)
    symmetric = symmetric @ symmetric.T
    return column, _seconds(lambda: torch.linalg.eigh(symmetric)) * more**3


def _mixing(problem: Problem) -> float:
    """A parameter of one drawn model."""
    rows, drawn = min(problem.training, MOST_ROWS), 8
    columns = _columns(rows, problem.parameters)
    weights_NT, theta_TW = torch.randn(drawn, rows), torch.randn(rows, columns)

    def mixes(count: int) -> None:
        for _ in range(count):
            mix(weights_NT, theta_TW)

    return _per_step(mixes)[0] / (drawn * columns) * (problem.training / rows)


def _store(problem: Problem) -> tuple[float, float, float]:
    """What the driver spends on a shard; bytes written and read a second, in a folder."""
    with tempfile.TemporaryDirectory(prefix="bend-plan-") as folder:
        artifact = Store(folder).artifact("seeds", 1, {})
        small, few = blank_population(1, 1), range(PIECES)
        for index in few:
            write_cost(artifact, shard_name(index), Cost())
            write_shard(artifact, index, small)

        def book() -> None:
            complete_shards(artifact, dict.fromkeys(few, 1))
            for index in few:
                read_cost(artifact, shard_name(index))

        book()
        piece = _seconds(book) / PIECES
        large = Store(folder).artifact("seeds", 1, {"large": True})
        rows = max(1, min(problem.members, BLOCK_BYTES // (4 * problem.parameters)))
        population = blank_population(rows, problem.parameters)
        writing = _seconds(lambda: write_shard(large, 0, population))
        large.commit(files=[shard_name(0)], rows={shard_name(0): rows}, metrics={}, cost=Cost())
        reading = _seconds(lambda: read_population(large))
        size = population.theta_KP.nbytes
        return piece, size / max(writing, 1e-6), size / max(reading, 1e-6)


def blank_population(rows: int, parameters: int) -> Population:
    """Members that were never trained, to be written and read."""
    whole = np.arange(rows)
    small, share = whole.astype(np.int32), np.zeros(rows, dtype=np.float32)
    return Population(
        model_id=whole,
        trunk=small,
        fork=small,
        step=whole,
        seed=whole,
        held_out=whole < 0,
        val_accuracy=share,
        val_nll=share,
        fit_seconds=share,
        origin="trained",
        theta_KP=np.ones((rows, parameters), dtype=np.float32),
        layout_digest="plan",
    )
