"""Images in memory: the parts of a data set, compact, and what normalises them.

Pixels stay uint8 until a batch is looked at. A data set travels between processes as numpy
arrays, which an object store hands to every process of a machine without copying them.

Shape letters: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bend_ray.errors import DataError
from bend_ray.process.lazy import torch
from bend_ray.spec import Spec

MIN_STD = 1e-6


class Decoding(Spec):
    """How a picture file becomes pixels, in what files leave open; see ``decoding.pixels_of``."""

    background: Literal["white", "black"] = "white"
    """What transparent parts are laid on; most programs show them on white."""
    resampling: Literal["bilinear", "box"] = "bilinear"
    """Filter that resizes, antialiased; box averages whole areas where it shrinks."""
    pixel_max: Annotated[int, Field(ge=1, le=255)] = 255
    """Value of white: pixels are scaled from 255 to it."""


PLAIN = Decoding()


@dataclass(frozen=True)
class Images:
    """Pixels ``(N, C, H, W)`` as uint8 and labels ``(N,)`` as int64."""

    pixels_NCHW: torch.Tensor
    labels_N: torch.Tensor

    @classmethod
    def of_arrays(cls, pixels_NCHW: NDArray[np.uint8], labels_N: NDArray[np.int64]) -> Images:
        """Images over the same memory, which may be read-only."""
        with warnings.catch_warnings():
            # Nobody writes into pixels, so arrays of an object store need not be copied.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return cls(torch.from_numpy(pixels_NCHW), torch.from_numpy(labels_N))

    def __len__(self) -> int:
        return len(self.labels_N)

    def __reduce__(self) -> tuple[Any, ...]:
        return Images.of_arrays, (self.pixels_NCHW.numpy(), self.labels_N.numpy())


@dataclass(frozen=True)
class ImageDataset:
    """The three parts of a data set, with the statistics that normalise its pixels.

    Attributes:
        train: what models are fitted on.
        validation: what models and members are chosen by.
        class_names: one name a class; their number is the number of logits.
        load_test: reads the test part when ``test`` is first asked for.
        decoding: how files of such images are read.
    """

    train: Images
    validation: Images
    class_names: tuple[str, ...]
    load_test: Callable[[], Images]
    decoding: Decoding = PLAIN

    @cached_property
    def test(self) -> Images:
        """What the evaluation reports, and nothing else may look at."""
        return self.load_test()

    def with_test(self, test: Images) -> ImageDataset:
        """The same data set, given the test part that another process has read."""
        return replace(self, load_test=partial(_itself, test))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train.pixels_NCHW.shape[1:]
        return channels, height, width

    @cached_property
    def channel_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation ``(C, 1, 1)`` of the training pixels.

        From how often each of the 256 values occurs: as floats the pixels need four times the
        memory.
        """
        pixels_CNHW = self.train.pixels_NCHW.transpose(0, 1)
        counts = [torch.bincount(pixels.flatten(), minlength=256) for pixels in pixels_CNHW]
        counts_CV = torch.stack(counts).double()
        values_V = torch.arange(256, dtype=torch.float64)
        total_C1 = counts_CV.sum(dim=1, keepdim=True)
        mean_C1 = (counts_CV * values_V).sum(dim=1, keepdim=True) / total_C1
        squares_C1 = (counts_CV * (values_V - mean_C1) ** 2).sum(dim=1, keepdim=True)
        std_C1 = (squares_C1 / (total_C1 - 1)).sqrt().clamp_min(MIN_STD)
        return mean_C1.float()[..., None], std_C1.float()[..., None]

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels ``(..., C, H, W)`` as floats of zero mean and unit variance."""
        mean, std = self.channel_statistics
        return (pixels.float() - mean.to(pixels.device)) / std.to(pixels.device)

    def __getstate__(self) -> dict[str, Any]:
        # Who is given a data set is not given its test part, whoever has looked at it before.
        return {name: value for name, value in vars(self).items() if name != "test"}


def _itself(images: Images) -> Images:
    return images


def split_rows(
    num_images: int, num_train: int | None, num_validation: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which images are for training and which for validation: one seeded shuffle.

    Args:
        num_images: there are.
        num_train: of them wanted for training; None for all that are left.
        num_validation: of them wanted for validation.
        seed: of the shuffle.

    Raises:
        DataError: there are too few.
    """
    needed = num_validation + (num_train or 1)
    if needed > num_images:
        raise DataError(
            f"dataset: expected at least {needed} images ({num_validation} for validation and "
            f"{num_train or 1} for training), got {num_images}; lower dataset.num_validation or "
            "dataset.num_train"
        )
    order = np.random.default_rng(seed).permutation(num_images)
    return order[num_validation:][:num_train], order[:num_validation]
