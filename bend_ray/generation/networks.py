"""Networks of the weight-space models: residual MLPs, the default, and the papers' convolutions.

What a denoiser is told, time and condition, is computed apart from the latent. A user's own module
is made such a denoiser.

Source of the convolutions: Wang et al. 2024, "Neural Network Diffusion" (arXiv 2402.13144),
appendix A; BEND (arXiv 2403.15766) uses the same. Their memory grows with the number of parameters
times the channels: about 45 GB at 300 thousand parameters in the published form.

Shape letters: B batch, F features, P parameters, Z latent, H hidden, C channels, L length.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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


class ResidualMlp(nn.Module):
    """A linear map plus an MLP with one hidden layer.

    It starts as the map that keeps the first numbers of a vector: between principal coefficients
    and as many latents it loses nothing, between fewer as little as a linear map can.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        last = nn.Linear(hidden, outputs, bias=False)
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), last)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs)`` to ``(B, outputs)``."""
        y: Tensor = self.linear(x) + self.mlp(x)
        return y


class MlpAutoencoder(nn.Module):
    """Features ``(B, F)`` to latents ``(B, Z)`` and back, one residual MLP each way."""

    def __init__(self, num_features: int, latent_size: int, hidden: int) -> None:
        super().__init__()
        self.encode = ResidualMlp(num_features, hidden, latent_size)
        self.decode = ResidualMlp(latent_size, hidden, num_features)


class ModulatedBlock(nn.Module):
    """Residual block whose normalised input is scaled and shifted by the time and condition."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulate = nn.Linear(hidden, 2 * hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden)
        )

    def modulation(self, embedded_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and shift ``(B, H)`` by the embedding."""
        scale_BH, shift_BH = self.modulate(embedded_BH).chunk(2, dim=1)
        return 1 + scale_BH, shift_BH

    def forward(self, h_BH: Tensor, factor_BH: Tensor, shift_BH: Tensor) -> Tensor:
        """Hidden state ``(B, H)`` to the next one."""
        y_BH: Tensor = h_BH + self.mlp(self.norm(h_BH) * factor_BH + shift_BH)
        return y_BH


class ModulatedMlp(ConditionedDenoiser):
    """What the process predicts, from a noisy latent, its time and its condition.

    Starts as the exact denoiser of unit Gaussian latents.
    """

    learns_residual: ClassVar[bool] = True

    def __init__(self, latent_size: int, num_conditions: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.time = TimeEmbedding(hidden)
        self.condition = nn.Embedding(num_conditions, hidden)
        self.project_in = nn.Linear(latent_size, hidden)
        self.blocks = nn.ModuleList(ModulatedBlock(hidden) for _ in range(blocks))
        self.project_out = nn.Linear(hidden, latent_size)
        nn.init.zeros_(self.project_out.weight)
        nn.init.zeros_(self.project_out.bias)

    def context(self, t_B: Tensor, condition_B: Tensor) -> tuple[Tensor, ...]:
        """Embedding, then each block's factor and shift."""
        embedded_BH = self.time(t_B) + self.condition(condition_B)
        modulations: list[Tensor] = []
        for block in self.blocks:
            assert isinstance(block, ModulatedBlock)
            modulations += block.modulation(embedded_BH)
        return embedded_BH, *modulations

    def denoise(self, x_BZ: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Predictions ``(B, Z)`` of rows with this context."""
        embedded_BH, *modulations = context
        h_BH = self.project_in(x_BZ) + embedded_BH
        for block, factor_BH, shift_BH in zip(
            self.blocks, modulations[::2], modulations[1::2], strict=True
        ):
            h_BH = block(h_BH, factor_BH, shift_BH)
        y_BZ: Tensor = self.project_out(nn.functional.silu(h_BH))
        return y_BZ


def _halving(inputs: int, outputs: int, kernel: int) -> nn.Module:
    halved = nn.Conv1d(inputs, outputs, kernel, stride=2, padding=kernel // 2)
    return nn.Sequential(halved, nn.GroupNorm(1, outputs), nn.LeakyReLU(0.2))


def _upward(inputs: int, outputs: int, kernel: int) -> nn.Module:
    return nn.ConvTranspose1d(inputs, outputs, kernel, 2, kernel // 2, output_padding=1)


def _doubling(inputs: int, outputs: int, kernel: int) -> nn.Module:
    doubled = _upward(inputs, outputs, kernel)
    return nn.Sequential(doubled, nn.GroupNorm(1, outputs), nn.LeakyReLU(0.2))


class Conv1dAutoencoder(nn.Module):
    """Strided convolutions down to a short signal, a linear map to the latent, and back."""

    def __init__(
        self, num_features: int, latent_size: int, channels: Sequence[int], kernel: int
    ) -> None:
        super().__init__()
        stride = 2 ** len(channels)
        self.num_features = num_features
        self.padded = -(-num_features // stride) * stride
        self.short = (channels[-1], self.padded // stride)
        pairs = list(zip((1, *channels), channels, strict=False))
        flat = self.short[0] * self.short[1]
        self.down = nn.Sequential(*(_halving(a, b, kernel) for a, b in pairs))
        self.to_latent = nn.Linear(flat, latent_size)
        self.from_latent = nn.Linear(latent_size, flat)
        self.up = nn.Sequential(*(_doubling(b, a, kernel) for a, b in reversed(pairs[1:])))
        self.last = _upward(channels[0], 1, kernel)

    def encode(self, x_BP: Tensor) -> Tensor:
        """Latents ``(B, Z)``."""
        padded = nn.functional.pad(x_BP, (0, self.padded - self.num_features))
        z_BZ: Tensor = self.to_latent(self.down(padded[:, None]).flatten(1))
        return z_BZ

    def decode(self, z_BZ: Tensor) -> Tensor:
        """Features ``(B, P)``."""
        short = self.from_latent(z_BZ).view(-1, *self.short)
        x_BP: Tensor = self.last(self.up(short))[:, 0, : self.num_features]
        return x_BP


class UNet1d(ConditionedDenoiser):
    """Convolutional U over the latent as a signal of one channel, with time and condition."""

    def __init__(
        self, latent_size: int, num_conditions: int, channels: Sequence[int], kernel: int
    ) -> None:
        super().__init__()
        stride = 2 ** len(channels)
        self.latent_size = latent_size
        self.padded = -(-latent_size // stride) * stride
        levels = list(zip((1, *channels), channels, strict=False))
        self.time = TimeEmbedding(channels[-1])
        self.condition = nn.Embedding(num_conditions, channels[-1])
        self.down = nn.ModuleList(_halving(a, b, kernel) for a, b in levels)
        self.embed = nn.ModuleList(nn.Linear(channels[-1], b) for _, b in levels)
        # Every level on the way up sees the signal of its own length on the way down: the input
        # of a level is what the level below gave, joined by that signal.
        widths = (channels[0], *channels)
        self.up = nn.ModuleList(
            _doubling(width if level == len(channels) else 2 * width, widths[level - 1], kernel)
            for level, width in reversed(list(enumerate(channels, start=1)))
        )
        self.out = nn.Conv1d(channels[0] + 1, 1, kernel, padding=kernel // 2)

    def context(self, t_B: Tensor, condition_B: Tensor) -> tuple[Tensor, ...]:
        """What is added to the channels of every level on the way down, ``(B, C, 1)`` each."""
        embedded = self.time(t_B) + self.condition(condition_B)
        return tuple(embed(embedded)[:, :, None] for embed in self.embed)

    def denoise(self, x_BZ: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Predictions ``(B, Z)`` of rows with this context."""
        signal = nn.functional.pad(x_BZ, (0, self.padded - self.latent_size))[:, None]
        skips = [signal]
        for down, level in zip(self.down, context, strict=True):
            signal = down(signal) + level
            skips.append(signal)
        skips.pop()
        for up in self.up:
            signal = torch.cat([up(signal), skips.pop()], dim=1)
        y_BZ: Tensor = self.out(signal)[:, 0, : self.latent_size]
        return y_BZ
