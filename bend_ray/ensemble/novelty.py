"""Where models are: is a generated one new, or a copy, or the mean of what it was learnt from?

No one number tells: weight-space distance alone calls the mean of a trunk "novel". Read all of
``Novelty`` beside the same row for held-out training checkpoints, which is what new models of
the same distribution look like.

Shape letters: M models, K training models, T trunks, P parameters, N examples. Distances are
Euclidean between raw parameter vectors, computed in float64 over chunks of columns, so P may be
large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.ensemble.metrics import disagreement, pairwise_disagreement

COPY_RATIO = 0.1
"""A model nearer to a training model than this share of their usual distance is a copy."""
_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Novelty:
    """How a population of models stands to the training models."""

    nearest_ratio: float
    """Median distance to the nearest training model, over the median of the training models' own
    (leave-one-out): 0 for copies, about 1 for held-out models."""
    spread: float
    """Mean distance of a model to the training mean of its trunk, over the same of the training
    models: 0 for a trunk's mean. Held-out models of a trunk with K training models score about
    sqrt((K + 1) / (K - 1)), because the mean was not taken over them."""
    within_trunk_disagreement: float
    """Share of examples on which two models of one trunk differ, mean over pairs."""
    functional_distance: float
    """Share of examples on which a model differs from the training model that predicts most like
    it, mean over models."""
    copies: float
    """Share of models that are a training model, or nearly (``COPY_RATIO``)."""


def novelty(
    theta_MP: Tensor,
    trunks_M: Tensor,
    predictions_MN: Tensor,
    train_theta_KP: Tensor,
    train_trunks_K: Tensor,
    train_predictions_KN: Tensor,
) -> Novelty:
    """Compare a population of models with the training models; all tensors on one device.

    Trunks are integers; a population without any has one value, such as -1. A measure without a
    meaning is nan: nearest_ratio with one training model or where half of them have an exact twin
    (then only exact copies count as copies), spread without a shared trunk or where each has one
    training model, within_trunk_disagreement where no trunk has two models. ValueError where shapes
    do not fit.
    """
    _check_population(theta_MP, trunks_M, predictions_MN)
    _check_population(train_theta_KP, train_trunks_K, train_predictions_KN)
    nearest_M = nearest_distances(theta_MP, train_theta_KP)
    usual = leave_one_out_distances(train_theta_KP).quantile(0.5).item()
    copied_M = (nearest_M == 0) | (nearest_M < COPY_RATIO * usual)
    functional_M = pairwise_disagreement(predictions_MN, train_predictions_KN).amin(dim=1)
    return Novelty(
        nearest_ratio=_ratio(nearest_M.quantile(0.5).item(), usual),
        spread=_spread(theta_MP, trunks_M, train_theta_KP, train_trunks_K),
        within_trunk_disagreement=_within_trunk_disagreement(predictions_MN, trunks_M),
        functional_distance=functional_M.mean().item(),
        copies=copied_M.double().mean().item(),
    )


def nearest_distances(theta_MP: Tensor, train_theta_KP: Tensor) -> Tensor:
    """Distance of each model to its nearest training model, (M,) float64, 0 for an exact copy."""
    if theta_MP.shape[1:] != train_theta_KP.shape[1:]:
        raise ValueError(
            f"expected vectors of as many parameters as the training models have, got shapes "
            f"{tuple(theta_MP.shape)} and {tuple(train_theta_KP.shape)}"
        )
    nearest_M = _squared_distances(theta_MP, train_theta_KP).argmin(dim=1)
    return _distances(theta_MP, train_theta_KP, nearest_M)


def leave_one_out_distances(train_theta_KP: Tensor) -> Tensor:
    """Distance of each training model to the nearest other, (K,) float64, nan if there is none."""
    if len(train_theta_KP) < 2:
        return train_theta_KP.new_full((len(train_theta_KP),), math.nan, dtype=torch.float64)
    squared_KK = _squared_distances(train_theta_KP, train_theta_KP)
    nearest_K = squared_KK.fill_diagonal_(math.inf).argmin(dim=1)
    return _distances(train_theta_KP, train_theta_KP, nearest_K)


def _squared_distances(theta_MP: Tensor, train_theta_KP: Tensor) -> Tensor:
    """Squared distances through the Gram matrix, (M, K), off by 1e-15 of the squared norms.

    Exact enough to say who is nearest (float32 parameters are coarser), not how near: a copy
    would come out at a distance of pure rounding. ``_distances`` measures that from differences.
    """
    shape = (len(theta_MP), len(train_theta_KP))
    squared_MK = torch.zeros(shape, dtype=torch.float64, device=theta_MP.device)
    for columns in _columns(theta_MP, train_theta_KP):
        train_KP = train_theta_KP[:, columns].double()
        mean_P = train_KP.mean(dim=0)
        # Around the mean the norms are smaller, and so is what cancels.
        train_KP = train_KP - mean_P
        model_MP = theta_MP[:, columns].double() - mean_P
        squared_MK.addmm_(model_MP, train_KP.T, alpha=-2)
        squared_MK += model_MP.square().sum(dim=1)[:, None] + train_KP.square().sum(dim=1)
    return squared_MK


def _distances(theta_MP: Tensor, train_theta_KP: Tensor, index_M: Tensor) -> Tensor:
    """Distance of model m to training model index_M[m], (M,) float64."""
    squared_M = torch.zeros(len(theta_MP), dtype=torch.float64, device=theta_MP.device)
    for columns in _columns(theta_MP, theta_MP):
        train_MP = train_theta_KP[:, columns][index_M]
        squared_M += (theta_MP[:, columns].double() - train_MP).square().sum(dim=1)
    return squared_M.sqrt()


def _spread(
    theta_MP: Tensor, trunks_M: Tensor, train_theta_KP: Tensor, train_trunks_K: Tensor
) -> float:
    """Mean distance to the trunk's training mean, models over training models."""
    models_M = _trunk_distances(theta_MP, trunks_M, train_theta_KP, train_trunks_K)
    training_K = _trunk_distances(train_theta_KP, train_trunks_K, train_theta_KP, train_trunks_K)
    return _ratio(
        models_M[torch.isin(trunks_M, train_trunks_K)].mean().item(),
        training_K[torch.isin(train_trunks_K, trunks_M)].mean().item(),
    )


def _trunk_distances(
    theta_MP: Tensor, trunks_M: Tensor, train_theta_KP: Tensor, train_trunks_K: Tensor
) -> Tensor:
    """Distance of each model to its trunk's training mean, (M,) float64; else without meaning."""
    trunks_T, counts_T = torch.unique(train_trunks_K, return_counts=True)
    share_TK = (trunks_T[:, None] == train_trunks_K).double() / counts_T[:, None]
    index_M = torch.searchsorted(trunks_T, trunks_M).clamp(max=len(trunks_T) - 1)
    squared_M = torch.zeros(len(theta_MP), dtype=torch.float64, device=theta_MP.device)
    for columns in _columns(theta_MP, train_theta_KP):
        mean_TP = share_TK @ train_theta_KP[:, columns].double()
        squared_M += (theta_MP[:, columns].double() - mean_TP[index_M]).square().sum(dim=1)
    return squared_M.sqrt()


def _within_trunk_disagreement(predictions_MN: Tensor, trunks_M: Tensor) -> float:
    """Mean over the pairs of models that share a trunk."""
    total, num_pairs = 0.0, 0
    for trunk in torch.unique(trunks_M):
        predictions_EN = predictions_MN[trunks_M == trunk]
        if len(predictions_EN) > 1:
            pairs = math.comb(len(predictions_EN), 2)
            total += pairs * disagreement(predictions_EN)
            num_pairs += pairs
    return _ratio(total, num_pairs)


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
    shapes = [(len(each), len(train_theta_KP)) for each in populations]
    grams = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    for columns in _columns(train_theta_KP, *populations):
        train_KP = train_theta_KP[:, columns].double()
        mean_P = train_KP.mean(dim=0)
        train_KP = train_KP - mean_P
        for gram_MK, theta_MP in zip(grams, populations, strict=True):
            gram_MK += (theta_MP[:, columns].double() - mean_P) @ train_KP.T
    return grams


def _columns(*matrices: Tensor) -> Iterator[slice]:
    """Slices of columns whose float64 copies, of all matrices, fit a chunk."""
    width = max(1, _CHUNK_BYTES // (8 * sum(map(len, matrices))))
    for start in range(0, matrices[0].shape[1], width):
        yield slice(start, start + width)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


def _check_population(theta_MP: Tensor, trunks_M: Tensor, predictions_MN: Tensor) -> None:
    if not len(theta_MP) == len(trunks_M) == len(predictions_MN) > 0:
        raise ValueError(
            f"expected parameters, trunk and predictions of each of at least one model, got "
            f"{len(theta_MP)}, {len(trunks_M)} and {len(predictions_MN)} rows"
        )
