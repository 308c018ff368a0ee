"""Mixup and cutmix: examples blended with others of their batch, and losses in the same share.

Source: Zhang et al. 2018 (arXiv 1710.09412); Yun et al. 2019 (arXiv 1905.04899). Where both are
asked for a batch has one of them, at even odds, as in torchvision's reference training.

Shape letters: K models, B examples a batch, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bend_ray.data.examples import Inputs, each, first
from bend_ray.errors import DataError
from bend_ray.networks.recipe import Recipe


def mixed(inputs: Inputs, recipe: Recipe, seeds_K: Sequence[int]) -> tuple[Inputs, Tensor | None]:
    """Batches ``(K, B, ...)`` of which each example is blended with the one before it.

    Each model draws by a seed of its own. Also gives the share ``(K,)`` of an example that is its
    own, None where nothing is mixed. DataError where inputs are none that can be.
    """
    if not (recipe.mixup or recipe.cutmix):
        return inputs, None
    height, width = first(inputs).shape[-2:]
    blended_K = torch.ones(len(seeds_K))
    inside_KHW = torch.zeros(len(seeds_K), height, width, dtype=torch.bool)
    for k, seed in enumerate(seeds_K):
        generator = np.random.default_rng(seed)
        cuts = recipe.cutmix > 0 and generator.random() < (0.5 if recipe.mixup else 1.0)
        alpha = recipe.cutmix if cuts else recipe.mixup
        share = float(generator.beta(alpha, alpha))
        if cuts:
            inside_KHW[k][_window(share, height, width, generator)] = True
        else:
            blended_K[k] = share
    share_K = blended_K * (1.0 - inside_KHW.float().mean(dim=(1, 2)))
    there = first(inputs).device
    windows = inside_KHW.to(there) if recipe.cutmix else None
    blended = each(partial(_mixed, share_K=blended_K.to(there), inside_KHW=windows), inputs)
    return blended, share_K.to(there)


def _mixed(values: Tensor, share_K: Tensor, inside_KHW: Tensor | None) -> Tensor:
    if not values.is_floating_point() or (inside_KHW is not None and values.ndim != 5):
        raise DataError(
            "expected floats or pixels for seeds.recipe.mixup, and images for cutmix, got "
            f"{values.dtype} of shape {tuple(values.shape[2:])}; set them to 0"
        )
    others = values.roll(1, dims=1)
    share = share_K.view(-1, *[1] * (values.ndim - 1)).to(values.dtype)
    values = torch.lerp(others, values, share)
    if inside_KHW is None:
        return values
    return torch.where(inside_KHW[:, None, None], others, values)


def _window(
    share: float, height: int, width: int, generator: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a window that leaves about this share of an image."""
    row, column = generator.integers(height), generator.integers(width)
    half = 0.5 * math.sqrt(1.0 - share)
    return (
        slice(max(0, int(row - half * height)), min(height, int(row + half * height))),
        slice(max(0, int(column - half * width)), min(width, int(column + half * width))),
    )
