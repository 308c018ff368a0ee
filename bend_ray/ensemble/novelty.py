"""Where models are: is a generated one new, or a copy, or the mean of what it was learnt from?

No one number tells: weight-space distance alone calls the mean of a trunk "novel". Read all that
``novelty`` gives beside the same row for held-out training checkpoints, which is what new models of
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
CANCELLING = 1e-6
"""Squared distances below this share of the squared norms are taken from differences."""
MOST_IN_A_PLANE = 1024


Population = tuple[Matrix, Tensor]
"""Parameters ``(M, P)`` and trunks ``(M,)``."""


@dataclass(frozen=True)
class Places:
    """Distances of models, float64."""

    nearest_M: Tensor
    """To the nearest training model, another than itself; 0 for a copy, nan where there is none."""
    trunk_M: Tensor
    """To the training mean of its trunk; without meaning where no training model is of it."""


@dataclass(frozen=True)
class Models:
    """One at least; trunks are integers, where there is none one value, such as -1."""

    places: Places
    trunks_M: Tensor
    predictions_MN: Tensor
    task: Task


def novelty(models: Models, training: Models) -> dict[str, float]:
    """Compare a population with the training models.

    ``nearest_ratio``: median distance to the nearest training model, over the median of the
    training models' own (leave-one-out): 0 for copies, about 1 for held-out models. ``spread``:
    mean distance of a model to the training mean of its trunk, over the same of the training
    models: 0 for a trunk's mean. Held-out models of a trunk with K training models score about
    sqrt((K + 1) / (K - 1)), because the mean was not taken over them.
    ``within_trunk_disagreement``: share of examples on which two models of one trunk differ, mean
    over pairs. ``functional_distance``: share on which a model differs from the training model that
    predicts most like it, mean over models. ``copies``: share of models that are a training model,
    or nearly (``COPY_RATIO``).

    A measure without a meaning is nan: nearest_ratio with one training model or where half of them
    have an exact twin (then only exact copies count as copies), spread without a shared trunk or
    where each has one training model, within_trunk_disagreement where no trunk has two models.
    """
    at, usual_at = models.places, training.places
    usual = usual_at.nearest_M.quantile(0.5).item()
    copied_M = (at.nearest_M == 0) | (at.nearest_M < COPY_RATIO * usual)
    tiles = torch.split(models.predictions_MN, per_block(8 * len(training.trunks_M)))
    differing = (models.task.distances(tile, training.predictions_MN) for tile in tiles)
    functional_M = torch.cat([each_mK.amin(dim=1) for each_mK in differing])
    shared_M = torch.isin(models.trunks_M, training.trunks_M)
    shared_K = torch.isin(training.trunks_M, models.trunks_M)
    spread, usual_spread = at.trunk_M[shared_M].mean(), usual_at.trunk_M[shared_K].mean()
    return {
        "nearest_ratio": _ratio(at.nearest_M.quantile(0.5).item(), usual),
        "spread": _ratio(spread.item(), usual_spread.item()),
        "within_trunk_disagreement": _within_trunk_disagreement(models),
        "functional_distance": functional_M.mean().item(),
        "copies": copied_M.double().mean().item(),
    }


def places_among(training: Population, models: Population | None = None) -> Places:
    """Where models are among the training models; None: these, each among the others.

    All are read once, the training models once for as many models as have distances to all of them
    in memory.
    """
    (_, trunks_M), (_, trunks_K) = models or training, training
    places_2M = torch.zeros(2, len(trunks_M), dtype=torch.float64)
    for start in range(0, len(trunks_M), size := per_block(8 * len(trunks_K))):
        own = slice(start, min(start + size, len(trunks_M)))
        places_2M[:, own] = torch.stack(_places(training, models, own))
    return Places(*places_2M)


def _places(training: Population, models: Population | None, own: slice) -> tuple[Tensor, Tensor]:
    """Of some models: the nearest through the Gram matrix, which is off by 1e-15 of squared norms.

    That says who is nearest (float32 parameters are coarser), but not how near, where norms cancel:
    a copy would come out at a distance of pure rounding. There differences are taken.
    """
    (train_theta_KP, trunks_K), (theta_MP, trunks_M) = training, models or training
    num_models, num_training = own.stop - own.start, len(trunks_K)
    squared_mK = torch.zeros(num_models, num_training, dtype=torch.float64)
    norm_m, trunk_m = torch.zeros(2, num_models, dtype=torch.float64)
    norm_K = torch.zeros(num_training, dtype=torch.float64)
    ids_T, trunk_K, counts_T = torch.unique(trunks_K, return_inverse=True, return_counts=True)
    trunk_of_m = torch.searchsorted(ids_T, trunks_M[own]).clamp(max=len(ids_T) - 1)
    for columns in column_slices(theta_MP.shape[1], 2 * num_models + num_training, 8):
        train_KP = train_theta_KP[:, columns].double()
        model_mP = train_KP[own] if models is None else theta_MP[own, columns].double()
        mean_TP = train_KP.new_zeros(len(ids_T), train_KP.shape[1])
        mean_TP = mean_TP.index_add_(0, trunk_K, train_KP) / counts_T[:, None]
        trunk_m += (model_mP - mean_TP[trunk_of_m]).square().sum(dim=1)
        # Around the mean norms are smaller, and so is what cancels.
        mean_P = train_KP.mean(dim=0)
        model_mP, train_KP = model_mP - mean_P, train_KP - mean_P
        squared_mK.addmm_(model_mP, train_KP.T, alpha=-2)
        norm_m += model_mP.square().sum(dim=1)
        norm_K += train_KP.square().sum(dim=1)
    squared_mK += norm_m[:, None] + norm_K
    if models is None:
        squared_mK[:, own.start :].fill_diagonal_(math.inf)
    squared_m, nearest_m = squared_mK.min(dim=1)
    near = (squared_m < CANCELLING * (norm_m + norm_K[nearest_m])).nonzero().flatten()
    if len(near):
        pairs = theta_MP, own.start + near, train_theta_KP, nearest_m[near]
        squared_m[near] = _squared_distances(*pairs)
    return squared_m.masked_fill(squared_m.isinf(), math.nan).sqrt(), trunk_m.sqrt()


def _squared_distances(
    theta_MP: Matrix, index_m: Tensor, train_theta_KP: Matrix, nearest_m: Tensor
) -> Tensor:
    """Of models index_m[m] to training models nearest_m[m], (m,) float64."""
    squared_m = torch.zeros(len(index_m), dtype=torch.float64)
    for columns in column_slices(theta_MP.shape[1], 2 * len(index_m), 8):
        train_mP = train_theta_KP[nearest_m, columns]
        squared_m += (theta_MP[index_m, columns].double() - train_mP).square().sum(dim=1)
    return squared_m


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
    for columns in column_slices(train.shape[1], len(train) + max(map(len, populations)), 8):
        whole_KP = train[:, columns].double()
        mean_P = whole_KP[spaced].mean(dim=0)
        train_KP = whole_KP[spaced] - mean_P
        grams[0].addmm_(train_KP, train_KP.T)
        for gram_MK, theta_MP in zip(grams[1:], populations, strict=True):
            own_MP = whole_KP if theta_MP is train else theta_MP[:, columns].double()
            gram_MK.addmm_(own_MP - mean_P, train_KP.T)
    return grams


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan
