"""Base classifiers: ``architecture.build(image_shape, num_classes) -> nn.Module``.

A module maps images ``(B, C, H, W)`` to logits ``(B, num_classes)`` and is deterministic in its
parameters and buffers. To add an architecture: one class, and its name in the union below.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from pydantic import PositiveInt

from bend_ray.lazy import torch
from bend_ray.spec import Spec

ImageShape = tuple[int, int, int]
PermutationGroup = tuple[tuple[str, int], ...]
"""(parameter name, axis) pairs on which one permutation of hidden units acts."""


class Mlp(Spec):
    """Fully connected network with ReLU between its layers."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (32, 32)
    """Units of each hidden layer."""

    def build(self, image_shape: ImageShape, num_classes: int) -> torch.nn.Module:
        """The network for images of ``image_shape`` (channels, height, width)."""
        widths = (math.prod(image_shape), *self.hidden, num_classes)
        layers: list[torch.nn.Module] = [torch.nn.Flatten()]
        for index, (width, next_width) in enumerate(pairwise(widths)):
            if index:
                layers.append(torch.nn.ReLU())
            layers.append(torch.nn.Linear(width, next_width))
        return torch.nn.Sequential(*layers)

    def permutation_groups(self) -> tuple[PermutationGroup, ...]:
        """The hidden units of each layer can be reordered without changing the function."""
        # Layers of the Sequential: 0 flatten, then linear at 1, 3, 5, ...
        return tuple(
            (
                (f"{1 + 2 * layer}.weight", 0),
                (f"{1 + 2 * layer}.bias", 0),
                (f"{3 + 2 * layer}.weight", 1),
            )
            for layer in range(len(self.hidden))
        )


# The union of one: `Annotated[Mlp | ..., Field(discriminator="kind")]` from the second on.
Architecture = Mlp
