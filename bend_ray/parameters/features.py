"""What the weight-space models are given of a classifier, from vectors that need not fit in memory.

Standardised parameters, or lossless principal coefficients of them.

T training models span at most T-1 directions around their mean, so the standardised population is
a rotation of T-1 coefficients a model, whatever P is. They follow from the Gram matrix of inner
products between models, which is a sum over columns of ``theta``: one pass, any column blocks, and
ranges of columns may be summed apart and merged::

    parts = [gram_sums(layout, train_K, blocks, start) for each range of columns]
    basis, coefficients_KR = PrincipalBasis.fit(gram(parts, layout, train_K), train_K)

Back again, a coefficient row is a set of weights over the training models. The scales of the layers
cancel, no P x R basis is ever formed, and decoding streams over the same blocks::

    theta_NW = mix(basis.weights(coefficients_NR), theta_TW)

Shapes: K models, T of them for training, B of a batch, P parameters, W columns of a block, L layers
(entries of the layout), R principal coefficients, N models to decode.

Source: snapshot PCA, Sirovich (1987), "Turbulence and the dynamics of coherent structures".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.errors import ConfigError
from bend_ray.parameters.layout import ParameterLayout

# On eigenvalues, so 1e-6 of the largest spread: what a float32 parameter can show.
RANK_TOLERANCE = 1e-12
_WHOLE = "whole"
# Far below the spread of anything trained in float32, far above the smallest float32.
SCALE_FLOOR = 1e-8


@dataclass(frozen=True)
class Standardizer:
    """``x = (theta - mean) / scale``, a mean per parameter and one scale per layer.

    One scale per layer keeps the shape of a layer's distribution, and a rarely moving parameter
    is not blown up to the size of the others.
    """

    mean_P: Tensor
    scale_P: Tensor

    @classmethod
    def fit(cls, layout: ParameterLayout, blocks: Iterable[Tensor]) -> Standardizer:
        """Of vectors of which columns theta_TW are given block by block, in their order.

        The scale of a layer is the root of the mean, over its parameters, of their variance
        (1/count). A layer in which all vectors agree gets a tiny scale: its own values map to 0,
        and whatever a generator draws for it maps back to the mean.
        """
        means, variances = [], []
        for theta_TW in blocks:
            wide_TW = theta_TW.to(torch.float64)
            # A sum over a count, not mean(): equal float32 values then average to themselves.
            means.append(wide_TW.sum(dim=0) / len(wide_TW))
            variances.append((wide_TW - means[-1]).square().sum(dim=0) / len(wide_TW))
        sizes = [entry.size for entry in layout.entries]
        layers = torch.split(torch.cat(variances), sizes)
        scales = torch.stack([layer.mean().sqrt() for layer in layers]).clamp_min(SCALE_FLOOR)
        scale_P = torch.repeat_interleave(scales, torch.tensor(sizes))
        return cls(torch.cat(means).to(torch.float32), scale_P.to(torch.float32))

    def apply(self, theta_BP: Tensor) -> Tensor:
        """Vectors (B, P) to standardised vectors x_BP."""
        return (theta_BP - self.mean_P) / self.scale_P

    def invert(self, x_BP: Tensor) -> Tensor:
        """Standardised vectors (B, P) back to vectors theta_BP."""
        return self.mean_P + x_BP * self.scale_P


def gram_sums(
    layout: ParameterLayout, train_K: Tensor, blocks: Iterable[Tensor], start: int = 0
) -> dict[str, Tensor]:
    """What a range of columns gives to the Gram matrix, every layer at unit scale in training.

    A layer's scale is known once all its columns have been seen: those that lie in the range whole
    are scaled and summed, those that it cuts, two at most, are kept apart. So memory is a few
    K x K matrices, whatever P and the number of layers.

    ``blocks`` are columns theta_KW of all models, held-out ones as well, in their order from column
    ``start``; all are centred by the training rows. Gives ``whole``, and by their number the
    unscaled shares of layers that reach beyond the range: (K, K) in float64.
    """
    sums = {_WHOLE: torch.zeros(len(train_K), len(train_K), dtype=torch.float64)}
    stop = start
    for theta_KW in blocks:
        first, stop = stop, stop + theta_KW.shape[1]
        for layer, entry in enumerate(layout.entries):
            low, high = max(entry.offset, first), min(entry.offset + entry.size, stop)
            if low < high:
                centred_KC = _centre(theta_KW[:, low - first : high - first], train_K)
                _add(sums, {str(layer): centred_KC @ centred_KC.T})
        _scale(sums, layout, train_K, range(start, stop))
    return sums


def gram(parts: Iterable[Mapping[str, Tensor]], layout: ParameterLayout, train_K: Tensor) -> Tensor:
    """The Gram matrix of a population (K, K): the sums of ranges that hold all columns, in order.

    Sums of floats depend on their order: that of the columns.
    """
    total: dict[str, Tensor] = {}
    for sums in parts:
        _add(total, sums)
    _scale(total, layout, train_K, range(layout.size))
    return total[_WHOLE]


def _add(total: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    for name, share_KK in sums.items():
        total[name] = total[name] + share_KK if name in total else share_KK


def _scale(
    sums: dict[str, Tensor], layout: ParameterLayout, train_K: Tensor, columns: range
) -> None:
    """Move the layers that lie in some columns to the others, at unit scale."""
    for layer, entry in enumerate(layout.entries):
        inside = columns.start <= entry.offset and entry.offset + entry.size <= columns.stop
        if inside and str(layer) in sums:
            gram_KK = sums.pop(str(layer))
            square_sum = gram_KK.diagonal()[train_K].sum()
            # A layer in which all training models agree says nothing about them.
            if square_sum > 0:
                scale = train_K.sum() * entry.size / square_sum
                sums[_WHOLE] = sums[_WHOLE] + gram_KK * scale


def _centre(theta_KC: Tensor, train_K: Tensor) -> Tensor:
    wide_KC = theta_KC.to(torch.float64)
    # A sum over a count, not mean(): a column of equal float32 values is then exactly zero.
    mean_C = wide_KC[train_K].sum(dim=0) / train_K.sum()
    return wide_KC.sub_(mean_C) if wide_KC is not theta_KC else wide_KC - mean_C


@dataclass(frozen=True)
class PrincipalBasis:
    """The way back from coefficients to weights over the training models.

    ``to_weights_RT`` has a row for each principal direction, largest spread first; ``scale``, a
    single number, is the unit of a coefficient, in standardised parameters: their mean square in
    training is 1. Both are float64.
    """

    to_weights_RT: Tensor
    scale: Tensor

    @classmethod
    def fit(cls, gram_KK: Tensor, train_K: Tensor) -> tuple[PrincipalBasis, Tensor]:
        """Rotate the standardised population onto its principal directions.

        With ``A = X X^T = U diag(lambda) U^T`` over the training rows, the coefficients of any row
        x are ``x X^T U / sqrt(lambda)``: exact for training rows, a projection for others. Gives
        the basis and coefficients_KR (float32) of all K models. ConfigError where fewer than two
        training models differ.
        """
        similarity_KT = gram_KK[:, train_K]
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
        to_weights_RT = (directions_TR * (scale / roots_R)).T.contiguous()
        basis = cls(to_weights_RT, torch.tensor(scale, dtype=torch.float64))
        return basis, coefficients_KR.to(torch.float32)

    def weights(self, coefficients_NR: Tensor) -> Tensor:
        """Weights over the training models, weights_NT (float32), to be given to ``mix``."""
        weights_NT = coefficients_NR.to(torch.float64) @ self.to_weights_RT
        return weights_NT.to(torch.float32)


def _orient(directions_TR: Tensor) -> Tensor:
    """Largest weight positive: an eigenvector's sign is arbitrary and differs between machines."""
    largest_R = directions_TR.abs().argmax(dim=0)
    return directions_TR * directions_TR.gather(0, largest_R[None]).sign()


def mix(weights_NT: Tensor, theta_TW: Tensor) -> Tensor:
    """``mean + weights (theta - mean)``: decoded columns theta_NW of N models.

    ``theta_TW`` are any columns of the training models, in their order, and give the dtype. Zero
    weights give the mean, those of a training row that row.
    """
    mean_W = (theta_TW.sum(dim=0, dtype=torch.float64) / len(theta_TW)).to(theta_TW.dtype)
    return torch.addmm(mean_W, weights_NT.to(theta_TW.dtype), theta_TW - mean_W)
