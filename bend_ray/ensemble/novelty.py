"""Where models are: is a generated one new, or a copy, or the mean of what it was learnt from?

No one number tells: weight-space distance alone calls the mean of a trunk "novel". Read all of
``Novelty`` beside the same row for held-out training checkpoints, which is what new models of
the same distribution look like.

Shape letters: M models, K training models, T trunks, P parameters, N examples. Distances are
Euclidean between raw parameter vectors, computed in float64 over chunks of columns and of models,
which may be in a store, so P, M and K may be large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bend_ray.process.matrix import Matrix, column_slices, per_block, scratch

if TYPE_CHECKING:
    from bend_ray.tasks import Task

COPY_RATIO = 0.1
"""A model nearer to a training model than this share of their usual distance is a copy."""
MOST_IN_A_PLANE = 1024


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


@dataclass(frozen=True)
class Models:
    """A population; trunks are integers, where there is none one value, such as -1."""

    theta_MP: Matrix
    trunks_M: Tensor
    predictions_MN: Tensor
    task: Task

    def __post_init__(self) -> None:
        if not len(self.theta_MP) == len(self.trunks_M) == len(self.predictions_MN) > 0:
            raise ValueError(
                "expected parameters, trunk and predictions of each of at least one model, got "
                f"{len(self.theta_MP)}, {len(self.trunks_M)} and {len(self.predictions_MN)} rows"
            )


def novelty(models: Models, training: Models, nearest_M: Tensor, nearest_K: Tensor) -> Novelty:
    """Compare a population with the training models, by ``nearest_distances`` of both.

    A measure without a meaning is nan: nearest_ratio with one training model or where half of them
    have an exact twin (then only exact copies count as copies), spread without a shared trunk or
    where each has one training model, within_trunk_disagreement where no trunk has two models.
    """
    usual = nearest_K.quantile(0.5).item()
    copied_M = (nearest_M == 0) | (nearest_M < COPY_RATIO * usual)
    differing, theirs = models.task.distances, training.predictions_MN
    tiles = torch.split(models.predictions_MN, _tile(training.theta_MP))
    functional_M = torch.cat([differing(tile, theirs).amin(dim=1) for tile in tiles])
    return Novelty(
        nearest_ratio=_ratio(nearest_M.quantile(0.5).item(), usual),
        spread=_spread(models, training),
        within_trunk_disagreement=_within_trunk_disagreement(models),
        functional_distance=functional_M.mean().item(),
        copies=copied_M.double().mean().item(),
    )


def nearest_distances(theta_MP: Matrix, train_theta_KP: Matrix, *, others: bool = False) -> Tensor:
    """Distance of each model to its nearest training model, (M,) float64, 0 for an exact copy.

    Of ``others`` to the nearest at another place, as of training models: nan if there is none.
    """
    if theta_MP.shape[1:] != train_theta_KP.shape[1:]:
        raise ValueError(
            f"expected vectors of as many parameters as the training models have, got shapes "
            f"{tuple(theta_MP.shape)} and {tuple(train_theta_KP.shape)}"
        )
    if others and len(train_theta_KP) < 2:
        return torch.full((len(theta_MP),), math.nan, dtype=torch.float64)
    found, size = [torch.zeros(0, dtype=torch.float64)], _tile(train_theta_KP)
    for start in range(0, len(theta_MP), size):
        own = slice(start, min(start + size, len(theta_MP)))
        squared_mK = _squared_distances(theta_MP, own, train_theta_KP)
        if others:
            squared_mK[:, start:].fill_diagonal_(math.inf)
        found.append(_distances(theta_MP, own, train_theta_KP, squared_mK.argmin(dim=1)))
    return torch.cat(found)


def _tile(train_theta_KP: Matrix) -> int:
    """Models whose distances to all training models are held at once."""
    return per_block(8 * len(train_theta_KP))


def _squared_distances(theta_MP: Matrix, own: slice, train_theta_KP: Matrix) -> Tensor:
    """Squared distances of some models through the Gram matrix, off by 1e-15 of squared norms.

    Exact enough to say who is nearest (float32 parameters are coarser), not how near: a copy
    would come out at a distance of pure rounding. ``_distances`` measures that from differences.
    """
    num_models = own.stop - own.start
    squared_mK = torch.zeros(num_models, len(train_theta_KP), dtype=torch.float64)
    for columns in column_slices(theta_MP.shape[1], num_models + len(train_theta_KP), 8):
        train_KP = train_theta_KP[:, columns].double()
        mean_P = train_KP.mean(dim=0)
        # Around the mean the norms are smaller, and so is what cancels.
        train_KP = train_KP - mean_P
        model_mP = theta_MP[own, columns].double() - mean_P
        squared_mK.addmm_(model_mP, train_KP.T, alpha=-2)
        squared_mK += model_mP.square().sum(dim=1)[:, None] + train_KP.square().sum(dim=1)
    return squared_mK


def _distances(theta_MP: Matrix, own: slice, train_theta_KP: Matrix, index_m: Tensor) -> Tensor:
    """Distance of some models m to training models index_m[m], (m,) float64."""
    squared_m = torch.zeros(len(index_m), dtype=torch.float64)
    for columns in column_slices(theta_MP.shape[1], 2 * len(index_m), 8):
        train_mP = train_theta_KP[index_m, columns]
        squared_m += (theta_MP[own, columns].double() - train_mP).square().sum(dim=1)
    return squared_m.sqrt()


def _spread(models: Models, training: Models) -> float:
    """Mean distance to the trunk's training mean, models over training models."""
    models_M, training_K = (_trunk_distances(each, training) for each in (models, training))
    return _ratio(
        models_M[torch.isin(models.trunks_M, training.trunks_M)].mean().item(),
        training_K[torch.isin(training.trunks_M, models.trunks_M)].mean().item(),
    )


def _trunk_distances(models: Models, training: Models) -> Tensor:
    """Distance of each model to its trunk's training mean, (M,) float64; else without meaning."""
    ids_T, trunk_K, counts_T = torch.unique(
        training.trunks_M, return_inverse=True, return_counts=True
    )
    index_M = torch.searchsorted(ids_T, models.trunks_M).clamp(max=len(ids_T) - 1)
    squared_M = torch.zeros(len(index_M), dtype=torch.float64)
    for columns in column_slices(models.theta_MP.shape[1], len(index_M) + len(trunk_K), 8):
        train_KP = training.theta_MP[:, columns].double()
        mean_TP = train_KP.new_zeros(len(ids_T), train_KP.shape[1])
        mean_TP = mean_TP.index_add_(0, trunk_K, train_KP) / counts_T[:, None]
        own_MP = models.theta_MP[:, columns].double()
        squared_M += (own_MP - mean_TP[index_M]).square().sum(dim=1)
    return squared_M.sqrt()


def _within_trunk_disagreement(models: Models) -> float:
    """Mean over the pairs of models that share a trunk."""
    total, num_pairs = 0.0, 0
    for trunk in torch.unique(models.trunks_M):
        predictions_EN = models.predictions_MN[models.trunks_M == trunk]
        if len(predictions_EN) > 1:
            pairs = math.comb(len(predictions_EN), 2)
            total += pairs * models.task.disagreements(predictions_EN).mean().item()
            num_pairs += pairs
    return _ratio(total, num_pairs)


def principal_plane(
    train_theta_KP: Matrix, populations: Sequence[Matrix]
) -> tuple[list[Tensor], list[float]]:
    """Project populations onto the first two principal directions of the training models.

    Gives coordinates (M, 2) of each, in the units of a parameter, and the share of the training
    models' variance along each direction.

    With ``A = X X^T = U diag(lambda) U^T`` over the centred training models, a model x has the
    coordinates ``x X^T U / sqrt(lambda)``. Agrees with ``sklearn.decomposition.PCA`` up to signs,
    which make the largest entry of each column of U positive. Of more than ``MOST_IN_A_PLANE``
    training models, evenly spaced ones give the directions.
    """
    spaced = slice(None, None, -(-len(train_theta_KP) // MOST_IN_A_PLANE))
    grams = _grams(train_theta_KP, spaced, populations)
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
    return [gram_MK @ directions_K2 for gram_MK in grams[1:]], shares


def _grams(train: Matrix, spaced: slice, populations: Sequence[Matrix]) -> list[Tensor]:
    """Inner products with spaced training models, around their mean: theirs, and (M, K) of each."""
    num_spaced = len(range(len(train))[spaced])
    shapes = [(num, num_spaced) for num in (num_spaced, *map(len, populations))]
    grams = [scratch(*shape) for shape in shapes]
    for columns in column_slices(train.shape[1], num_spaced + max(map(len, populations)), 8):
        train_KP = train[spaced, columns].double()
        mean_P = train_KP.mean(dim=0)
        train_KP = train_KP - mean_P
        grams[0].addmm_(train_KP, train_KP.T)
        for gram_MK, theta_MP in zip(grams[1:], populations, strict=True):
            gram_MK.addmm_(theta_MP[:, columns].double() - mean_P, train_KP.T)
    return grams


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan
