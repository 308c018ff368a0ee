"""Populations in the plane in which the training models differ most.

Shape letters: K training models, M models, P parameters. Plain Euclidean geometry of raw
parameters, as in ``novelty``; computed from inner products over chunks of columns, so P may be
large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Plane:
    """Coordinates of every population, and how much of the differences the plane shows."""

    coordinates: list[Tensor]
    """A tensor (M, 2) for each population, in the units of a parameter."""
    shares: tuple[float, float]
    """Share of the training models' variance along each direction."""


def principal_plane(train_theta_KP: Tensor, populations: Sequence[Tensor]) -> Plane:
    """Project populations onto the first two principal directions of the training models.

    With ``A = X X^T = U diag(lambda) U^T`` over the centred training models, a model x has the
    coordinates ``x X^T U / sqrt(lambda)``. Agrees with ``sklearn.decomposition.PCA`` up to signs,
    which make the largest entry of each column of U positive.
    """
    grams = _grams(train_theta_KP, [train_theta_KP, *populations])
    eigenvalues_K, vectors_KK = torch.linalg.eigh(grams[0])
    total = eigenvalues_K.clamp(min=0).sum()
    directions_K2 = torch.zeros(len(eigenvalues_K), 2, dtype=torch.float64)
    shares = [0.0, 0.0]
    for axis in range(min(2, len(eigenvalues_K))):
        eigenvalue, vector_K = eigenvalues_K[-1 - axis], vectors_KK[:, -1 - axis]
        # Two models, or copies of them, differ in one direction only: the other is rounding.
        if eigenvalue > 1e-12 * total:
            sign = vector_K[vector_K.abs().argmax()].sign()
            directions_K2[:, axis] = sign * vector_K / eigenvalue.sqrt()
            shares[axis] = (eigenvalue / total).item()
    return Plane([gram_MK @ directions_K2 for gram_MK in grams[1:]], (shares[0], shares[1]))


def _grams(train_theta_KP: Tensor, populations: Sequence[Tensor]) -> list[Tensor]:
    """Inner products (M, K) of each population with the training models, around their mean."""
    num_train, size = train_theta_KP.shape
    rows = num_train + sum(map(len, populations))
    width = max(1, _CHUNK_BYTES // (8 * rows))
    grams = [torch.zeros(len(each), num_train, dtype=torch.float64) for each in populations]
    for start in range(0, size, width):
        columns = slice(start, start + width)
        train_KP = train_theta_KP[:, columns].double()
        mean_P = train_KP.mean(dim=0)
        train_KP = train_KP - mean_P
        for gram_MK, theta_MP in zip(grams, populations, strict=True):
            gram_MK += (theta_MP[:, columns].double() - mean_P) @ train_KP.T
    return grams
