"""Rows of a table: raw columns of what a user gives, their order, how often each counts, folds.

Shape letters: N examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bend_ray.data.columns import Kind, kind_of, raw_column, table_of
from bend_ray.data.splits import Stratified
from bend_ray.errors import BendError

MOST_FOLDED = 5000
"""Examples of which every member's own fold validates it; of more a part of them is held out."""
FOLDS = 4
"""Of as many."""
FINE_WEIGHTS = 4
"""Rows an example, on average, that weights which are no whole numbers are rounded to."""

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
    except BendError as error:
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


def in_order(raw: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Rows in an order that their content decides: a fit does not hang on how they come."""
    mixed_N = np.zeros(len(labels), np.uint64)
    for values in (*raw.values(), *labels.reshape(len(labels), -1).T):
        if values.dtype.kind == "U":
            _, values = np.unique(values, return_inverse=True)
        bits_N = (values.astype(np.float64) + 0.0).view(np.uint64)
        mixed_N = (mixed_N ^ bits_N) * np.uint64(0x9E3779B97F4A7C15)
        mixed_N ^= mixed_N >> np.uint64(29)
    return np.argsort(mixed_N, kind="stable")


def repeated(rows: NDArray[np.int64], weights: Any) -> NDArray[np.int64]:
    """Rows as often as their weights say: whole numbers as they are, others rounded finely."""
    if weights is None:
        return rows
    weights_N = np.asarray(weights)[rows]
    if (weights_N != np.rint(weights_N)).any():
        weights_N = weights_N * FINE_WEIGHTS * len(rows) / weights_N.sum()
    # Systematic resampling: each row its weight, rounded down or up.
    ends = np.floor(np.cumsum(weights_N) + 0.5).astype(np.int64)
    return rows.repeat(np.diff(ends, prepend=0))


def folds_of(
    labels: NDArray[Any], folds: int | None, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Training and validation rows, of each fold."""
    count = len(labels)
    chance_N = np.random.default_rng(seed).permutation(count)
    table = pa.table({"y": labels.reshape(count, -1)[:, 0]})
    order_N, _ = Stratified().order(table, "y", chance_N)
    if folds is None:
        folds = FOLDS if count <= MOST_FOLDED else 1
    if folds == 1:
        held = max(1, min(MOST_FOLDED, count // 5))
        return [(order_N[held:], order_N[:held])]
    parts = np.array_split(order_N, min(folds, count))
    return [(np.setdiff1d(order_N, part), part) for part in parts]
