"""Which examples each model of a cohort is trained on at each step, where they are, how they mix.

Models share windows of the training part, one in use and one that a thread fetches meanwhile, and
shuffle within them by generators of their own. A part that is no larger than a window is one, and
stays on the device. What a step is given is a function of the generators' seeds and its number:
a training that goes on in the middle draws again what was drawn before, and decodes none of it.

Shape letters: N training examples, W of a window, K models, B examples a batch, H rows
of an image.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from bend_ray.data.augmentation import Augmentation, RandomViews
from bend_ray.data.examples import Examples, Inputs, count, each, first, moved, numbers
from bend_ray.data.streaming import Streamed, fetched_ahead
from bend_ray.errors import DataError
from bend_ray.networks.recipe import Recipe
from bend_ray.tasks import Task

NORMALISED_BYTES = 64 * 2**20
"""Examples that are kept as floats while models train on them; larger sets stay as they are."""

Views = Callable[[Tensor, Sequence[torch.Generator]], Inputs]
"""What K models see of examples ``(K, B)``, by generators of their views: ``(K, B, ...)``."""


@dataclass(frozen=True)
class Window:
    """Views of examples on the device, and their targets ``(W,)``."""

    views: Views
    targets_W: Tensor


class Feed:
    """What models learn from, and how: a training part, window by window, on a device.

    ``normalise`` makes of inputs as they are kept what a network is given; ``targets_N`` are what a
    loss compares with.
    """

    def __init__(
        self,
        train: Examples | Streamed,
        normalise: Callable[[Inputs], Inputs],
        recipe: Recipe,
        task: Task,
        device: torch.device,
    ) -> None:
        self.recipe, self.task, self.device = recipe, task, device
        self.targets_N = task.targets(train.labels_N)
        self._train, self._normalise = train, normalise
        batch_sizes = recipe.batch_sizes(len(train))
        windows, self._windows, self._sizes = train.windows, None, [batch_sizes]
        if windows is not None and windows.images < len(train):
            self._windows, self._sizes = windows, windows.sizes(batch_sizes)
        self._whole: Window | None = None

    def __len__(self) -> int:
        return len(self._train)

    def batches(
        self,
        generators: Sequence[torch.Generator],
        num_steps: int,
        *,
        bootstrap: bool = False,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[tuple[Window, Tensor]]:
        """A window, and each model's examples in it ``(K, B)``, for steps from ``start`` on.

        A pass shows every model all examples once, or as many as are drawn with replacement once,
        by ``bootstrap``; the first pass has number ``epoch``.
        """
        orders = [_Order(len(self), bootstrap, generator) for generator in generators]
        windows = self._fetched(num_steps, epoch, start)
        step = 0
        with closing(fetched_ahead(windows) if self._windows else windows) as coming:
            for index_W, sizes, window in coming:
                order_KW = torch.stack([order.within(index_W) for order in orders])
                for index_KB in torch.split(order_KW.to(self.device), sizes, dim=1):
                    if start <= step < num_steps:
                        assert window is not None
                        yield window, index_KB
                    step += 1

    def _fetched(
        self, num_steps: int, epoch: int, start: int
    ) -> Generator[tuple[Tensor, list[int], Window | None]]:
        """The examples and batch sizes of each window, and from step ``start`` on itself."""
        step = 0
        while step < num_steps:
            ends = list(accumulate(map(len, self._sizes), initial=step))[1:]
            count = bisect_left(ends, num_steps) + 1
            skipped = bisect_right(ends, start)
            pieces = torch.split(self._order(epoch), [*map(sum, self._sizes)])[:count]
            with closing(self._load(pieces[skipped:])) as loaded:
                for number, (index_W, sizes) in enumerate(zip(pieces, self._sizes, strict=False)):
                    yield index_W, sizes, next(loaded) if number >= skipped else None
            step, epoch = ends[-1], epoch + 1

    def _order(self, epoch: int) -> Tensor:
        if self._windows is None:
            return torch.arange(len(self))
        return self._windows.order(epoch, len(self))

    def _load(self, pieces: Sequence[Tensor]) -> Generator[Window]:
        if self._windows is None:
            if self._whole is None:
                self._whole = self._window(self._train.take(slice(None)), self.targets_N)
            yield self._whole
            return
        for index_W, inputs in zip(pieces, self._train.stream(pieces), strict=True):
            yield self._window(inputs, self.targets_N[index_W])

    def _window(self, inputs: Inputs, targets_W: Tensor) -> Window:
        views = _views(moved(inputs, self.device), self._normalise, self.recipe.augmentation)
        return Window(views, targets_W.to(self.device))


class _Order:
    """The order in which a model sees the examples of one window after another."""

    def __init__(self, num_examples: int, bootstrap: bool, generator: torch.Generator) -> None:
        self._generator, self._count = generator, num_examples
        self._sample_N = None
        if bootstrap:
            self._sample_N = torch.randint(num_examples, (num_examples,), generator=generator)

    def within(self, index_W: Tensor) -> Tensor:
        """As many of a window's examples as it has, by their places in it.

        Of a sample drawn with replacement a window may have a few more, or fewer: these are left
        out, or shown again.
        """
        size = len(index_W)
        own = None if self._sample_N is None else self._drawn(index_W)
        count = size if own is None else len(own)
        # Of half the bytes: a pass of many models has many of them.
        order = torch.randperm(count, generator=self._generator, dtype=torch.int32)
        order = order if own is None else own[order].int()
        return order if count == size else order.repeat(-(-size // count))[:size]

    def _drawn(self, index_W: Tensor) -> Tensor:
        assert self._sample_N is not None
        place_N = torch.full((self._count,), -1)
        place_N[index_W] = torch.arange(len(index_W))
        drawn = place_N[self._sample_N]
        drawn = drawn[drawn >= 0]
        return drawn if len(drawn) else torch.arange(len(index_W))


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
    if isinstance(augmentation, RandomViews) and (given.ndim, given.dtype) != (4, torch.uint8):
        raise DataError(
            "expected images of uint8 pixels for seeds.recipe.augmentation, got "
            f"{tuple(given.shape[1:])} of {given.dtype}; leave it out, or import one of your own"
        )
    return lambda index_KB, generators: normalise(
        augmentation.apply(_rows(index_KB, given), generators)
    )


def _rows(index_KB: Tensor, values: Tensor) -> Tensor:
    """The values of some examples for each model."""
    # Twice as fast as indexing by the whole index: a row is copied at once.
    rows = values.index_select(0, index_KB.flatten())
    return rows.view(*index_KB.shape, *values.shape[1:])


def mixed(inputs: Inputs, recipe: Recipe, seeds_K: Sequence[int]) -> tuple[Inputs, Tensor | None]:
    """Batches ``(K, B, ...)`` of which each example is blended with the one before it.

    Where both mixup and cutmix are asked for a batch has one of them, at even odds, as in
    torchvision's reference training. Each model draws by a seed of its own. Also gives the share
    ``(K,)`` of an example that is its own, None where nothing is mixed. DataError where inputs are
    none that can be.

    Source: Zhang et al. 2018 (arXiv 1710.09412); Yun et al. 2019 (arXiv 1905.04899).
    """
    if not (recipe.mixup or recipe.cutmix):
        return inputs, None
    height, width = first(inputs).shape[-2:]
    blended_K = torch.ones(len(seeds_K))
    inside_KHW = torch.zeros(len(seeds_K), height, width, dtype=torch.bool)
    for k, seed in enumerate(seeds_K):
        generator = np.random.default_rng(seed)
        cuts = recipe.cutmix > 0 and generator.random() < (0.5 if recipe.mixup else 1.0)
        alpha = recipe.cutmix if cuts else recipe.mixup
        share = float(generator.beta(alpha, alpha))
        if cuts:
            inside_KHW[k][_inside(share, height, width, generator)] = True
        else:
            blended_K[k] = share
    share_K = blended_K * (1.0 - inside_KHW.float().mean(dim=(1, 2)))
    there = first(inputs).device
    windows = inside_KHW.to(there) if recipe.cutmix else None
    blended = each(partial(_mixed, share_K=blended_K.to(there), inside_KHW=windows), inputs)
    return blended, share_K.to(there)


def _mixed(values: Tensor, share_K: Tensor, inside_KHW: Tensor | None) -> Tensor:
    if not values.is_floating_point() or (inside_KHW is not None and values.ndim != 5):
        raise DataError(
            "expected floats or pixels for seeds.recipe.mixup, and images for cutmix, got "
            f"{values.dtype} of shape {tuple(values.shape[2:])}; set them to 0"
        )
    others = values.roll(1, dims=1)
    share = share_K.view(-1, *[1] * (values.ndim - 1)).to(values.dtype)
    values = torch.lerp(others, values, share)
    if inside_KHW is None:
        return values
    return torch.where(inside_KHW[:, None, None], others, values)


def _inside(
    share: float, height: int, width: int, generator: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a window that leaves about this share of an image."""
    row, column = generator.integers(height), generator.integers(width)
    half = 0.5 * math.sqrt(1.0 - share)
    return (
        slice(max(0, int(row - half * height)), min(height, int(row + half * height))),
        slice(max(0, int(column - half * width)), min(width, int(column + half * width))),
    )
