"""A weight-space model's training step, and which of its averaged weights are kept."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call

from bend_ray.optim import Training

LOOKED_AT = 256
"""Rows of held-out members with noise of their own: each member so often that there are as many."""


class AveragedSteps:
    """The trainable parameters of a module, where they stay, as a ``Training`` moves them.

    ``average`` is their exponential moving average, in the same order.
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


class HeldOut:
    """The loss of members that a model does not learn from, along its training.

    The noise is the same at every look. ``curve`` has the step and loss of each, ``best`` the
    averaged weights of the lowest loss, in the order of ``steps.average``.
    """

    def __init__(
        self,
        objective: nn.Module,
        steps: AveragedSteps,
        rows: dict[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        repeats = -(-LOOKED_AT // len(rows["features"]))
        repeated = {
            name: column.repeat(repeats, *[1] * (column.ndim - 1)) for name, column in rows.items()
        }
        noise = objective.draw(repeated["features"].shape, generator)  # type: ignore[operator]
        device = repeated["features"].device
        self._batch = repeated | {name: drawn.to(device) for name, drawn in noise.items()}
        self._objective, self._steps = objective, steps
        self._names = [name for name, p in objective.named_parameters() if p.requires_grad]
        self.curve: list[tuple[int, float]] = []
        self.best = [average.clone() for average in steps.average]

    def look(self, step: int) -> None:
        """Note the loss of the average as it is after ``step`` steps, once."""
        if self.curve and self.curve[-1][0] >= step:
            return
        weights = dict(zip(self._names, self._steps.average, strict=True))
        with torch.no_grad():
            loss: Tensor = functional_call(self._objective, weights, (self._batch,))
        if distributed.is_available() and distributed.is_initialized():
            # All must stop at the same step, whatever their processors round.
            distributed.broadcast(loss, 0)
        if not self.curve or loss < min(lost for _, lost in self.curve):
            self.best = [average.clone() for average in self._steps.average]
        self.curve.append((step, loss.item()))

    @property
    def is_over(self) -> bool:
        """Whether the loss rose at the last looks, as many as ``patience`` (UP, Prechelt 1998).

        Not whether it is above the start: first steps of Adam lose what the next may win back.
        """
        losses, patience = [lost for _, lost in self.curve], self._steps.training.patience
        assert patience is not None
        last = losses[-patience - 1 :]
        return len(last) > patience and all(a < b for a, b in pairwise(last))

    def settle(self) -> None:
        """Put the best weights in the average's place."""
        for average, best in zip(self._steps.average, self.best, strict=True):
            average.copy_(best)
