"""The recipe: how one base classifier is ordinarily trained, and stretches of such a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from bend_ray.data.augmentation import Augmentation, RandomViews
from bend_ray.networks.variation import Variation
from bend_ray.optim import AdamW, Cosine, Momentum, Optimizer, Schedule
from bend_ray.spec import Spec

Precision = Literal["float32", "tf32", "bf16"]


class Recipe(Spec):
    """How one base classifier is ordinarily trained, from start to end."""

    epochs: PositiveFloat = 20
    """Passes over the training images; may be a fraction."""
    batch_size: PositiveInt = 50
    """Images a step."""
    optimizer: Optimizer = AdamW()
    """What turns gradients into steps."""
    schedule: Schedule = Cosine()
    """The learning rate over the training."""
    gradient_clip: PositiveFloat | None = None
    """Largest norm of a step's gradient, of each model by itself; null for any."""
    decay_norms_and_biases: bool = True
    """Weight decay of tensors of one dimension too; false spares them."""
    ema_decay: Momentum = 0.0
    """Decay of an exponential moving average of all of a model, which is then what is kept."""
    precision: Precision = "float32"
    """What products are computed in; parameters, averages and what is stored are float32.

    tf32 is for NVIDIA's cards since Ampere, and float32 elsewhere; bf16 is for processors with it.
    """
    augmentation: Augmentation = RandomViews()
    """How training images are varied; as they are by default."""
    mixup: NonNegativeFloat = 0.0
    """Blend examples in shares of Beta(mixup, mixup), and their losses likewise; 0 for not."""
    cutmix: NonNegativeFloat = 0.0
    """Lay windows of others on images, of areas of Beta(cutmix, cutmix); 0 for not.

    With both each batch has one of them, at even odds.
    """
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of every label that is spread over all classes (Szegedy et al., 2016)."""
    class_weights: (
        Literal["balanced"] | Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None
    ) = None
    """Multiply an example's loss, one number a class; balanced: by its rarity, 1 on average."""

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
    variation: Variation | None = None
    """How models differ by hyper-parameters; None: not."""
    early: int = 0
    """So many of the snapshots, the first, are no members: their mean alone is kept."""
