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
        rule: by which they are moved.
        parameters: that are moved.
        decayed: 1 where weights decay and 0 where they do not, to be broadcast; None: all do.
    """

    def __init__(
        self, rule: Rule, parameters: Iterable[torch.Tensor], decayed: torch.Tensor | None
    ) -> None:
        self.rule, self.parameters, self.decayed = rule, list(parameters), decayed
        self.kept = rule.start(self.parameters)

    def step(self, factor: float) -> None:
        """Move along the gradients at ``factor`` times the learning rate, then clear them."""
        gradients = []
        for parameter in self.parameters:
            assert parameter.grad is not None
            gradients.append(parameter.grad)
            parameter.grad = None
        with torch.no_grad():
            self.rule.move(self, factor, gradients)

    def state(self) -> dict[str, list[torch.Tensor]]:
        """What a resumed training needs; the tensors themselves, not copies."""
        return self.kept


class Rule(Spec):
    """How parameters are moved, and what is kept beside each."""

    def build(
        self, parameters: Iterable[torch.Tensor], decayed: torch.Tensor | None = None
    ) -> Steps:
        """The optimizer over ``parameters``; ``decayed`` as of ``Steps``."""
        return Steps(self, parameters, decayed)

    def start(self, parameters: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """What is kept, by name, before the first step."""
        raise NotImplementedError

    def move(self, steps: Steps, factor: float, gradients: list[torch.Tensor]) -> None:
        """Take a step."""
        raise NotImplementedError


class AdamW(Rule):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 3e-3
    """Step size at the top of the schedule."""
    weight_decay: NonNegativeFloat = 1e-3
    """Decay per step, times the learning rate."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay rates of the first and second moment."""

    def start(self, parameters: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """Means and squares of gradients, and how many there were."""
        counts = [torch.zeros((), device=p.device) for p in parameters]
        mean, square = ([*map(torch.zeros_like, parameters)] for _ in range(2))
        return {"mean": mean, "square": square, "count": counts}

    def move(self, steps: Steps, factor: float, gradients: list[torch.Tensor]) -> None:
        """Take a step."""
        from torch.optim.adamw import adamw

        weight_decay = self.weight_decay
        if steps.decayed is not None:
            left = 1.0 - factor * self.learning_rate * weight_decay * steps.decayed
            weight_decay = 0.0
            for parameter in steps.parameters:
                parameter.mul_(left)
        kept = steps.kept
        adamw(
            *(steps.parameters, gradients, kept["mean"], kept["square"], [], kept["count"]),
            foreach=False,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=factor * self.learning_rate,
            weight_decay=weight_decay,
            eps=1e-8,
            maximize=False,
        )


class Sgd(Rule):
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

    def start(self, parameters: list[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        """The last updates."""
        return {"momentum": [*map(torch.zeros_like, parameters)]}

    def move(self, steps: Steps, factor: float, gradients: list[torch.Tensor]) -> None:
        """Take a step."""
        from torch.optim.sgd import sgd

        weight_decay = self.weight_decay
        if steps.decayed is not None:
            pairs = zip(gradients, steps.parameters, strict=True)
            gradients = [g.add(p * steps.decayed, alpha=weight_decay) for g, p in pairs]
            weight_decay = 0.0
        sgd(
            steps.parameters,
            gradients,
            list(steps.kept["momentum"]),
            foreach=False,
            weight_decay=weight_decay,
            momentum=self.momentum,
            lr=factor * self.learning_rate,
            dampening=0.0,
            nesterov=self.nesterov and self.momentum > 0,
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
