"""Examples in memory: the parts of a data set, compact, and what normalises their inputs.

Inputs are one tensor, or several by name, each with the examples as its first dimension. Pixels
stay uint8 until a batch is looked at. A data set travels between processes as numpy arrays, which
an object store hands to every process of a machine without copying them.

Shape letters: N examples, C channels or features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bend_ray.data.columns import Column
from bend_ray.errors import DataError
from bend_ray.process.lazy import torch
from bend_ray.spec import Spec
from bend_ray.tasks import Classification, Task

if TYPE_CHECKING:
    from torch import Tensor

    from bend_ray.data.streaming import Streamed, Windows

    Inputs = Tensor | dict[str, Tensor]
    Statistics = tuple[Tensor, Tensor] | None
else:
    Inputs = Statistics = Any
"""Inputs: ``(N, ...)``, or several of these by the names of the network's parameters.

Statistics: mean and standard deviation of the channels, to be broadcast; None of what has none.
"""

MIN_STD = 1e-6
PIECE_BYTES = 2**25
"""Of a part in memory at a time, as it is kept; normalised pixels take four times as much."""

Shape = tuple[int, ...] | dict[str, tuple[int, ...]]
"""Of one example's inputs."""


class Decoding(Spec):
    """How a picture file becomes pixels, in what files leave open; see ``decoding.pixels_of``."""

    background: Literal["white", "black"] = "white"
    """What transparent parts are laid on; most programs show them on white."""
    resampling: Literal["bilinear", "box"] = "bilinear"
    """Filter that resizes, antialiased; box averages whole areas where it shrinks."""
    pixel_max: Annotated[int, Field(ge=1, le=255)] = 255
    """Value of white: pixels are scaled from 255 to it."""


PLAIN = Decoding()


def each(work: Callable[..., Any], inputs: Any, *more: Any) -> Any:
    """``work`` done to one input, or to each of several; ``more`` are of the same form."""
    if isinstance(inputs, Mapping):
        return {name: work(value, *(m[name] for m in more)) for name, value in inputs.items()}
    return work(inputs, *more)


def first(inputs: Inputs) -> Tensor:
    """The one input, or the first of several."""
    return next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs


def rows(inputs: Inputs, index: Any) -> Inputs:
    """Some examples' inputs."""
    chosen: Inputs = each(lambda values: values[index], inputs)
    return chosen


def count(inputs: Inputs) -> int:
    """N."""
    return len(first(inputs))


def numbers(inputs: Inputs) -> int:
    """How many numbers an example has."""
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return sum(math.prod(value.shape[1:]) for value in values)


def moved(inputs: Inputs, device: str | torch.device) -> Inputs:
    """The inputs on a device."""
    there: Inputs = each(lambda values: values.to(device), inputs)
    return there


def batches(inputs: Inputs, size: int) -> list[Inputs]:
    """Consecutive batches of ``size``; the last may be smaller."""
    return [rows(inputs, slice(i, i + size)) for i in range(0, count(inputs), size)]


def pieces(examples: Examples | Streamed, most: int | None = None) -> Iterator[Inputs]:
    """All inputs in their order, consecutive ones together, as many as are quickly normalised."""
    first = examples.take(slice(1))
    held = first.values() if isinstance(first, Mapping) else [first]
    size = max(1, PIECE_BYTES // max(1, sum(values.nbytes for values in held)))
    return examples.stream(torch.split(torch.arange(len(examples)), min(size, most or size)))


@dataclass(frozen=True)
class Examples:
    """Inputs of N examples, and their labels: int64 ``(N,)``, or targets, float64 ``(N, T)``.

    ``windows`` say how a part is gone through that is larger than one; None of others.
    """

    inputs: Inputs
    labels_N: Tensor
    windows: Windows | None = None

    @classmethod
    def of_arrays(
        cls,
        inputs: NDArray[Any] | Mapping[str, NDArray[Any]],
        labels_N: NDArray[Any],
        windows: Windows | None = None,
    ) -> Examples:
        """Examples over the same memory, which may be read-only."""
        with warnings.catch_warnings():
            # Nobody writes into inputs, so arrays of an object store need not be copied.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return cls(each(torch.from_numpy, inputs), torch.from_numpy(labels_N), windows)

    def __len__(self) -> int:
        return len(self.labels_N)

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = each(lambda values: values.numpy(), self.inputs)
        return Examples.of_arrays, (arrays, self.labels_N.numpy(), self.windows)

    @property
    def shape(self) -> Shape:
        """Of one example, such as channels, height and width; by name where there are several."""
        shape: Shape = each(lambda values: tuple(values.shape[1:]), self.inputs)
        return shape

    def take(self, index: Any) -> Inputs:
        """Some examples' inputs."""
        return rows(self.inputs, index)

    def some(self, index_N: Tensor) -> Examples:
        """Some examples."""
        windows = self.windows and self.windows.some(index_N)
        return Examples(self.take(index_N), self.labels_N[index_N], windows)

    def relabelled(self, place_C: Tensor) -> Examples:
        """With other numbers of the classes."""
        return replace(self, labels_N=place_C[self.labels_N])

    def stream(self, pieces: Sequence[Tensor]) -> Iterator[Inputs]:
        """The inputs of pieces of the part, each given by its examples."""
        return map(self.take, pieces)


@dataclass(frozen=True)
class Parts:
    """The three parts of a data set, with the statistics that normalise its inputs.

    Attributes:
        train: what models are fitted on.
        validation: what models and members are chosen by.
        class_names: one name a class, or a target.
        load_test: reads the test part when ``test`` is first asked for; None where there is none.
        decoding: how files of such images are read; None where inputs are no images.
        standardise: whether inputs that are no tokens are brought to zero mean and unit variance.
        task: what is learnt.
        columns: of a table, what became of each, side by side in the one input.
        calibration: validation examples kept back; None where there are none.
        load_left_out: reads the test examples of classes that are left out, if some are.
    """

    train: Examples | Streamed
    validation: Examples | Streamed
    class_names: tuple[str, ...]
    load_test: Callable[[], Examples | Streamed] | None
    decoding: Decoding | None = None
    standardise: bool = True
    task: Task = field(default_factory=Classification)
    columns: Mapping[str, Column] = field(default_factory=dict)
    calibration: Examples | Streamed | None = None
    load_left_out: Callable[[], Examples | Streamed] | None = None

    @cached_property
    def test(self) -> Examples | Streamed:
        """What the evaluation reports, and nothing else may look at; validation without one."""
        return self.validation if self.load_test is None else self.load_test()

    @property
    def has_test(self) -> bool:
        """Whether there is a test part."""
        return self.load_test is not None

    def with_test(self, test: Examples | Streamed) -> Parts:
        """The same data set, given the test part that another process has read."""
        return replace(self, load_test=partial(itself, test)) if self.has_test else self

    @property
    def num_outputs(self) -> int:
        """Of a network for it."""
        return self.task.num_outputs(self.class_names)

    @property
    def input_shape(self) -> Shape:
        """Of one example, such as channels, height and width; by name where there are several."""
        return self.train.shape

    @cached_property
    def statistics(self) -> Statistics | dict[str, Statistics]:
        """Of each input's channels or features, over the training part, or its first window."""
        fit = _statistics if self.standardise else lambda values: None
        first = self.train.take(slice(self.train.windows and self.train.windows.images))
        found: Statistics | dict[str, Statistics] = each(fit, first)
        return found

    def normalise(self, inputs: Inputs) -> Inputs:
        """What a network is given: floats of zero mean and unit variance a channel, and tokens."""
        normalised: Inputs = each(_normalised, inputs, self.statistics)
        return normalised

    def shown(self, num_examples: int) -> Inputs:
        """The first training examples, normalised: what a network is tried on."""
        return self.normalise(self.train.take(slice(num_examples)))

    def __getstate__(self) -> dict[str, Any]:
        # Who is given a data set is not given its test part, whoever has looked at it before.
        return {name: value for name, value in vars(self).items() if name != "test"}


def itself(value: Any) -> Any:
    """What is given."""
    return value


def _statistics(values: Tensor) -> Statistics:
    """Of the channels, dimension 1; None for whole numbers that are no pixels, such as tokens."""
    if values.dtype == torch.uint8:
        mean_C, std_C = _of_counts(values) if values.ndim > 1 else _of_counts(values[:, None])
    elif values.is_floating_point():
        mean_C, std_C = _of_sums(values if values.ndim > 1 else values[:, None])
    else:
        return None
    trailing = (-1,) + (1,) * (values.ndim - 2) if values.ndim > 1 else ()
    return mean_C.float().reshape(trailing), std_C.float().reshape(trailing)


def _of_counts(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """From how often each of the 256 values occurs: floats would need four times the memory."""
    counts = [torch.bincount(own.flatten(), minlength=256) for own in pixels.transpose(0, 1)]
    counts_CV = torch.stack(counts).double()
    values_V = torch.arange(256, dtype=torch.float64)
    total_C1 = counts_CV.sum(dim=1, keepdim=True)
    mean_C1 = (counts_CV * values_V).sum(dim=1, keepdim=True) / total_C1
    squares_C1 = (counts_CV * (values_V - mean_C1) ** 2).sum(dim=1, keepdim=True)
    std_C1 = (squares_C1 / (total_C1 - 1)).sqrt().clamp_min(MIN_STD)
    return mean_C1[:, 0], std_C1[:, 0]


def _of_sums(values: Tensor) -> tuple[Tensor, Tensor]:
    """In float64; of what never varies the deviation is 1."""
    by_channel = values.transpose(0, 1).flatten(1).double()
    std_C, mean_C = torch.std_mean(by_channel, dim=1, correction=min(1, by_channel.shape[1] - 1))
    return mean_C, torch.where(std_C > MIN_STD, std_C, torch.ones_like(std_C))


def _normalised(values: Tensor, statistics: Statistics) -> Tensor:
    if statistics is None:
        return values.float() if values.dtype == torch.uint8 else values
    mean, std = (each.to(values.device) for each in statistics)
    return (values.float() - mean) / std


def split_rows(
    num_examples: int, num_train: int | None, num_validation: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which examples are for training and which for validation: one seeded shuffle.

    ``num_train`` None is for all that are left. DataError where there are too few.
    """
    needed = num_validation + (num_train or 1)
    if needed > num_examples:
        raise DataError(
            f"dataset: expected at least {needed} examples ({num_validation} for validation and "
            f"{num_train or 1} for training), got {num_examples}; lower dataset.num_validation or "
            "dataset.num_train"
        )
    order = np.random.default_rng(seed).permutation(num_examples)
    return order[num_validation:][:num_train], order[:num_validation]
