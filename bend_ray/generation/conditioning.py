"""What a denoiser is told beside the noisy latent, the diffusion time and the condition.

A user's own module is made such a denoiser.

Shape letters: B batch, Z latent.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from bend_ray.errors import ConfigError

ROWS = 2
"""Shown to a user's module before it is trained."""


class TimeEmbedding(nn.Module):
    """Sinusoids of the diffusion time, then a linear map (Vaswani et al. 2017, Ho et al. 2020)."""

    def __init__(self, size: int, frequencies: int = 32) -> None:
        super().__init__()
        # Periods from 1/1000 of the whole time up to all of it: neighbouring steps of a
        # 1,000-step chain are told apart.
        octaves = torch.linspace(0, math.log(1000), frequencies).exp()
        self.register_buffer("octaves", octaves, persistent=False)
        self.project = nn.Sequential(nn.Linear(2 * frequencies, size), nn.SiLU())

    def forward(self, t_B: Tensor) -> Tensor:
        """Times in [0, 1] to ``(B, size)``."""
        assert isinstance(self.octaves, Tensor)
        angles = 2 * math.pi * t_B[:, None] * self.octaves
        embedded: Tensor = self.project(torch.cat([angles.sin(), angles.cos()], dim=1))
        return embedded


class ConditionedDenoiser(nn.Module, ABC):
    """A denoiser in two parts: what it is told does not depend on the latent.

    A sampler knows all its times beforehand: what follows from them is computed once for many
    steps, half of a small network's work. One that ``learns_residual`` says by how much a
    prediction differs from that of a unit Gaussian, whose exact denoiser it is while it says zero.
    """

    learns_residual: ClassVar[bool] = False

    def forward(self, x_BZ: Tensor, t_B: Tensor, condition_B: Tensor) -> Tensor:
        """Noisy latents, times in [0, 1] and condition ids to predictions ``(B, Z)``."""
        return self.denoise(x_BZ, self.context(t_B, condition_B))

    @abstractmethod
    def context(self, t_B: Tensor, condition_B: Tensor) -> tuple[Tensor, ...]:
        """All that follows from time and condition, of every row: tensors ``(B, ...)``."""

    @abstractmethod
    def denoise(self, x_BZ: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Predictions ``(B, Z)`` of rows with this context."""


class PlainDenoiser(ConditionedDenoiser):
    """A module ``(x_BZ, t_B, condition_B) -> (B, Z)`` that is asked as a whole.

    Names of its tensors stay, below ``module``; ``name`` is how the user called it. ConfigError
    where it gives something else.
    """

    def __init__(self, module: nn.Module, latent_size: int, name: str) -> None:
        super().__init__()
        self.module = module
        x_BZ, t_B = torch.zeros(ROWS, latent_size), torch.zeros(ROWS)
        shown = (x_BZ, t_B, torch.zeros(ROWS, dtype=torch.int64))
        check_gives((ROWS, latent_size), lambda: module(*shown), f"{name}(x, t, condition)")

    def context(self, t_B: Tensor, condition_B: Tensor) -> tuple[Tensor, ...]:
        """Time and condition themselves."""
        return t_B, condition_B

    def denoise(self, x_BZ: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Predictions ``(B, Z)`` of rows with this context."""
        prediction_BZ: Tensor = self.module(x_BZ, *context)
        return prediction_BZ


def check_gives(shape: tuple[int, ...], ask: Callable[[], Tensor], what: str) -> None:
    """Ask for a tensor of a shape; ConfigError where another comes, or none."""
    try:
        with torch.no_grad():
            given = tuple(ask().shape)
    except Exception as error:  # a user's code may fail in any way
        raise ConfigError(
            f"{what}: expected a tensor of shape {shape}, got {type(error).__name__}: {error}"
        ) from error
    if given != shape:
        raise ConfigError(f"{what}: expected a tensor of shape {shape}, got {given}")
