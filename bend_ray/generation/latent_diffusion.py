"""Noise in, latents out: a trained denoiser with the standardisation of its latents.

Shape letters: N samples, Z latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bend_ray.generation.diffusion import Process
from bend_ray.generation.samplers import Sampler


@dataclass(frozen=True)
class LatentScale:
    """What maps latents to zero mean and unit variance, dimension by dimension."""

    mean_Z: Tensor
    std_Z: Tensor

    @classmethod
    def fit(cls, z_KZ: Tensor) -> LatentScale:
        """From the latents of the training models; constant dimensions keep their scale."""
        std_Z, mean_Z = torch.std_mean(z_KZ, dim=0, correction=0)
        return cls(mean_Z, torch.where(std_Z > 1e-6, std_Z, torch.ones_like(std_Z)))

    def apply(self, z_NZ: Tensor) -> Tensor:
        """Latents to unit latents."""
        return (z_NZ - self.mean_Z) / self.std_Z

    def invert(self, x_NZ: Tensor) -> Tensor:
        """Unit latents to latents."""
        return x_NZ * self.std_Z + self.mean_Z


@torch.no_grad()
def sample_latents(
    denoiser: nn.Module,
    process: Process,
    sampler: Sampler,
    scale: LatentScale,
    condition_N: Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Draw one latent a generator.

    Args:
        denoiser: trained with ``process``; put in evaluation mode here.
        process: how latents became noise.
        sampler: how to go back.
        scale: of the latents the denoiser was trained on.
        condition_N: condition id of each sample.
        generators: one a sample, so that a sample does not depend on its neighbours.

    Returns:
        Latents ``(N, Z)``.
    """
    denoiser.eval()

    def predict(x_NZ: Tensor, t_N: Tensor) -> Tensor:
        predicted_NZ: Tensor = denoiser(x_NZ, t_N, condition_N)
        return predicted_NZ

    def noise() -> Tensor:
        rows = [torch.randn(len(scale.mean_Z), generator=generator) for generator in generators]
        return torch.stack(rows).to(scale.mean_Z.device)

    # A sampler is paired with its process by the config's validation.
    return scale.invert(sampler.sample(predict, process, noise))  # type: ignore[arg-type]
