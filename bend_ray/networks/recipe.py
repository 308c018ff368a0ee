"""The recipe: how a base classifier is ordinarily trained, and stretches of such a training.

Models that take every step together may differ by hyper-parameters, see ``Variation``.

Shape letters: K models, B examples, H units.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from bend_ray.data.augmentation import Augmentation, RandomViews
from bend_ray.errors import ClusterError
from bend_ray.optim import AdamW, Cosine, Momentum, Optimizer, Schedule
from bend_ray.process.lazy import torch
from bend_ray.randomness import seed_for
from bend_ray.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor

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
    """Share of every label that is spread over all classes (Szegedy et al., 2016), where there are
    some."""
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


class Variation(Spec):
    """Between what bounds hyper-parameters are drawn.

    A model draws its own from the seed of its generator, whoever is in its cohort.
    """

    rate: Annotated[float, Field(ge=1.0)] = 10.0
    """Learning rates are the recipe's, times or divided by up to this, evenly in the logarithm."""
    decay: Annotated[float, Field(ge=1.0)] = 30.0
    """Likewise weight decay, of which what differs from the recipe's is decoupled."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """At most; where classes are learnt."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Share of hidden units that are left out, at most; of chains of dense layers."""

    def drawn(self, seeds_K: Sequence[int]) -> Drawn:
        """Those of models, by the seeds of their generators."""
        shares = []
        for seed in seeds_K:
            generator = torch.Generator().manual_seed(seed_for(seed, "variation"))
            shares.append(torch.rand(4, generator=generator))
        rate_K, decay_K, smoothing_K, dropout_K = torch.stack(shares, dim=1)
        return Drawn(
            torch.exp(math.log(self.rate) * (2 * rate_K - 1))[:, None],
            torch.exp(math.log(self.decay) * (2 * decay_K - 1))[:, None],
            (self.label_smoothing * smoothing_K)[:, None],
            self.dropout * dropout_K,
        )


@dataclass(frozen=True)
class Drawn:
    """Of each model: multipliers of rate and decay ``(K, 1)``, smoothing, and share left out."""

    rate_K1: Tensor
    decay_K1: Tensor
    smoothing_K1: Tensor
    dropout_K: Tensor

    def moved(self, before_KT: Tensor, after_KT: Tensor, decay: float) -> Tensor:
        """Where a step leads at each model's own rate and decay.

        ``decay`` is the recipe's share of the weights that a step takes away.
        """
        rate_K1, decay_K1 = (each.to(before_KT) for each in (self.rate_K1, self.decay_K1))
        own_KT = before_KT + rate_K1 * (after_KT - before_KT)
        return own_KT - rate_K1 * (decay_K1 - 1) * decay * before_KT

    def dropped(self, units_KBH: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Hidden units, some of each model's left out, the others larger in turn.

        A byte is drawn a unit, so shares are of 256ths: a fifth of the time that floats take.
        """
        limit_K1 = (256 * self.dropout_K[:, None]).round().clamp(max=255)
        size = units_KBH[0].numel()
        drawn = torch.empty(len(units_KBH), -(-size // 8), dtype=torch.int64)
        for row, generator in zip(drawn, generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        kept_KU = drawn.view(torch.uint8)[:, :size] >= limit_K1.byte()
        scale_K1 = (256 / (256 - limit_K1)).to(units_KBH)
        return units_KBH * (kept_KU.to(units_KBH.device) * scale_K1).view_as(units_KBH)


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


@contextmanager
def float32_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Around a step: whether a card may round what it multiplies to TF32.

    Convolutions it would without being asked. torch's own settings are put back.
    """
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def check_precision(precision: Precision, device: torch.device) -> None:
    """ClusterError where a device has no bf16 and is asked for it.

    A CPU without it emulates it: measured, a step of a small CNN takes nine times as long.
    """
    if precision != "bf16":
        return
    if device.type == "cuda":
        has_it, name = torch.cuda.is_bf16_supported(False), torch.cuda.get_device_name()
    else:
        has_it, name = torch.ops.mkldnn._is_mkldnn_bf16_supported(), "a CPU without AVX-512"
    if not has_it:
        raise ClusterError(
            f"node {socket.gethostname()}: expected a processor that computes in bf16, as "
            f"seeds.recipe.precision asks, got {name}; set it to tf32 or float32"
        )
