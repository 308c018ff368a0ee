"""Rows of a table: raw columns of what a user gives, their order, how often each counts, folds.

Shape letters: N examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bend_ray.data.columns import Kind, kind_of, raw_column, table_of
from bend_ray.data.files import Part
from bend_ray.data.splits import Stratified
from bend_ray.errors import BendError

MOST_FOLDED = 5000
"""Examples of which every member's own fold validates it; of more a part of them is held out."""
FOLDS = 4
"""Of as many."""
MOST_COPIES = 64
"""Rows an example, on average, up to which whole weights are what they are."""
FINE_WEIGHTS = 4
"""Rows an example, on average, that other weights are rounded to."""

Raw = dict[str, NDArray[Any]]


def named(columns: Iterable[Any]) -> dict[str, Any]:
    """Columns by what they are called among us, whatever they are called elsewhere."""
    return {f"x{i}": column for i, column in enumerate(columns)}


def raw_of(frame: Any, kinds: Mapping[str, Kind] | None) -> tuple[Raw, dict[str, Kind]]:
    """The raw columns of a frame, and what they hold; what they held before is expected again.

    ValueError where they do not.
    """
    try:
        table = table_of(frame, "X")
        columns = named(table.columns)
        shown = dict(zip(columns, map(str, table.column_names), strict=True))
        if kinds is None:
            found = {name: kind_of(values, shown[name]) for name, values in columns.items()}
            kinds = {name: kind for name, kind in found.items() if kind}
        raw = {name: raw_column(columns[name], kind, shown[name]) for name, kind in kinds.items()}
    except (BendError, UnicodeError) as error:
        raise ValueError(str(error)) from None
    return raw, dict(kinds)


def holds_numbers(frame: Any) -> bool:
    """Whether all columns of a frame hold numbers or truth values."""
    if hasattr(frame, "iloc"):
        return all(getattr(dtype, "kind", "O") in "biuf" for dtype in frame.dtypes)
    try:
        types = table_of(frame, "X").schema.types
    except BendError:  # which raw_of tells
        return False
    return all(
        pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_boolean(t) for t in types
    )


def units_of(
    raw: Mapping[str, NDArray[Any]], labels: NDArray[Any], weights: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows as often as they count ``(M,)``, and which of them belong together, by numbers.

    Their order is decided by what they hold: a fit does not hang on how they come. Copies of an
    example belong together, as who has learnt one knows the others. Where columns have so few
    values that examples are bound to be alike, each is one by itself.
    """
    columns = [*raw.values(), *labels.reshape(len(labels), -1).T]
    mixed_N = np.zeros(len(labels), np.uint64)
    for values in columns:
        if values.dtype.kind == "U":
            _, values = np.unique(values, return_inverse=True)
        bits_N = (values.astype(np.float64) + 0.0).view(np.uint64)
        mixed_N = (mixed_N ^ bits_N) * np.uint64(0x9E3779B97F4A7C15)
        mixed_N ^= mixed_N >> np.uint64(29)
    rows_M = repeated(np.argsort(mixed_N, kind="stable"), weights)
    possible = 1
    for values in columns:
        possible *= len(np.unique(values))
        if possible > len(rows_M):
            unit_M = np.unique(mixed_N[rows_M], return_inverse=True)[1]
            # What all have alike says nothing: copies of one are beside each other.
            common = int(np.gcd.reduce(np.bincount(unit_M)))
            return rows_M[::common], unit_M[::common]
    return rows_M, np.arange(len(rows_M))


def repeated(rows: NDArray[np.int64], weights: Any) -> NDArray[np.int64]:
    """Rows as often as their weights say: whole numbers as they are, others rounded finely."""
    if weights is None:
        return rows
    weights_N = np.asarray(weights)[rows]
    is_fine = (weights_N != np.rint(weights_N)).any()
    if is_fine or weights_N.sum() > MOST_COPIES * len(rows):
        weights_N = weights_N * FINE_WEIGHTS * len(rows) / weights_N.sum()
    # Systematic resampling: each row its weight, rounded down or up.
    ends = np.floor(np.cumsum(weights_N) + 0.5).astype(np.int64)
    return rows.repeat(np.diff(ends, prepend=0))


@dataclass(frozen=True)
class Division:
    """Rows, some as often as they count, that train and are kept back, each in their order."""

    rows: NDArray[np.int64]
    """That train, or validate who trained on others."""
    folds: list[dict[Part, NDArray[np.int64]]]
    """The training and the validation part of each."""
    held: NDArray[np.int64]
    """One of each example that is kept back."""


def divide(
    raw: Mapping[str, NDArray[Any]],
    labels_N: NDArray[Any],
    weights: Any,
    calibration: float,
    folds: int | None,
    seed: int,
) -> Division:
    """Rows by what they are for; ValueError where fewer than two examples are left to train on."""
    rows_M, unit_M = units_of(raw, labels_N, weights)
    first_U = np.unique(unit_M, return_index=True)[1]

    def of(units: NDArray[np.int64]) -> NDArray[np.int64]:
        is_own = np.zeros(len(first_U), dtype=np.bool_)
        is_own[units] = True
        return rows_M[is_own[unit_M]]

    order_U = in_chance(labels_N[rows_M[first_U]], seed)
    held, left = np.split(order_U, [math.ceil(calibration * len(order_U))])
    if len(left) < 2:
        what = f"calibration {calibration:g}" if calibration else "sample_weight"
        raise ValueError(
            f"expected two training examples at least that differ, got {len(left)} of "
            f"{len(labels_N)}, as {what} leaves no more"
        )
    left = np.sort(left)
    parts: list[dict[Part, NDArray[np.int64]]] = [
        {"train": of(left[train]), "validation": of(left[validation])}
        for train, validation in folds_of(labels_N[rows_M[first_U[left]]], folds, seed)
    ]
    return Division(of(left), parts, rows_M[first_U[held]])


def in_chance(labels_N: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Examples in an order that chance decides, of which every stretch has all classes alike.

    Those that alone have their class, which nothing but training is any use for, come last.
    """
    count = len(labels_N)
    chance_N = np.random.default_rng(seed).permutation(count)
    table = pa.table({"y": labels_N.reshape(count, -1)[:, 0]})
    order_N, _ = Stratified().order(table, "y", chance_N)
    return order_N[np.argsort(_alone(labels_N)[order_N], kind="stable")]


def _alone(labels_N: NDArray[Any]) -> NDArray[np.bool_]:
    """Which examples alone have their class; of numbers none."""
    if labels_N.ndim > 1:
        return np.zeros(len(labels_N), dtype=np.bool_)
    alone: NDArray[np.bool_] = np.bincount(labels_N)[labels_N] == 1
    return alone


def folds_of(
    labels_N: NDArray[Any], folds: int | None, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Training and validation examples, of each fold."""
    order_N, count = in_chance(labels_N, seed), len(labels_N)
    if folds is None:
        folds = FOLDS if count <= MOST_FOLDED else 1
    if folds == 1:
        held = max(1, min(MOST_FOLDED, count // 5))
        return [(order_N[held:], order_N[:held])]
    judged_N = order_N[~_alone(labels_N)[order_N]]
    parts = np.array_split(judged_N, min(folds, len(judged_N)))
    return [(np.setdiff1d(order_N, part), part) for part in parts]
