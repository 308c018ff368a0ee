"""What the weight-space models are trained on: modules whose forward is the loss.

Randomness is drawn apart from the loss (``draw``), for the whole batch at once, so that a training
spread over several workers computes what one worker would. Shape letters: B batch, F features,
Z latent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from bend_ray.generation.conditioning import ConditionedDenoiser
from bend_ray.generation.diffusion import Process, gaussian_prediction

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
        self.autoencoder = autoencoder
        self.latent_size = latent_size
        self.input_noise = input_noise
        self.latent_noise = latent_noise

    @property
    def kept(self) -> nn.Module:
        """The module whose weights are the result."""
        return self.autoencoder

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Batch:
        """Unit noise for the features, of ``shape`` ``(B, F)``, and the latents of one batch."""
        return {
            "input_noise": torch.randn(shape, generator=generator),
            "latent_noise": torch.randn(shape[0], self.latent_size, generator=generator),
        }

    def forward(self, batch: Batch) -> Tensor:
        """The loss of ``{"features", "input_noise", "latent_noise"}``."""
        coder: Any = self.autoencoder
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
        self.denoiser = denoiser
        self.process = process

    @property
    def kept(self) -> nn.Module:
        """The module whose weights are the result."""
        return self.denoiser

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
        predicted_BZ = self.denoiser(x_BZ, t_B, batch["condition"])
        if self.denoiser.learns_residual:
            predicted_BZ = predicted_BZ + gaussian_prediction(self.process, x_BZ, t_B)
        return nn.functional.mse_loss(predicted_BZ, self.process.target(x0_BZ, eps_BZ, t_B))
