"""Which examples each model of a cohort is trained on at each step, and where they are.

Models share windows of the training part, one in use and one that a thread fetches meanwhile, and
shuffle within them by generators of their own. A part that is no larger than a window is one, and
stays on the device. What a step is given is a function of the generators' seeds and its number:
a training that goes on in the middle draws again what was drawn before, and decodes none of it.

Shape letters: N training examples, W of a window, K models, B examples a batch.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

import torch
from torch import Tensor

from bend_ray.data.examples import Examples, Inputs, moved
from bend_ray.data.streaming import Streamed, fetched_ahead

V = TypeVar("V")


@dataclass(frozen=True)
class Window(Generic[V]):
    """Examples on the device, prepared for training, and their targets ``(W,)``."""

    prepared: V
    targets_W: Tensor


class Feed(Generic[V]):
    """A training part, window by window, on a device.

    Args:
        train: the part.
        targets_N: what a loss compares with.
        batch_sizes: of a pass; they sum to N.
        prepare: what is made of a window's inputs, once they are on the device.
        device: of training.

    Attributes:
        targets_N: as given.
    """

    def __init__(
        self,
        train: Examples | Streamed,
        targets_N: Tensor,
        batch_sizes: Sequence[int],
        prepare: Callable[[Inputs], V],
        device: torch.device,
    ) -> None:
        self._train, self._prepare, self._device = train, prepare, device
        self.targets_N = targets_N
        windows, self._windows, self._sizes = train.windows, None, [list(batch_sizes)]
        if windows is not None and windows.images < len(train):
            self._windows, self._sizes = windows, windows.sizes(batch_sizes)
        self._whole: Window[V] | None = None

    def batches(
        self,
        generators: Sequence[torch.Generator],
        num_steps: int,
        *,
        bootstrap: bool = False,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[tuple[Window[V], Tensor]]:
        """A window, and each model's examples in it ``(K, B)``, for steps from ``start`` on.

        A pass shows every model all examples once, or as many as are drawn with replacement once,
        by ``bootstrap``; the first pass has number ``epoch``.
        """
        orders = [_Order(len(self._train), bootstrap, generator) for generator in generators]
        windows = self._fetched(num_steps, epoch, start)
        step = 0
        with closing(fetched_ahead(windows) if self._windows else windows) as coming:
            for index_W, sizes, window in coming:
                order_KW = torch.stack([order.within(index_W) for order in orders])
                for index_KB in torch.split(order_KW.to(self._device), sizes, dim=1):
                    if start <= step < num_steps:
                        assert window is not None
                        yield window, index_KB
                    step += 1

    def _fetched(
        self, num_steps: int, epoch: int, start: int
    ) -> Generator[tuple[Tensor, list[int], Window[V] | None]]:
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
        num_examples = len(self._train)
        if self._windows is None:
            return torch.arange(num_examples)
        return self._windows.order(epoch, num_examples)

    def _load(self, pieces: Sequence[Tensor]) -> Generator[Window[V]]:
        if self._windows is None:
            if self._whole is None:
                self._whole = self._window(self._train.take(slice(None)), self.targets_N)
            yield self._whole
            return
        for index_W, inputs in zip(pieces, self._train.stream(pieces), strict=True):
            yield self._window(inputs, self.targets_N[index_W])

    def _window(self, inputs: Inputs, targets_W: Tensor) -> Window[V]:
        return Window(self._prepare(moved(inputs, self._device)), targets_W.to(self._device))


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
