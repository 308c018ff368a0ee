"""The recipe: how one base classifier is ordinarily trained, and stretches of such a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveInt

from bend_ray.data.augmentation import Augmentation, FlipAndCrop
from bend_ray.optim import AdamW, Cosine, Optimizer, Schedule
from bend_ray.spec import Spec


class Recipe(Spec):
    """How one base classifier is ordinarily trained, from start to end."""

    epochs: PositiveInt = 20
    """Passes over the training images."""
    batch_size: PositiveInt = 50
    """Images a step."""
    optimizer: Optimizer = AdamW()
    """What turns gradients into steps."""
    schedule: Schedule = Cosine()
    """The learning rate over the training."""
    augmentation: Augmentation = FlipAndCrop()
    """How training images are varied; as they are by default."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of every label that is spread over all classes (Szegedy et al., 2016)."""

    def batch_sizes(self, num_images: int) -> list[int]:
        """Images of each step of a pass; the last batch is what is left.

        One image that is left alone joins the batch before: BatchNorm cannot normalise it.

        >>> [Recipe(batch_size=4).batch_sizes(count) for count in (8, 9, 10)]
        [[4, 4], [4, 5], [4, 4, 2]]
        """
        sizes = [self.batch_size] * (num_images // self.batch_size)
        left = num_images % self.batch_size
        if left == 1 and sizes:
            sizes[-1] += left
        elif left:
            sizes.append(left)
        return sizes

    def num_steps(self, epochs: float, num_images: int) -> int:
        """Optimizer steps of ``epochs`` passes."""
        return round(epochs * len(self.batch_sizes(num_images)))


@dataclass(frozen=True)
class Stretch:
    """A part of a training, in epochs of its recipe."""

    start: float
    """Epochs already done when it begins."""
    epochs: float
    """Epochs it takes."""
    constant_rate: float | None = None
    """A learning rate that replaces the recipe's schedule."""
    cyclic_rate: float | None = None
    """Likewise, one from which half a cosine falls to zero at every snapshot, to begin again.

    A burn-in is part of the first of these cycles.
    """
    bootstrap: bool = False
    """Train on as many images drawn with replacement, once for each run."""
    snapshots: int = 1
    """Checkpoints it leaves, equally spaced; the last is its end."""
    burn_in: float = 0.0
    """Epochs before the first snapshot's part begins."""
    early: int = 0
    """So many of the snapshots, the first, are no members: their mean alone is kept."""
