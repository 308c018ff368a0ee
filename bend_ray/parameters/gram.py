"""Lossless principal coefficients of a population whose vectors need not fit in memory.

T training models span at most T-1 directions around their mean, so the standardised population is
a rotation of T-1 coefficients a model, whatever P is. They follow from the Gram matrix of inner
products between models, which is a sum over columns of ``theta``: one pass, any column blocks::

    grams_LKK = sum(layer_grams(theta_KW, block.start, layout, train_K) for each column block)
    basis, coefficients_KR = PrincipalBasis.fit(grams_LKK, layout, train_K)

Back again, a coefficient row is a set of weights over the training models. The scales of the layers
cancel, no P x R basis is ever formed, and decoding streams over the same blocks::

    theta_NW = mix(basis.weights(coefficients_NR), theta_TW)

Shapes: K models, T of them for training, P parameters, W columns of a block, L layers (entries of
the layout), R principal coefficients, N models to decode.

Source: snapshot PCA, Sirovich (1987), "Turbulence and the dynamics of coherent structures".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.errors import ConfigError
from bend_ray.parameters.layout import ParameterLayout

# On eigenvalues, so 1e-6 of the largest spread: what a float32 parameter can show.
RANK_TOLERANCE = 1e-12


@dataclass(frozen=True)
class ColumnBlock:
    """Columns ``start`` to ``stop`` of ``theta``: what is read and worked on at a time."""

    start: int
    stop: int


def column_blocks(size: int, width: int) -> tuple[ColumnBlock, ...]:
    """Cut ``size`` columns into blocks of ``width``, the last one shorter."""
    return tuple(ColumnBlock(start, min(start + width, size)) for start in range(0, size, width))


def layer_grams(theta_KW: Tensor, start: int, layout: ParameterLayout, train_K: Tensor) -> Tensor:
    """A column block's share of the Gram matrix of every layer, of rows centred but not scaled.

    Args:
        theta_KW: Columns ``start`` to ``start + W`` of all models, training and held-out.
        start: First column of the block.
        layout: Of the whole vector.
        train_K: Boolean; the mean is taken over the training rows only.

    Returns:
        (L, K, K) float64; the shares of disjoint blocks add up.

    Raises:
        ValueError: The block reaches beyond the layout.
    """
    num_models, width = theta_KW.shape
    if start < 0 or start + width > layout.size:
        raise ValueError(
            f"expected columns within 0 to {layout.size} (layout {layout.digest}), "
            f"got {start} to {start + width}"
        )
    shape = (len(layout.entries), num_models, num_models)
    grams_LKK = torch.zeros(shape, dtype=torch.float64, device=theta_KW.device)
    for layer, entry in enumerate(layout.entries):
        first = max(entry.offset - start, 0)
        last = min(entry.offset + entry.size - start, width)
        if first < last:
            centred_KC = _centre(theta_KW[:, first:last], train_K)
            torch.mm(centred_KC, centred_KC.T, out=grams_LKK[layer])
    return grams_LKK


def _centre(theta_KC: Tensor, train_K: Tensor) -> Tensor:
    wide_KC = theta_KC.to(torch.float64)
    train_TC = wide_KC[train_K]
    # A sum over a count, not mean(): a column of equal float32 values is then exactly zero.
    return wide_KC - train_TC.sum(dim=0) / len(train_TC)


@dataclass(frozen=True)
class PrincipalBasis:
    """The way back from coefficients to weights over the training models.

    Attributes:
        to_weights_RT: float64, a row for each principal direction, largest spread first.
        scale: The unit of a coefficient, in standardised parameters, chosen so that the mean
            square of all training coefficients is 1.
    """

    to_weights_RT: Tensor
    scale: float

    @classmethod
    def fit(
        cls, grams_LKK: Tensor, layout: ParameterLayout, train_K: Tensor
    ) -> tuple[PrincipalBasis, Tensor]:
        """Rotate the standardised population onto its principal directions.

        With ``A = X X^T = U diag(lambda) U^T`` over the training rows, the coefficients of any
        row x are ``x X^T U / sqrt(lambda)``: exact for training rows, a projection for others.

        Args:
            grams_LKK: Sum of ``layer_grams`` over all columns.
            layout: Of the whole vector.
            train_K: Boolean, as given to ``layer_grams``.

        Returns:
            The basis and coefficients_KR (float32) of all K models.

        Raises:
            ConfigError: Fewer than two different training models.
        """
        similarity_KT = _standardised_gram(grams_LKK, layout, train_K)[:, train_K]
        eigenvalues_T, vectors_TT = torch.linalg.eigh(similarity_KT[train_K])
        num_train = len(eigenvalues_T)
        kept_T = eigenvalues_T > RANK_TOLERANCE * eigenvalues_T.sum()
        if not kept_T.any():
            raise ConfigError(
                f"expected at least 2 different training models, got {num_train} "
                f"without any difference; train more seeds or hold out fewer"
            )
        roots_R = eigenvalues_T[kept_T].flip(0).sqrt()
        directions_TR = _orient(vectors_TT[:, kept_T].flip(1))
        scale = float(roots_R.square().sum() / (num_train * len(roots_R))) ** 0.5
        coefficients_KR = similarity_KT @ directions_TR / (roots_R * scale)
        basis = cls((directions_TR * (scale / roots_R)).T.contiguous(), scale)
        return basis, coefficients_KR.to(torch.float32)

    def weights(self, coefficients_NR: Tensor) -> Tensor:
        """Weights over the training models, weights_NT (float32), to be given to ``mix``."""
        weights_NT = coefficients_NR.to(torch.float64) @ self.to_weights_RT
        return weights_NT.to(torch.float32)

    def state(self) -> dict[str, Tensor]:
        """As tensors by name, to be stored with safetensors."""
        scale = torch.tensor(self.scale, dtype=torch.float64)
        return {"to_weights": self.to_weights_RT, "scale": scale}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> PrincipalBasis:
        """The inverse of ``state``."""
        return cls(state["to_weights"], float(state["scale"]))


def _standardised_gram(grams_LKK: Tensor, layout: ParameterLayout, train_K: Tensor) -> Tensor:
    """The Gram matrix (K, K) as if each layer had been divided by its scale over training rows."""
    sizes_L = torch.tensor([entry.size for entry in layout.entries], device=grams_LKK.device)
    traces_L = grams_LKK.diagonal(dim1=1, dim2=2)[:, train_K].sum(dim=1)
    variances_L = traces_L / (train_K.sum() * sizes_L)
    # A layer in which all training models agree says nothing about them.
    precisions_L = torch.where(traces_L > 0, 1 / variances_L, 0.0)
    return torch.einsum("l,lkj->kj", precisions_L, grams_LKK)


def _orient(directions_TR: Tensor) -> Tensor:
    """Largest weight positive: an eigenvector's sign is arbitrary and differs between machines."""
    largest_R = directions_TR.abs().argmax(dim=0)
    return directions_TR * directions_TR.gather(0, largest_R[None]).sign()


def mix(weights_NT: Tensor, theta_TW: Tensor) -> Tensor:
    """``mean + weights (theta - mean)``: decoded columns theta_NW of N models.

    Args:
        weights_NT: From ``PrincipalBasis.weights``; zero weights give the mean.
        theta_TW: The same training models in the same order, any block of their columns.

    Returns:
        theta_NW in the dtype of ``theta_TW``; the weights of a training row give that row.
    """
    mean_W = (theta_TW.sum(dim=0, dtype=torch.float64) / len(theta_TW)).to(theta_TW.dtype)
    return torch.addmm(mean_W, weights_NT.to(theta_TW.dtype), theta_TW - mean_W)
