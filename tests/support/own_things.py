"""What a user might bring: one thing of his own for each axis that takes one.

The tests name them as he would: ``own_things:make_net``.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

NUM_FEATURES, NUM_CLASSES = 6, 3


def make_net(num_classes: int, width: int = 8) -> nn.Module:
    """A network for rows of six numbers."""
    return nn.Sequential(
        nn.Linear(NUM_FEATURES, width),
        nn.GELU(),
        nn.LayerNorm(width),
        nn.Linear(width, num_classes),
    )


def make_parts(count: int = 120, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Three blobs, as arrays, with a test part."""
    rng = np.random.default_rng(seed)
    labels_N = np.arange(count) % NUM_CLASSES
    inputs_NF = rng.normal(size=(count, NUM_FEATURES)) + 2 * np.eye(NUM_FEATURES)[labels_N]
    cut = count * 3 // 4
    inputs_NF = inputs_NF.astype(np.float32)
    return {"train": (inputs_NF[:cut], labels_N[:cut]), "test": (inputs_NF[cut:], labels_N[cut:])}


def jitter(batch: Tensor, generator: torch.Generator, size: float = 0.1) -> Tensor:
    """An augmentation."""
    return batch + size * torch.randn(batch.shape, generator=generator)


class Denoiser(nn.Module):
    """A denoiser of one layer, which is told the time."""

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(latent_size + 1, latent_size)

    def forward(self, x_BZ: Tensor, t_B: Tensor, condition_B: Tensor) -> Tensor:
        """Predictions ``(B, Z)``."""
        return self.layer(torch.cat([x_BZ, t_B[:, None]], dim=1))


class Autoencoder(nn.Module):
    """A linear autoencoder."""

    def __init__(self, num_features: int, latent_size: int) -> None:
        super().__init__()
        self.encode = nn.Linear(num_features, latent_size)
        self.decode = nn.Linear(latent_size, num_features)


def best_half(val_nll_E: Tensor) -> Tensor:
    """A vote: the better half of the members, alike."""
    return (val_nll_E <= val_nll_E.median()).double()


def pairs(
    theta_KP: Tensor, trunks_K: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A rival: halfway between two members."""
    chosen_2N = torch.randint(len(theta_KP), (2, count), generator=generator)
    return theta_KP[chosen_2N].mean(0), trunks_K[chosen_2N[0]]
