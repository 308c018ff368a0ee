"""A user's own modules of weight space, in the forms that ours have.

Shape letters: B batch, F features, Z latent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bend_ray.errors import ConfigError
from bend_ray.generation.conditioning import ConditionedDenoiser

ROWS = 2
"""Shown to a module before it is trained."""


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


def check_autoencoder(module: nn.Module, num_features: int, latent_size: int, name: str) -> None:
    """Show a module two rows; ConfigError where its ``encode`` and ``decode`` do not fit."""
    x_BF, z_BZ = torch.zeros(ROWS, num_features), torch.zeros(ROWS, latent_size)
    check_gives((ROWS, latent_size), lambda: module.encode(x_BF), f"{name}.encode(x)")  # type: ignore[operator]
    check_gives((ROWS, num_features), lambda: module.decode(z_BZ), f"{name}.decode(z)")  # type: ignore[operator]


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
