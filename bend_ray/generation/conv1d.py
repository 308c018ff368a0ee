"""The papers' networks: 1-D convolutions over the flattened parameters and over the latent.

Source: Wang et al. 2024, "Neural Network Diffusion" (arXiv 2402.13144), appendix A; BEND
(arXiv 2403.15766) uses the same. Their memory grows with the number of parameters times the
channels: about 45 GB at 300 thousand parameters in the published form.

Shape letters: B batch, P parameters, Z latent, C channels, L length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bend_ray.generation.conditioning import ConditionedDenoiser, TimeEmbedding


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
