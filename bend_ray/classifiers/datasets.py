"""Data sets: ``dataset.load() -> ImageDataset`` with a training, a validation and a test part.

The parts are made once from the spec's own seed, so every stage on every machine sees the same
ones. Channel statistics come from the training part alone, and the test part is not read before
``.test`` is asked for: only the evaluation does. To add a data set: one class, and its name in
the union below.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveInt, model_validator

from bend_ray.errors import DataError
from bend_ray.lazy import torch
from bend_ray.spec import Spec

NUM_DIGITS = 1797


@dataclass(frozen=True)
class Images:
    """Pixels ``(N, C, H, W)`` as uint8 and labels ``(N,)`` as int64."""

    pixels_NCHW: torch.Tensor
    labels_N: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class ImageDataset:
    """The three parts of a data set, with the statistics that normalise its pixels.

    Attributes:
        train: what models are fitted on.
        validation: what models and members are chosen by.
        class_names: one name a class; their number is the number of logits.
        load_test: reads the test part when ``test`` is first asked for.
    """

    train: Images
    validation: Images
    class_names: tuple[str, ...]
    load_test: Callable[[], Images]

    @cached_property
    def test(self) -> Images:
        """What the evaluation reports, and nothing else may look at."""
        return self.load_test()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.train.pixels_NCHW.shape[1:]
        return channels, height, width

    @cached_property
    def channel_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation ``(C, 1, 1)`` of the training pixels."""
        std_C, mean_C = torch.std_mean(self.train.pixels_NCHW.float(), dim=(0, 2, 3))
        return mean_C.view(-1, 1, 1), std_C.clamp_min(1e-6).view(-1, 1, 1)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels ``(..., C, H, W)`` as floats of zero mean and unit variance."""
        mean, std = self.channel_statistics
        return (pixels.float() - mean.to(pixels.device)) / std.to(pixels.device)


class Digits(Spec):
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, 10 classes, embedded.

    Source: E. Alpaydin & C. Kaynak (1998), UCI Optical Recognition of Handwritten Digits.
    """

    kind: Literal["digits"] = "digits"
    num_train: PositiveInt = 1000
    """Training images."""
    num_validation: PositiveInt = 300
    """Validation images; the rest is the test part."""
    split_seed: NonNegativeInt = 0
    """Seed of the shuffle that makes the parts."""

    @model_validator(mode="after")
    def _some_are_left(self) -> Digits:
        if self.num_train + self.num_validation >= NUM_DIGITS:
            raise ValueError(
                f"expected num_train + num_validation below the {NUM_DIGITS} images of digits, so "
                f"that some are left for the test, got {self.num_train + self.num_validation}"
            )
        return self

    def load(self) -> ImageDataset:
        """The parts of one seeded shuffle."""
        pixels, labels = _read_digits()
        num_seen = self.num_train + self.num_validation
        order = np.random.default_rng(self.split_seed).permutation(len(labels))
        cuts = np.split(order, [self.num_train, num_seen])

        def part(indices: np.ndarray) -> Images:
            return Images(torch.from_numpy(pixels[indices]), torch.from_numpy(labels[indices]))

        return ImageDataset(
            train=part(cuts[0]),
            validation=part(cuts[1]),
            class_names=tuple("0123456789"),
            load_test=lambda: part(cuts[2]),
        )


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``(1797, 1, 8, 8)`` in 0..16 and labels, from the file scikit-learn ships.

    Read by path: importing sklearn costs every actor more seconds than training a model.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("digits: expected scikit-learn to be installed: pip install scikit-learn")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.exists():
        raise DataError(f"digits: expected scikit-learn's file {path.name} in {path.parent}")
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, -1]


# The union of one: `Annotated[Digits | ..., Field(discriminator="kind")]` from the second on.
Dataset = Digits
