"""How the weight-space models are trained: losses, steps, and which averaged weights are kept.

Objectives are modules whose forward is the loss; ``kept`` is the module whose weights are the
result. Randomness is drawn apart from the loss (``draw``), for the whole batch at once, so that a
training spread over several workers computes what one worker would. Shape letters: B batch, F
features, Z latent.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call

from bend_ray.generation.diffusion import Process, gaussian_prediction
from bend_ray.generation.networks import ConditionedDenoiser
from bend_ray.optim import Training

Batch = dict[str, Tensor]


class Reconstruction(nn.Module):
    """Mean squared error of a noisy round trip through a module with ``encode`` and ``decode``.

    Noise on the features has a standard deviation of ``input_noise``; that on the latents of
    ``latent_noise``, in their standard deviations over the batch.
    """

    def __init__(
        self, autoencoder: nn.Module, latent_size: int, input_noise: float, latent_noise: float
    ) -> None:
        super().__init__()
        self.kept = autoencoder
        self.latent_size = latent_size
        self.input_noise = input_noise
        self.latent_noise = latent_noise

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Batch:
        """Unit noise for the features, of ``shape`` ``(B, F)``, and the latents of one batch."""
        return {
            "input_noise": torch.randn(shape, generator=generator),
            "latent_noise": torch.randn(shape[0], self.latent_size, generator=generator),
        }

    def forward(self, batch: Batch) -> Tensor:
        """The loss of ``{"features", "input_noise", "latent_noise"}``."""
        coder: Any = self.kept
        x_BF = batch["features"]
        z_BZ = coder.encode(x_BF + self.input_noise * batch["input_noise"])
        std_Z = _std_over_workers(z_BZ.detach())
        decoded_BF = coder.decode(z_BZ + self.latent_noise * std_Z * batch["latent_noise"])
        return nn.functional.mse_loss(decoded_BF, x_BF)


def _std_over_workers(z_BZ: Tensor) -> Tensor:
    """Of the whole batch, of which each worker has a part, without correction: ``(Z,)``."""
    several = distributed.is_available() and distributed.is_initialized()
    if not several or distributed.get_world_size() == 1:
        return z_BZ.std(dim=0, correction=0)
    wide_BZ = z_BZ.double()
    count_1 = wide_BZ.new_tensor([len(wide_BZ)])
    sums = torch.cat([count_1, wide_BZ.sum(dim=0), wide_BZ.square().sum(dim=0)])
    distributed.all_reduce(sums)
    mean_Z, square_Z = (sums[1:] / sums[0]).chunk(2)
    return (square_Z - mean_Z.square()).clamp(min=0.0).sqrt().to(z_BZ.dtype)


class Denoising(nn.Module):
    """Mean squared error of a denoiser on noisy latents, made so by ``process``."""

    def __init__(self, denoiser: ConditionedDenoiser, process: Process) -> None:
        super().__init__()
        self.kept = denoiser
        self.process = process

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Batch:
        """Times and unit noise for one batch of ``shape`` ``(B, Z)``."""
        return {
            "t": self.process.draw_times(shape[0], generator),
            "eps": torch.randn(shape, generator=generator),
        }

    def forward(self, batch: Batch) -> Tensor:
        """The loss of ``{"features", "condition", "t", "eps"}``; features are unit latents."""
        x0_BZ, eps_BZ, t_B = batch["features"], batch["eps"], batch["t"]
        a_B1, b_B1 = self.process.coefficients(t_B)
        x_BZ = a_B1 * x0_BZ + b_B1 * eps_BZ
        predicted_BZ = self.kept(x_BZ, t_B, batch["condition"])
        if self.kept.learns_residual:
            predicted_BZ = predicted_BZ + gaussian_prediction(self.process, x_BZ, t_B)
        return nn.functional.mse_loss(predicted_BZ, self.process.target(x0_BZ, eps_BZ, t_B))


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
    averaged weights of the lowest loss, in the order of ``steps.average``. Without such members, or
    where the training has no patience, nothing is looked at.
    """

    def __init__(
        self,
        objective: nn.Module,
        steps: AveragedSteps,
        rows: dict[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        self._looks = bool(steps.training.patience and len(rows["features"]))
        repeats = -(-LOOKED_AT // max(1, len(rows["features"])))
        repeated = {
            name: column.repeat(repeats, *[1] * (column.ndim - 1)) for name, column in rows.items()
        }
        noise = objective.draw(repeated["features"].shape, generator)  # type: ignore[operator]
        device = repeated["features"].device
        self._batch = repeated | {name: drawn.to(device) for name, drawn in noise.items()}
        self._objective, self._steps = objective, steps
        self._names = [name for name, p in objective.named_parameters() if p.requires_grad]
        self.curve: list[tuple[int, float]] = []
        self.best = [average.clone() for average in steps.average if self._looks]

    def look(self, step: int) -> None:
        """Note the loss of the average as it is after ``step`` steps, once."""
        if not self._looks or (self.curve and self.curve[-1][0] >= step):
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
        if patience is None:
            return False
        last = losses[-patience - 1 :]
        return len(last) > patience and all(a < b for a, b in pairwise(last))

    def settle(self) -> None:
        """Put the best weights in the average's place, if there are any."""
        for average, best in zip(self._steps.average, self.best, strict=self._looks):
            average.copy_(best)
