"""Inputs that models are asked about, by name: an axis, of which the parts of a data set are one.

To add a set: one class with a ``kind`` of its own, ``name`` and ``of``, and its name in the union.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from bend_ray.data.corruptions import Corruption, corrupted
from bend_ray.data.datasets import Dataset
from bend_ray.data.examples import Examples, Parts, each, first
from bend_ray.data.streaming import Streamed
from bend_ray.errors import DataError
from bend_ray.process.lazy import torch, v2
from bend_ray.randomness import generator_for
from bend_ray.spec import Spec


class _Named(Spec):
    """What asked inputs have: a name of their own among all of an evaluation."""

    kind: str
    _called: ClassVar[str] = "kind"
    """The field that has it."""

    @property
    def name(self) -> str:
        """By which they are told from others."""
        return str(getattr(self, self._called))

    def of(self, parts: Parts) -> Examples | Streamed:
        """The examples; DataError where a data set has none."""
        raise NotImplementedError

    def named(self, parts: Parts) -> str:
        """Of which part they are, as results say it."""
        return self.name


class Part(_Named):
    """A part of the data set that no model learns from."""

    kind: Literal["part"] = "part"
    part: Literal["validation", "test", "calibration"]
    _called = "part"

    def of(self, parts: Parts) -> Examples | Streamed:
        """The examples."""
        found: Examples | Streamed = getattr(parts, self.part)
        return found

    def named(self, parts: Parts) -> str:
        """Which part it is: where there is no test part, validation stands in for it."""
        return "validation" if self.part == "test" and not parts.has_test else self.part


class LeftOut(_Named):
    """Test examples of the classes that dataset.left_out keeps from all models: near."""

    kind: Literal["left_out"] = "left_out"

    def of(self, parts: Parts) -> Examples | Streamed:
        """The examples."""
        if parts.load_left_out is None:
            raise DataError("evaluation.ood: left_out needs classes in dataset.left_out, got none")
        return parts.load_left_out()


class Noise(_Named):
    """As many examples as the test part has, of numbers drawn in the range of its own: far."""

    kind: Literal["noise"] = "noise"

    def of(self, parts: Parts) -> Examples:
        """The examples."""
        test = parts.test
        generator = generator_for(0, "noise")

        def drawn(values: Any) -> Any:
            low, high = values.aminmax()
            share = torch.rand(len(test), *values.shape[1:], generator=generator)
            span = (high.double() - low + (not values.is_floating_point())) * share + low
            return span.to(values.dtype)

        return Examples(each(drawn, test.take(slice(1000))), test.labels_N)


class Others(_Named):
    """The test part of another data set of images, brought to the size and channels of this one."""

    kind: Literal["dataset"] = "dataset"
    dataset: Dataset
    """Which one; its knobs are those of ``dataset``."""

    @property
    def name(self) -> str:
        """The data set's."""
        return getattr(self.dataset, "name", None) or self.dataset.kind

    def of(self, parts: Parts) -> Examples:
        """The examples, at most as many as the test part has."""
        theirs, ours = self.dataset.load(), parts.decoding
        if ours is None or theirs.decoding is None:
            raise DataError("evaluation.ood: expected data sets of images, as other inputs differ")
        given, shape = first(theirs.test.take(slice(len(parts.test)))), parts.input_shape
        assert isinstance(shape, tuple)
        channels, *size = shape
        scaled = given.float() * (ours.pixel_max / theirs.decoding.pixel_max)
        pixels = v2.functional.resize(scaled, size, antialias=True)
        pixels = pixels.mean(dim=1, keepdim=True) if channels == 1 else pixels
        pixels = pixels.expand(-1, channels, -1, -1).round().clamp(0, ours.pixel_max)
        return Examples(pixels.to(torch.uint8), theirs.test.labels_N[: len(pixels)])


class Corrupted(_Named):
    """The test part at every severity of a corruption, one after another."""

    kind: Literal["corrupted"] = "corrupted"
    corruption: Corruption
    _called = "corruption"

    def of(self, parts: Parts) -> Examples | Streamed:
        """The examples, ``SEVERITIES`` times as many as the test part has."""
        return corrupted(parts, self.corruption)


VALIDATION, TEST = Part(part="validation"), Part(part="test")
CALIBRATION = Part(part="calibration")

Outside = Annotated[LeftOut | Noise | Others, Field(discriminator="kind")]
Inputs = Part | LeftOut | Noise | Others | Corrupted
