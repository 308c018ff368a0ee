"""Optimizers and learning-rate schedules: each builds what it describes.

To add one: a class with ``build`` or ``factor``, and its name in the union at the bottom.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from bend_ray.process.lazy import torch
from bend_ray.spec import Spec

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]


class Steps:
    """An optimizer bound to its parameters: torch's update rules without torch's classes.

    ``torch.optim.Optimizer`` imports torch's compiler on its first use, 4 s in every process
    that trains (measured, torch 2.15), more than a whole digits population takes to train. The
    functional forms are the same kernels without it.

    Args:
        parameters: that are moved.
        decayed: 1 where weights decay and 0 where they do not, to be broadcast; None: all do.
        names: of the tensors that the update rule keeps beside each.
    """

    def __init__(
        self, parameters: Iterable[torch.Tensor], decayed: torch.Tensor | None, *names: str
    ) -> None:
        self.parameters = list(parameters)
        self.decayed = decayed
        self.kept = {name: [torch.zeros_like(p) for p in self.parameters] for name in names}

    def step(self, factor: float) -> None:
        """Move along the gradients at ``factor`` times the learning rate, then clear them."""
        with torch.no_grad():
            self.move(factor, [_gradient_of(parameter) for parameter in self.parameters])

    def move(self, factor: float, gradients: list[torch.Tensor]) -> None:
        """Apply the update rule."""
        raise NotImplementedError

    def state(self) -> dict[str, list[torch.Tensor]]:
        """What a resumed training needs; the tensors themselves, not copies."""
        return self.kept

    def load(self, state: dict[str, list[torch.Tensor]]) -> None:
        """Continue from a ``state()``."""
        for name, tensors in self.kept.items():
            for mine, loaded in zip(tensors, state[name], strict=True):
                mine.copy_(loaded)


def _gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    gradient, parameter.grad = parameter.grad, None
    assert gradient is not None
    return gradient


class AdamW(Spec):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 3e-3
    """Step size at the top of the schedule."""
    weight_decay: NonNegativeFloat = 1e-3
    """Decay per step, times the learning rate."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay rates of the first and second moment."""

    def build(
        self, parameters: Iterable[torch.Tensor], decayed: torch.Tensor | None = None
    ) -> Steps:
        """The optimizer over ``parameters``; ``decayed`` as of ``Steps``."""
        return _AdamWSteps(self, parameters, decayed)


class Sgd(Spec):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: PositiveFloat = 0.05
    """Step size at the top of the schedule."""
    momentum: Momentum = 0.9
    """Share of the last update that is kept."""
    nesterov: bool = True
    """Look ahead along the momentum (only with momentum above zero)."""
    weight_decay: NonNegativeFloat = 5e-4
    """L2 penalty."""

    def build(
        self, parameters: Iterable[torch.Tensor], decayed: torch.Tensor | None = None
    ) -> Steps:
        """The optimizer over ``parameters``; ``decayed`` as of ``Steps``."""
        return _SgdSteps(self, parameters, decayed)


class _AdamWSteps(Steps):
    def __init__(
        self, spec: AdamW, parameters: Iterable[torch.Tensor], decayed: torch.Tensor | None
    ) -> None:
        super().__init__(parameters, decayed, "mean", "square")
        self.spec = spec
        self.kept["count"] = [torch.zeros((), device=p.device) for p in self.parameters]

    def move(self, factor: float, gradients: list[torch.Tensor]) -> None:
        from torch.optim.adamw import adamw

        weight_decay = self.spec.weight_decay
        if self.decayed is not None:
            left = 1.0 - factor * self.spec.learning_rate * weight_decay * self.decayed
            weight_decay = 0.0
            for parameter in self.parameters:
                parameter.mul_(left)
        adamw(
            self.parameters,
            gradients,
            self.kept["mean"],
            self.kept["square"],
            [],
            self.kept["count"],
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=self.spec.betas[0],
            beta2=self.spec.betas[1],
            lr=factor * self.spec.learning_rate,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )


class _SgdSteps(Steps):
    def __init__(
        self, spec: Sgd, parameters: Iterable[torch.Tensor], decayed: torch.Tensor | None
    ) -> None:
        super().__init__(parameters, decayed, "momentum")
        self.spec = spec

    def move(self, factor: float, gradients: list[torch.Tensor]) -> None:
        from torch.optim.sgd import sgd

        weight_decay = self.spec.weight_decay
        if self.decayed is not None:
            pairs = zip(gradients, self.parameters, strict=True)
            gradients = [g.add(p * self.decayed, alpha=weight_decay) for g, p in pairs]
            weight_decay = 0.0
        sgd(
            self.parameters,
            gradients,
            list(self.kept["momentum"]),
            foreach=False,
            weight_decay=weight_decay,
            momentum=self.spec.momentum,
            lr=factor * self.spec.learning_rate,
            dampening=0.0,
            nesterov=self.spec.nesterov and self.spec.momentum > 0,
            maximize=False,
        )


class Cosine(Spec):
    """Half a cosine from the full learning rate down, after an optional linear warm-up."""

    kind: Literal["cosine"] = "cosine"
    warmup: Fraction = 0.0
    """Share of the training in which the rate rises linearly from zero."""
    final: Fraction = 0.0
    """Share of the learning rate that is left at the end."""

    def factor(self, progress: float) -> float:
        """Multiplier of the learning rate after a share ``progress`` in [0, 1] of the training.

        >>> [round(Cosine().factor(p), 3) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
        """
        if progress < self.warmup:
            return progress / self.warmup
        descent = (progress - self.warmup) / max(1.0 - self.warmup, 1e-12)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * descent))


class Constant(Spec):
    """The full learning rate throughout."""

    kind: Literal["constant"] = "constant"

    def factor(self, progress: float) -> float:
        """Multiplier of the learning rate: always one."""
        return 1.0


Optimizer = Annotated[AdamW | Sgd, Field(discriminator="kind")]
Schedule = Annotated[Cosine | Constant, Field(discriminator="kind")]


class Training(Spec):
    """How one of the weight-space models (autoencoder, denoiser) is trained."""

    steps: NonNegativeInt = 1500
    """Optimizer steps, at most; 0 keeps what it starts as."""
    batch_size: PositiveInt = 128
    """Population members a step, over all workers together."""
    optimizer: Optimizer = AdamW(learning_rate=1e-3, weight_decay=0.0)
    """What turns gradients into steps."""
    schedule: Schedule = Cosine(warmup=0.05)
    """The learning rate over the training."""
    ema_decay: Momentum = 0.995
    """Decay of the exponential moving average of the weights, which is what is kept."""
    gradient_clip: PositiveFloat = 1.0
    """Largest norm of a step's gradient."""
    patience: PositiveInt | None = None
    """Looks in a row at which held-out members' loss may rise before the training stops.

    What is kept is where it was lowest, the start included. Null trains to the end.
    """
    look_every: PositiveInt = 10
    """Steps between looks."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints, from which a killed training resumes."""
    seed: NonNegativeInt = 0
    """Seed of initial weights, batches and noise, under the run's own seed."""
