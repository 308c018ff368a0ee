"""Images that are decoded as they are needed, and in what order a large part is gone through.

A part that is larger than a window is gone through window by window, be it resident or streamed,
in an order of its own for every pass: which images are together in memory is a function of the
data set's seed and the number of the pass, and of nothing else. Within a window models shuffle by
generators of their own.

Shape letters: N images, W images of a window, M of a piece, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bend_ray.data.decoding import Look, decode
from bend_ray.data.sources import Source
from bend_ray.errors import DataError
from bend_ray.process.computing import usable_cores
from bend_ray.process.lazy import Tensor, torch
from bend_ray.randomness import generator_for
from bend_ray.storage.filesystems import in_threads

T = TypeVar("T")

WINDOW_BYTES = 2**28
"""Decoded images of a window where nobody says how many; smaller parts are one window."""
BLOCK_BYTES = 2**24
"""Decoded images of one task: a tenth of a second's work."""

RESIDENT_SHARE = 0.25
"""Of a node's memory, that decoded images may take."""

Work = Callable[[int], NDArray[np.uint8]]
"""A piece of work by its number."""
Ahead = Callable[[Work, int], Generator[NDArray[np.uint8]]]
"""Does the first so many pieces of work, some at a time and ahead; yields them in order."""


@dataclass(frozen=True)
class Windows:
    """Which images of a part are in memory together.

    Attributes:
        images: of a window, at most.
        seed: of their order.
        runs_N: the run of neighbours in its files that each image is read with; None: read alone.
    """

    images: int
    seed: int = 0
    runs_N: Tensor | None = None

    def some(self, index_N: Tensor) -> Windows:
        """Of some images of the part."""
        return self if self.runs_N is None else replace(self, runs_N=self.runs_N[index_N])

    def sizes(self, batch_sizes: Sequence[int]) -> list[list[int]]:
        """Batch sizes of a pass, window by window; DataError where a window holds no batch."""
        if self.images < batch_sizes[0]:
            raise DataError(
                f"dataset.window: expected a batch of {batch_sizes[0]} images at least, got "
                f"{self.images}; raise it, or lower seeds.recipe.batch_size"
            )
        count = self.images // batch_sizes[0]
        return [list(batch_sizes[i : i + count]) for i in range(0, len(batch_sizes), count)]

    def order(self, epoch: int, num_images: int) -> Tensor:
        """All images ``(N,)`` as pass ``epoch`` meets them: runs in random order, each whole."""
        generator = generator_for(self.seed, "windows", epoch)
        if self.runs_N is None:
            return torch.randperm(num_images, generator=generator)
        rank_R = torch.randperm(int(self.runs_N.max()) + 1, generator=generator)
        return rank_R[self.runs_N].argsort(stable=True)


def windows_of(
    source: Source, rows_N: NDArray[np.int64], look: Look, images: int | None, seed: int
) -> Windows:
    """Windows of some images of a source; of so many, None for ``WINDOW_BYTES`` of them.

    Images that are read together stay together, but never more than a sixteenth of a window.
    """
    assert look.shape is not None
    images = images or max(1, WINDOW_BYTES // math.prod(look.shape))
    run = min(source.run, images // 16)
    return Windows(images, seed, torch.from_numpy(rows_N // run) if run > 1 else None)


@dataclass(frozen=True)
class Room:
    """What decoded images may take of memory, in bytes, and how those of more are decoded."""

    num_bytes: float
    ahead: Ahead | None = None


@dataclass(frozen=True)
class Streamed:
    """A part whose images stay in their files; what ``Examples`` does, as far as can be.

    Attributes:
        source: its files, and those of parts drawn from the same.
        rows_N: of the source, one an image.
        look: what its pixels have in common, their shape too.
        ahead: how images are decoded that will be needed; None: by threads.
        windows: how it is gone through; None where no models are trained on it.
    """

    source: Source
    rows_N: NDArray[np.int64]
    look: Look
    ahead: Ahead | None = None
    windows: Windows | None = None

    @cached_property
    def labels_N(self) -> Tensor:  # noqa: N802 - a shape
        """The class of each image, int64."""
        return torch.from_numpy(self.source.labels_N[self.rows_N])

    def __len__(self) -> int:
        return len(self.rows_N)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image: channels, height and width."""
        assert self.look.shape is not None
        return self.look.shape

    @property
    def block(self) -> int:
        """Images that one task decodes."""
        return max(1, BLOCK_BYTES // int(np.prod(self.shape)))

    def some(self, index_N: Tensor, place_C: Tensor | None = None) -> Streamed:
        """Some images, still in their files; ``place_C``: with other numbers of the classes."""
        windows, source = self.windows and self.windows.some(index_N), self.source
        if place_C is not None:
            source = replace(source, labels_N=place_C.numpy()[source.labels_N])
        return replace(self, source=source, rows_N=self.rows_N[index_N.numpy()], windows=windows)

    def take(self, index: Any) -> Tensor:
        """Some images ``(M, C, H, W)``, decoded by this process now."""
        return torch.from_numpy(decode(self.source, self.rows_N[index], self.look)[0])

    def stream(self, pieces: Sequence[Tensor]) -> Iterator[Tensor]:
        """Pieces ``(M, C, H, W)`` of the part, each given by its images, decoded ahead.

        DataError where an image can no longer be read, or the stream ends before its last one.
        """
        blocks = [block.numpy() for piece in pieces for block in torch.split(piece, self.block)]

        def nth(number: int) -> NDArray[np.uint8]:
            return decode(self.source, self.rows_N[blocks[number]], self.look)[0]

        with closing((self.ahead or by_threads)(nth, len(blocks))) as decoded:
            for piece in pieces:
                pixels_MCHW = np.empty((len(piece), *self.shape), np.uint8)
                for start in range(0, len(piece), self.block):
                    if (block := next(decoded, None)) is None:
                        raise DataError(
                            f"dataset: expected {sum(map(len, pieces))} images of a stream, it "
                            "ended early; run again, it goes on from what is stored"
                        )
                    pixels_MCHW[start : start + self.block] = block.reshape(-1, *self.shape)
                yield torch.from_numpy(pixels_MCHW)


def by_threads(work: Work, count: int) -> Generator[NDArray[np.uint8]]:
    """See ``Ahead``: by threads of this process, as Pillow decodes without holding the others."""
    return in_threads(work, range(count), usable_cores())


def fetched_ahead(items: Generator[T]) -> Generator[T]:
    """The items, of which a thread makes the next one while one is used."""
    with closing(items), ThreadPoolExecutor(1) as thread:
        coming = thread.submit(lambda: list(islice(items, 1)))
        while found := coming.result():
            coming = thread.submit(lambda: list(islice(items, 1)))
            yield from found
