"""Population: many classifiers of one architecture in memory, one row a model.

Shape letters: K models, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Origin = Literal["trained", "generated"]

_DTYPES = {
    "model_id": np.int64,
    "trunk": np.int32,
    "fork": np.int32,
    "step": np.int64,
    "seed": np.int64,
    "held_out": np.bool_,
    "val_accuracy": np.float32,
    "val_nll": np.float32,
    "fit_seconds": np.float32,
    "theta_KP": np.float32,
}


@dataclass(frozen=True, eq=False)
class Population:
    """K classifiers; what comes is converted to the types below.

    Attributes:
        model_id: (K,) int64.
        trunk: (K,) int32, the independent start a model descends from.
        fork: (K,) int32, which continuation of that trunk it is.
        step: (K,) int64, optimizer steps taken.
        seed: (K,) int64.
        held_out: (K,) bool, kept from the generator's training.
        val_accuracy: (K,) float32 in [0, 1].
        val_nll: (K,) float32, nats.
        fit_seconds: (K,) float32, CPU seconds this model cost.
        origin: whether they were trained or drawn from a generator.
        theta_KP: (K, P) float32; (K, 0) when it was not read.
        layout_digest: names the layout that flattened the classifiers.

    Raises:
        ValueError: another origin, or shapes that do not agree.
    """

    model_id: NDArray[np.int64]
    trunk: NDArray[np.int32]
    fork: NDArray[np.int32]
    step: NDArray[np.int64]
    seed: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    val_accuracy: NDArray[np.float32]
    val_nll: NDArray[np.float32]
    fit_seconds: NDArray[np.float32]
    origin: Origin
    theta_KP: NDArray[np.float32]
    layout_digest: str

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        if self.origin not in get_args(Origin):
            raise ValueError(f"expected origin {Origin}, got {self.origin!r}")
        if self.theta_KP.ndim != 2:
            raise ValueError(f"expected theta_KP of shape (K, P), got {self.theta_KP.shape}")
        for name in _DTYPES:
            shape = getattr(self, name).shape
            if name != "theta_KP" and shape != (len(self),):
                raise ValueError(f"expected {name} of shape {(len(self),)}, got {shape}")

    def __len__(self) -> int:
        return len(self.theta_KP)

    def select(self, rows: ArrayLike | slice) -> Population:
        """The models at a boolean mask, at indices, or in a slice (a view, nothing copied)."""
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            # numpy takes an empty list for floats, and floats for no index.
            rows = rows if rows.size else rows.astype(np.intp)
        return replace(self, **{name: getattr(self, name)[rows] for name in _DTYPES})

    @classmethod
    def concatenate(cls, populations: Sequence[Population]) -> Population:
        """One population after the other.

        Raises:
            ValueError: none given, or of different layouts or origins.
        """
        kinds = {(each.layout_digest, each.origin) for each in populations}
        if len(kinds) != 1:
            raise ValueError(f"expected populations of one layout and origin, got {sorted(kinds)}")
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(each, name) for each in populations]) for name in _DTYPES
        }
        return replace(populations[0], **joined)
