"""Lossless principal coefficients of a population whose vectors need not fit in memory.

T training models span at most T-1 directions around their mean, so the standardised population is
a rotation of T-1 coefficients a model, whatever P is. They follow from the Gram matrix of inner
products between models, which is a sum over columns of ``theta``: one pass, any column blocks, and
ranges of columns may be summed apart and merged::

    grams = GramSum(layout, train_K)
    for own in column_slices(layout.size, K):
        grams.extend(theta_KP[:, own])
    basis, coefficients_KR = PrincipalBasis.fit(grams.total(), train_K)

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


class GramSum:
    """The Gram matrix of a range of columns, every layer at unit scale over the training rows.

    A layer's scale is known once all its columns have been seen: what lies in the range whole is
    scaled and summed, the layers that the range cuts, two at most, are kept apart. So memory is a
    few K x K matrices, whatever P and L.

    Attributes:
        stop: The column after the last one seen; ``start`` is the first of the range.
        whole_KK: float64; of the layers within the range.
        cut: Layer -> its unscaled share (K, K), of the layers that reach beyond the range.
    """

    def __init__(self, layout: ParameterLayout, train_K: Tensor, start: int = 0) -> None:
        self.layout = layout
        self.train_K = train_K
        self.start = self.stop = start
        self.whole_KK = torch.zeros(len(train_K), len(train_K), dtype=torch.float64)
        self.cut: dict[int, Tensor] = {}

    def extend(self, theta_KW: Tensor) -> None:
        """Add the next W columns of all models, training and held-out.

        ValueError where they reach beyond the layout.
        """
        start, stop = self.stop, self.stop + theta_KW.shape[1]
        if start < 0 or stop > self.layout.size:
            raise ValueError(
                f"expected columns within 0 to {self.layout.size} (layout {self.layout.digest}), "
                f"got {start} to {stop}"
            )
        for layer, entry in enumerate(self.layout.entries):
            first = max(entry.offset, start)
            last = min(entry.offset + entry.size, stop)
            if first < last:
                centred_KC = _centre(theta_KW[:, first - start : last - start], self.train_K)
                self._add(layer, centred_KC @ centred_KC.T)
        self._move_to(stop)

    def merge(self, following: GramSum) -> None:
        """Add the range that begins where this one ends; ValueError where it begins elsewhere."""
        if following.start != self.stop:
            raise ValueError(f"expected a range from column {self.stop}, got {following.start}")
        self.whole_KK += following.whole_KK
        for layer, share_KK in following.cut.items():
            self._add(layer, share_KK)
        self._move_to(following.stop)

    def total(self) -> Tensor:
        """The Gram matrix of the whole population; ValueError where columns are missing."""
        if (self.start, self.stop) != (0, self.layout.size):
            raise ValueError(
                f"expected all {self.layout.size} columns, got {self.start} to {self.stop}"
            )
        return self.whole_KK

    def state(self) -> dict[str, Tensor]:
        """As tensors by name, to be sent to another process."""
        range_2 = torch.tensor([self.start, self.stop])
        cut = {f"cut.{layer}": share_KK for layer, share_KK in self.cut.items()}
        return {"range": range_2, "whole": self.whole_KK, **cut}

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], layout: ParameterLayout, train_K: Tensor
    ) -> GramSum:
        """The inverse of ``state``."""
        start, stop = state["range"].tolist()
        grams = cls(layout, train_K, start)
        grams.stop = stop
        grams.whole_KK = state["whole"]
        grams.cut = {int(k[4:]): share for k, share in state.items() if k.startswith("cut.")}
        return grams

    def _add(self, layer: int, share_KK: Tensor) -> None:
        held = self.cut.get(layer)
        self.cut[layer] = share_KK if held is None else held + share_KK

    def _move_to(self, stop: int) -> None:
        """End the range at ``stop``, and scale the layers that are complete by now."""
        self.stop = stop
        for layer in sorted(self.cut):
            entry = self.layout.entries[layer]
            if self.start <= entry.offset and entry.offset + entry.size <= stop:
                gram_KK = self.cut.pop(layer)
                square_sum = gram_KK.diagonal()[self.train_K].sum()
                # A layer in which all training models agree says nothing about them.
                if square_sum > 0:
                    self.whole_KK += gram_KK * (self.train_K.sum() * entry.size / square_sum)


def _centre(theta_KC: Tensor, train_K: Tensor) -> Tensor:
    wide_KC = theta_KC.to(torch.float64)
    # A sum over a count, not mean(): a column of equal float32 values is then exactly zero.
    mean_C = wide_KC[train_K].sum(dim=0) / train_K.sum()
    return wide_KC.sub_(mean_C) if wide_KC is not theta_KC else wide_KC - mean_C


@dataclass(frozen=True)
class PrincipalBasis:
    """The way back from coefficients to weights over the training models.

    ``to_weights_RT`` (float64) has a row for each principal direction, largest spread first;
    ``scale`` is the unit of a coefficient, in standardised parameters: their mean square in
    training is 1.
    """

    to_weights_RT: Tensor
    scale: float

    @classmethod
    def fit(cls, gram_KK: Tensor, train_K: Tensor) -> tuple[PrincipalBasis, Tensor]:
        """Rotate the standardised population onto its principal directions.

        With ``A = X X^T = U diag(lambda) U^T`` over the training rows, the coefficients of any row
        x are ``x X^T U / sqrt(lambda)``: exact for training rows, a projection for others.

        Returns the basis and coefficients_KR (float32) of all K models. ConfigError where fewer
        than two training models differ.
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
