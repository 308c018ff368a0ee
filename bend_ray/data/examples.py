"""Examples in memory: the parts of a data set, compact, and what normalises their inputs.

Inputs are one tensor, or several by name, each with the examples as its first dimension. Pixels
stay uint8 until a batch is looked at. A data set travels between processes as numpy arrays, which
an object store hands to every process of a machine without copying them.

Shape letters: N examples, C channels or features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bend_ray.data.columns import Column
from bend_ray.errors import DataError
from bend_ray.process.lazy import Tensor, torch
from bend_ray.spec import Spec
from bend_ray.tasks import Classification, Task

if TYPE_CHECKING:
    from bend_ray.data.streaming import Streamed, Windows

Inputs = Tensor | dict[str, Tensor]
Statistics = tuple[Tensor, Tensor] | None
"""Inputs: ``(N, ...)``, or several of these by the names of the network's parameters.

Statistics: mean and standard deviation of the channels, to be broadcast; None of what has none.
"""

U = TypeVar("U")

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


def each(work: Callable[..., U], inputs: Any, *more: Any) -> U | dict[str, U]:
    """``work`` done to one input, or to each of several; ``more`` are of the same form."""
    if isinstance(inputs, Mapping):
        return {name: work(value, *(m[name] for m in more)) for name, value in inputs.items()}
    return work(inputs, *more)


def first(inputs: Inputs) -> Tensor:
    """The one input, or the first of several."""
    return next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs


def rows(inputs: Inputs, index: Any) -> Inputs:
    """Some examples' inputs."""
    return each(lambda values: values[index], inputs)


def count(inputs: Inputs) -> int:
    """N."""
    return len(first(inputs))


def numbers(inputs: Inputs) -> int:
    """How many numbers an example has."""
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return sum(math.prod(value.shape[1:]) for value in values)


def moved(inputs: Inputs, device: str | torch.device) -> Inputs:
    """The inputs on a device."""
    return each(lambda values: values.to(device), inputs)


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
        return each(lambda values: tuple(values.shape[1:]), self.inputs)

    def take(self, index: Any) -> Inputs:
        """Some examples' inputs."""
        return rows(self.inputs, index)

    def some(self, index_N: Tensor, place_C: Tensor | None = None) -> Examples:
        """Some examples; ``place_C``: with other numbers of the classes."""
        windows = self.windows and self.windows.some(index_N)
        labels_N = self.labels_N[index_N]
        labels_N = labels_N if place_C is None else place_C[labels_N]
        return Examples(self.take(index_N), labels_N, windows)

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
        whole_N: of each validation example, which others it stays together with; None: with none.
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
    whole_N: NDArray[np.int64] | None = None

    @cached_property
    def test(self) -> Examples | Streamed:
        """What the evaluation reports, and nothing else may look at; validation without one."""
        return self.validation if self.load_test is None else self.load_test()

    def with_test(self, test: Examples | Streamed) -> Parts:
        """The same data set, given the test part that another process has read."""
        return replace(self, load_test=partial(itself, test)) if self.load_test else self

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
        return each(fit, self.train.take(slice(self.train.windows and self.train.windows.images)))

    def normalise(self, inputs: Inputs) -> Inputs:
        """What a network is given: floats of zero mean and unit variance a channel, and tokens."""
        return each(_normalised, inputs, self.statistics)

    def shown(self, num_examples: int) -> Inputs:
        """The first training examples, normalised: what a network is tried on."""
        return self.normalise(self.train.take(slice(num_examples)))

    def kept_back(self, count: int, seed: int) -> Parts:
        """So many validation examples moved to ``calibration``; DataError where none are left.

        A few more where they stay together with others.
        """
        if not count:
            return self
        num_validation, asked = len(self.validation), count
        order_N = np.random.default_rng([seed, 1]).permutation(num_validation)
        if self.whole_N is not None and count < num_validation:
            _, first_N, of_N = np.unique(
                self.whole_N[order_N], return_index=True, return_inverse=True
            )
            order_N = order_N[np.argsort(first_N[of_N], kind="stable")]
            whole_N = self.whole_N[order_N]
            count += int((whole_N[count:] == whole_N[count - 1]).sum())
        if count >= num_validation:
            groups = "" if count == asked else " and the rest of their group"
            raise DataError(
                f"dataset.num_calibration: expected fewer than the {num_validation} validation "
                f"examples, got {asked}{groups}; lower it or raise dataset.num_validation"
            )
        indices = torch.from_numpy(order_N).tensor_split([count])
        own, rest = (self.validation.some(index_N.sort().values) for index_N in indices)
        return replace(self, calibration=own, validation=rest, whole_N=None)

    def without(self, names: Collection[str]) -> Parts:
        """All parts without some classes; their test examples are ``load_left_out``'s.

        DataError where there are no such classes, or fewer than two others.
        """
        if not names:
            return self
        known = self.class_names
        rest = [index for index, name in enumerate(known) if name not in names]
        is_known = self.task.has_classes and len(known) - len(rest) == len(set(names))
        if not is_known or len(rest) < 2:
            raise DataError(
                f"dataset.left_out: expected some of the classes "
                f"{', '.join(known[:20]) or 'of none'}, and two others at least, got "
                f"{', '.join(names)}"
            )
        place_C = torch.full((len(known),), -1)
        place_C[rest] = torch.arange(len(rest))
        load_test = self.load_test or partial(itself, self.validation)
        return replace(
            self,
            train=_of_classes(place_C, True, partial(itself, self.train)),
            validation=_of_classes(place_C, True, partial(itself, self.validation)),
            class_names=tuple(known[index] for index in rest),
            load_test=self.load_test and partial(_of_classes, place_C, True, load_test),
            load_left_out=partial(_of_classes, place_C, False, load_test),
            whole_N=self.whole_N
            if self.whole_N is None
            else self.whole_N[(place_C[self.validation.labels_N] >= 0).numpy()],
        )

    def __getstate__(self) -> dict[str, Any]:
        # Who is given a data set is not given its test part, whoever has looked at it before.
        return {name: value for name, value in vars(self).items() if name != "test"}


def itself(value: Any) -> Any:
    """What is given."""
    return value


def _of_classes(
    place_C: Tensor, shown: bool, load: Callable[[], Examples | Streamed]
) -> Examples | Streamed:
    """The examples of classes that have a place, or of those that have none, labelled -1."""
    part = load()
    return part.some(((place_C[part.labels_N] >= 0) == shown).nonzero().flatten(), place_C)


def _statistics(values: Tensor) -> Statistics:
    """Of the channels, dimension 1; None for whole numbers that are no pixels, such as tokens."""
    if values.dtype != torch.uint8 and not values.is_floating_point():
        return None
    by_channel = (values if values.ndim > 1 else values[:, None]).transpose(0, 1)
    mean_C, std_C = (_of_sums if values.is_floating_point() else _of_counts)(by_channel)
    trailing = (-1,) + (1,) * (values.ndim - 2) if values.ndim > 1 else ()
    return mean_C.float().reshape(trailing), std_C.float().reshape(trailing)


def _of_counts(by_channel: Tensor) -> tuple[Tensor, Tensor]:
    """From how often each of the 256 values occurs: floats would need four times the memory."""
    counts = [torch.bincount(own.flatten(), minlength=256) for own in by_channel]
    counts_CV = torch.stack(counts).double()
    values_V = torch.arange(256, dtype=torch.float64)
    total_C1 = counts_CV.sum(dim=1, keepdim=True)
    mean_C1 = (counts_CV * values_V).sum(dim=1, keepdim=True) / total_C1
    squares_C1 = (counts_CV * (values_V - mean_C1) ** 2).sum(dim=1, keepdim=True)
    std_C1 = (squares_C1 / (total_C1 - 1)).sqrt().clamp_min(MIN_STD)
    return mean_C1[:, 0], std_C1[:, 0]


def _of_sums(by_channel: Tensor) -> tuple[Tensor, Tensor]:
    """In float64; of what never varies the deviation is 1."""
    values_CN = by_channel.flatten(1).double()
    std_C, mean_C = torch.std_mean(values_CN, dim=1, correction=min(1, values_CN.shape[1] - 1))
    return mean_C, torch.where(std_C > MIN_STD, std_C, torch.ones_like(std_C))


def _normalised(values: Tensor, statistics: Statistics) -> Tensor:
    if statistics is None:
        return values.float() if values.dtype == torch.uint8 else values
    mean, std = (each.to(values.device) for each in statistics)
    return (values.float() - mean) / std
