"""A weight-space model's training step; what is kept is an average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from bend_ray.optim import Training


class AveragedSteps:
    """The trainable parameters of a module under a ``Training``.

    Args:
        module: whose parameters they are, where they shall stay.
        training: optimizer, schedule, clipping and decay of the average.

    Attributes:
        parameters: that are trained.
        average: their exponential moving average, in the same order.
        optimizer: that moves them.
    """

    def __init__(self, module: nn.Module, training: Training) -> None:
        self.training = training
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimizer = training.optimizer.build(self.parameters)

    def step(self, step: int) -> None:
        """Move along the gradients that a backward pass has left, as step ``step`` from 0."""
        training = self.training
        nn.utils.clip_grad_norm_(self.parameters, training.gradient_clip)
        self.optimizer.step(training.schedule.factor(step / training.steps))
        # Early averages would remember the random start for ever: they follow faster at first.
        decay = min(training.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def settle(self) -> None:
        """Put the average in the parameters' place."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data.copy_(average)
