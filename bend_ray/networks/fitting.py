"""Fit a cohort of models at once: one optimizer over their stacked parameters.

Every elementwise optimizer treats the rows of a ``(K, P)`` tensor as K optimizers, and the sum of
the models' losses has each model's own gradient in its row. Each model draws its start, its
bootstrap resample, its batches and its views of the images from generators of its own, so that a
model does not depend on who else is in its cohort. Running statistics of BatchNorm stand at the
end of a row: they are carried along and kept with every snapshot, but no optimizer sees them.

Shape letters: K models, P parameters, Q buffers, N images, B images a batch, T steps, S snapshots.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bend_ray.data.augmentation import Augmentation
from bend_ray.data.examples import Examples, Inputs, count, each, numbers
from bend_ray.data.streaming import Streamed
from bend_ray.errors import DataError
from bend_ray.networks.batches import Feed
from bend_ray.networks.recipe import Recipe, Stretch
from bend_ray.networks.stacking import Stack, is_random
from bend_ray.optim import Cosine
from bend_ray.randomness import seed_for
from bend_ray.tasks import Classification, Task

CLASSIFICATION = Classification()

NORMALISED_BYTES = 64 * 2**20
"""Examples that are kept as floats while models train on them; larger sets stay as they are."""

Views = Callable[[Tensor, Sequence[torch.Generator]], Inputs]
"""What K models see of examples ``(K, B)``, by generators of their views: ``(K, B, ...)``."""


def initial_parameters(
    build: Callable[[], nn.Module], flatten: Callable[[dict[str, Tensor]], Tensor], seed: int
) -> Tensor:
    """Parameters ``(P,)`` of a fresh module, drawn under ``seed``; global state is left alone."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would seed the GPUs' generators too, and nobody puts them back.
        torch.default_generator.manual_seed(seed)
        return flatten(dict(build().state_dict()))


def fit(
    stack: Stack,
    theta_KP: Tensor,
    train: Examples | Streamed,
    normalise: Callable[[Inputs], Inputs],
    recipe: Recipe,
    stretch: Stretch,
    generators: Sequence[torch.Generator],
    task: Task = CLASSIFICATION,
) -> Tensor:
    """Train K models through one stretch of the recipe.

    Each starts at its row of ``theta_KP``, on whose device the training runs, and draws from its
    own generator; ``normalise`` makes of inputs as they are kept what a network is given. Gives
    parameters ``(S, K, P)`` at the stretch's snapshots.
    """
    # Models that run one after another are trained one after another too: to the same end, with
    # one model's activations and moments in memory, and in the caches, instead of K.
    models = 1 if stack.form == "loop" else len(theta_KP)
    prepare = partial(_views, normalise=normalise, augmentation=recipe.augmentation)
    targets_N, batch_sizes = task.targets(train.labels_N), recipe.batch_sizes(len(train))
    feed = Feed(train, targets_N, batch_sizes, prepare, theta_KP.device)
    theta_SKP = theta_KP.new_empty(stretch.snapshots, *theta_KP.shape)
    for first in range(0, len(theta_KP), models):
        rows = slice(first, first + models)
        theta_SKP[:, rows] = _fit_together(
            stack, theta_KP[rows], feed, len(train), recipe, stretch, generators[rows], task
        )
    return theta_SKP


def _fit_together(
    stack: Stack,
    theta_KP: Tensor,
    feed: Feed[Views],
    num_images: int,
    recipe: Recipe,
    stretch: Stretch,
    generators: Sequence[torch.Generator],
    task: Task,
) -> Tensor:
    """``fit`` of models that take every step together, on their device."""
    num_steps = recipe.num_steps(stretch.epochs, num_images)
    view_generators = [_view_generator(generator) for generator in generators]
    marks = stretch_marks(recipe, stretch, num_images)
    trained = theta_KP[:, : stack.num_trainable].clone().requires_grad_()
    buffers_KQ = theta_KP[:, stack.num_trainable :].clone()
    optimizer = recipe.optimizer.build([trained])
    rate = _rate_factor(recipe, stretch, num_images)
    dropout_seeds = _dropout_seeds(stack, generators)
    snapshots_SKP = [theta_KP.clone()] * marks.count(0)
    stack.train()
    batches = feed.batches(
        generators, num_steps, bootstrap=stretch.bootstrap, epoch=int(stretch.start)
    )
    for step, (window, index_KB) in enumerate(batches):
        logits_KBC = stack(
            trained,
            window.prepared(index_KB, view_generators),
            buffers_KQ=buffers_KQ,
            shared=False,
            seeds_K=dropout_seeds(step),
        )
        targets_KB = window.targets_W[index_KB.flatten()]
        loss = task.loss(logits_KBC.flatten(0, 1), targets_KB, recipe.label_smoothing)
        # The sum over models of each one's mean loss: a row's gradient is its model's own.
        (loss / index_KB.shape[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step(rate(step))
        if marks.count(step + 1):
            now_KP = torch.cat([trained.detach(), buffers_KQ], dim=1)
            snapshots_SKP += [now_KP] * marks.count(step + 1)
    return torch.stack(snapshots_SKP)


def _views(
    given: Inputs, normalise: Callable[[Inputs], Inputs], augmentation: Augmentation
) -> Views:
    """Normalised views; where every view is the example itself they are normalised once for all."""
    if augmentation.shows_images_as_they_are:
        if 4 * numbers(given) * count(given) <= NORMALISED_BYTES:
            normalised = normalise(given)
            return lambda index_KB, generators: each(partial(_rows, index_KB), normalised)
        return lambda index_KB, generators: normalise(each(partial(_rows, index_KB), given))
    if not isinstance(given, Tensor):
        raise DataError("expected one input, images, for seeds.recipe.augmentation, got several")
    return lambda index_KB, generators: normalise(
        augmentation.apply(_rows(index_KB, given), generators)
    )


def _rows(index_KB: Tensor, values: Tensor) -> Tensor:
    """The values of some examples for each model."""
    # Twice as fast as indexing by the whole index: a row is copied at once.
    rows = values.index_select(0, index_KB.flatten())
    return rows.view(*index_KB.shape, *values.shape[1:])


def _view_generator(generator: torch.Generator) -> torch.Generator:
    """A model's generator of views: apart from its batches, drawn as their windows come."""
    return torch.Generator().manual_seed(seed_for(generator.initial_seed(), "views"))


def _dropout_seeds(
    stack: Stack, generators: Sequence[torch.Generator]
) -> Callable[[int], list[int] | None]:
    """Seeds of each model's dropout at a step, by the seed of the model's own generator."""
    if not is_random(stack):
        return lambda step: None
    first = [seed_for(generator.initial_seed(), "dropout") >> 1 for generator in generators]
    return lambda step: [seed + step for seed in first]


def _rate_factor(recipe: Recipe, stretch: Stretch, num_images: int) -> Callable[[int], float]:
    """Multiplier of the recipe's learning rate at each step of the stretch."""
    if stretch.constant_rate is not None:
        constant = stretch.constant_rate / recipe.optimizer.learning_rate
        return lambda step: constant
    if stretch.cyclic_rate is not None:
        peak = stretch.cyclic_rate / recipe.optimizer.learning_rate
        ends = stretch_marks(recipe, stretch, num_images)
        return lambda step: peak * Cosine().factor(_cycle_progress(step, ends))
    first = recipe.num_steps(stretch.start, num_images)
    total = recipe.num_steps(recipe.epochs, num_images)
    return lambda step: recipe.schedule.factor(min(1.0, (first + step) / total))


def _cycle_progress(step: int, ends: Sequence[int]) -> float:
    """How much of its cycle has passed at a step, where cycles end after these steps.

    >>> [_cycle_progress(step, [2, 6]) for step in range(6)]
    [0.0, 0.5, 0.0, 0.25, 0.5, 0.75]
    """
    cycle = bisect_right(ends, step)
    start = ends[cycle - 1] if cycle else 0
    return (step - start) / (ends[cycle] - start)


def stretch_marks(recipe: Recipe, stretch: Stretch, num_images: int) -> list[int]:
    """Steps of a stretch after which a snapshot is taken.

    They are equally spaced after its burn-in, the last at its end.

    >>> stretch_marks(Recipe(batch_size=10), Stretch(start=0.0, epochs=1.0, snapshots=4), 100)
    [2, 5, 8, 10]
    """
    burn_in = recipe.num_steps(stretch.burn_in, num_images)
    spaced = recipe.num_steps(stretch.epochs, num_images) - burn_in
    return [burn_in + round((s + 1) * spaced / stretch.snapshots) for s in range(stretch.snapshots)]
