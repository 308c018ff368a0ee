"""Inputs that models are asked about, by name: an axis, of which the parts of a data set are one.

To add a set: one class with a ``kind`` of its own, ``name`` and ``of``, and its name in the union.
"""

from __future__ import annotations

from typing import Literal

from bend_ray.data.examples import Examples, Parts
from bend_ray.data.streaming import Streamed
from bend_ray.spec import Spec


class Part(Spec):
    """A part of the data set that no model learns from."""

    kind: Literal["part"] = "part"
    name: Literal["validation", "test"]

    def of(self, parts: Parts) -> Examples | Streamed:
        """The examples."""
        return parts.test if self.name == "test" else parts.validation

    def named(self, parts: Parts) -> str:
        """Which part it is: where there is no test part, validation stands in for it."""
        return "validation" if self.name == "test" and not parts.has_test else self.name


VALIDATION, TEST = Part(name="validation"), Part(name="test")

Inputs = Part
