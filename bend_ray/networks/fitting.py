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
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from bend_ray.data.examples import Examples, Inputs
from bend_ray.data.streaming import Streamed
from bend_ray.networks.batches import Feed, Window, mixed
from bend_ray.networks.recipe import Recipe, Stretch, check_precision, float32_products
from bend_ray.networks.stacking import Stack, is_random
from bend_ray.optim import Cosine
from bend_ray.randomness import seed_for
from bend_ray.tasks import Classification, Task

CLASSIFICATION = Classification()


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
    parameters ``(S, K, P)`` at the stretch's snapshots, on the CPU.
    """
    feed = Feed(train, normalise, recipe, task, theta_KP.device)
    groups = [(stack, range(len(theta_KP)))]
    ((_, theta_KSP, _),) = fitted(groups, theta_KP, feed, stretch, generators)
    return theta_KSP.transpose(0, 1)


class Keeper(Protocol):
    """Where a training that takes long leaves its state."""

    @property
    def is_due(self) -> bool:
        """Whether it is time to."""

    def load(self, like: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """What was left last, with tensors as these among others; None where nothing was."""

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Leave a state in the place of the one before."""


def fitted(
    groups: Sequence[tuple[Stack, Sequence[int]]],
    theta_KP: Tensor,
    feed: Feed,
    stretch: Stretch,
    generators: Sequence[torch.Generator],
    *,
    chunk: int | None = None,
    keep: Keeper | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """``fit`` of models of several stacks, each with its rows, in chunks of snapshots.

    Gives the number of a chunk's first snapshot, and ``(K, G, P)`` on the CPU, to be used before
    the next, whose place it is: G is ``chunk``, by default S, and fewer in the last. Less than S
    are for models that take every step together. Early snapshots are not among them: also gives
    their mean ``(K, P)``, ``(K, 0)`` where there are none. With ``keep`` a training goes on where
    it was.
    """
    early, wanted = stretch.early, stretch.snapshots - stretch.early
    chunk = chunk or wanted
    # Models that run one after another are trained one after another too: to the same end, with one
    # model's activations and moments in memory, and in the caches, instead of K.
    parts = [
        (stack, rows)
        for stack, own in groups
        for rows in ([[row] for row in own] if stack.form == "loop" else [list(own)])
    ]
    assert len(parts) == 1 or chunk >= wanted
    models, size = theta_KP.shape
    held_KGP = torch.empty(models, chunk, size, dtype=theta_KP.dtype)
    early_KP = torch.zeros(models, size if early else 0, dtype=theta_KP.dtype)
    held = {"held": held_KGP, "early": early_KP}
    kept = keep.load(held) if keep is not None else None
    done, left, step = (0, -early, 0) if kept is None else kept["at"].tolist()
    if kept is not None:
        for name, tensor in held.items():
            tensor.copy_(kept[name])
    for number, (stack, rows) in enumerate(parts[done:], done):
        training = Training(stack, theta_KP[rows], feed, stretch, [generators[r] for r in rows])
        if kept is not None and number == done:
            training.load(kept, step)
        else:
            left = -early
        for snapshots in training.steps():
            for theta in snapshots:
                if left < 0:
                    early_KP[rows] += theta.cpu()
                else:
                    held_KGP[rows, left % chunk] = theta.cpu()
                left += 1
                if left == 0 and early:
                    early_KP[rows] /= early
                is_full = left > 0 and (left % chunk == 0 or left == wanted)
                if is_full and number == len(parts) - 1:
                    first = (left - 1) // chunk * chunk
                    yield first, held_KGP[:, : left - first], early_KP
            if keep is not None and keep.is_due and training.step < training.num_steps:
                at = torch.tensor([number, left, training.step])
                keep.save({**held, "at": at, **training.state()})


class Training:
    """Models that take every step of a stretch together, on their device; ``step`` are done.

    Whatever is drawn is a function of a generator's seed and the step: ``state`` at a step is all
    that another process needs to go on from there, to the same bits.
    """

    def __init__(
        self,
        stack: Stack,
        theta_KP: Tensor,
        feed: Feed,
        stretch: Stretch,
        generators: Sequence[torch.Generator],
    ) -> None:
        recipe, num_images = feed.recipe, len(feed)
        check_precision(recipe.precision, theta_KP.device)
        self._stack, self._feed, self._recipe = stack, feed, recipe
        self.step, self.num_steps = 0, recipe.num_steps(stretch.epochs, num_images)
        self._marks = stretch_marks(recipe, stretch, num_images)
        self._rate = _rate_factor(recipe, stretch, num_images)
        self._stretch, self._fresh = stretch, generators
        self._seeds = [generator.initial_seed() for generator in generators]
        self._generators = [torch.Generator() for _ in generators]
        self._has_dropout = is_random(stack)
        self._weights: Tensor | None = None
        self._trained_KT = theta_KP[:, : stack.num_trainable].clone().requires_grad_()
        self._buffers_KQ = theta_KP[:, stack.num_trainable :].clone()
        self._average_KP = theta_KP.clone() if recipe.ema_decay else None
        decayed_T = None if recipe.decay_norms_and_biases else stack.matrices.to(theta_KP)
        self._optimizer = recipe.optimizer.build([self._trained_KT], decayed_T)
        variation = stretch.variation
        self._varied = None if variation is None else variation.drawn(self._seeds)

    def steps(self) -> Iterator[list[Tensor]]:
        """Train to the end; gives the snapshots ``(K, P)`` that each step leaves, most none."""
        if self.step == 0:
            yield [self.now()] * self._marks.count(0)
        batches = self._feed.batches(
            *(self._fresh, self.num_steps),
            bootstrap=self._stretch.bootstrap,
            epoch=int(self._stretch.start),
            start=self.step,
        )
        for window, index_KB in batches:
            with float32_products(self._recipe.precision, index_KB.device):
                self.advance(window, index_KB)
            yield [self.now()] * self._marks.count(self.step)

    def advance(self, window: Window, index_KB: Tensor) -> None:
        """Take a step, each model on its examples of a window."""
        stack, step, recipe = self._stack.train(), self.step, self._recipe
        plain = recipe.augmentation.shows_images_as_they_are
        inputs = window.views(index_KB, [] if plain else self._drawing("views"))
        mixes = bool(recipe.mixup or recipe.cutmix)
        inputs, share_K = mixed(inputs, recipe, self._seeds_for("mixing") if mixes else [])
        with torch.autocast(index_KB.device.type, torch.bfloat16, recipe.precision == "bf16"):
            logits_KBC = stack(
                self._trained_KT,
                inputs,
                buffers_KQ=self._buffers_KQ,
                shared=False,
                seeds_K=self._seeds_for("dropout") if self._has_dropout else None,
                drop=self._drop(),
            )
        self._loss(logits_KBC, window.targets_W, index_KB, share_K).backward()  # type: ignore[no-untyped-call]
        if recipe.gradient_clip is not None and self._trained_KT.grad is not None:
            clip_rows(self._trained_KT.grad, recipe.gradient_clip)
        before_KT = self._trained_KT.detach().clone() if self._varied else None
        self._optimizer.step(self._rate(step))
        if self._varied and before_KT is not None:
            optimizer = recipe.optimizer
            decay = self._rate(step) * optimizer.learning_rate * optimizer.weight_decay
            with torch.no_grad():
                self._trained_KT.copy_(self._varied.moved(before_KT, self._trained_KT, decay))
        if self._average_KP is not None:
            # Early averages would remember the start for ever: they follow faster at first.
            decay = min(recipe.ema_decay, (1 + step) / (10 + step))
            self._average_KP.lerp_(self._row(), 1 - decay)
        self.step += 1

    def _loss(
        self, outputs_KBO: Tensor, targets_W: Tensor, index_KB: Tensor, share_K: Tensor | None
    ) -> Tensor:
        """The sum over models of each one's mean loss: a row's gradient is its model's own."""
        losses_KB = self._losses(outputs_KBO, targets_W, index_KB)
        if share_K is not None:
            others_KB = self._losses(outputs_KBO, targets_W, index_KB.roll(1, dims=1))
            losses_KB = torch.lerp(others_KB, losses_KB, share_K[:, None].to(losses_KB.dtype))
        return losses_KB.mean(dim=1).sum()

    def _losses(self, outputs_KBO: Tensor, targets_W: Tensor, index_KB: Tensor) -> Tensor:
        """Of answers to examples, whosever those are: ``(K, B)``."""
        task, recipe, outputs = self._feed.task, self._recipe, outputs_KBO.flatten(0, 1)
        if recipe.precision == "bf16":
            outputs = outputs.float()
        if self._weights is None and recipe.class_weights is not None:
            self._weights = task.weights(self._feed.targets_N, recipe.class_weights, outputs)
        targets = targets_W[index_KB.flatten()]
        losses = task.losses(outputs, targets, recipe.label_smoothing, self._weights)
        losses_KB = losses.view_as(index_KB)
        if self._varied:
            # The loss is linear in the smoothing.
            spread = task.losses(outputs, targets, 1.0, self._weights).view_as(index_KB)
            losses_KB = torch.lerp(losses_KB, spread, self._varied.smoothing_K1.to(losses_KB))
        return losses_KB

    def _drop(self) -> Callable[[Tensor], Tensor] | None:
        """What is done to hidden units of models that leave some out."""
        if self._varied is None or not self._varied.dropout_K.any():
            return None
        generators = self._drawing("dropped")
        return partial(self._varied.dropped, generators=generators)

    def _seeds_for(self, purpose: str) -> list[int]:
        """Of each model's draws at this step."""
        return [seed_for(seed, purpose, self.step) for seed in self._seeds]

    def _drawing(self, purpose: str) -> list[torch.Generator]:
        seeds = self._seeds_for(purpose)
        return [g.manual_seed(seed) for g, seed in zip(self._generators, seeds, strict=True)]

    def _row(self) -> Tensor:
        return torch.cat([self._trained_KT.detach(), self._buffers_KQ], dim=1)

    def now(self) -> Tensor:
        """The models ``(K, P)``, or their moving averages, on their device."""
        return self._row() if self._average_KP is None else self._average_KP.clone()

    def state(self) -> dict[str, Tensor]:
        """All that steps change; the tensors themselves, not copies."""
        tensors = {"trained": self._trained_KT.detach(), "buffers": self._buffers_KQ}
        if self._average_KP is not None:
            tensors["average"] = self._average_KP
        for name, kept in self._optimizer.state().items():
            tensors |= {f"optimizer.{name}.{i}": each for i, each in enumerate(kept)}
        return tensors

    def load(self, state: Mapping[str, Tensor], step: int) -> None:
        """Go on from a ``state`` at a step."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.step = step


def clip_rows(gradient_KT: Tensor, largest: float) -> None:
    """Shorten the gradient of each model that is longer, in place.

    Source: ``torch.nn.utils.clip_grad_norm_``, of each row by itself.
    """
    norm_K1 = torch.linalg.vector_norm(gradient_KT, dim=1, keepdim=True)
    gradient_KT.mul_((largest / (norm_K1 + 1e-6)).clamp(max=1.0))


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
