"""Columns of a table, and the numbers a network is given of them.

A column is *raw* as numbers (float64, nan where missing; truth values are 0 and 1, dates seconds
since 1970) or as texts (empty where missing). What turns it into numbers is fitted on the training
part, is a part of the bag, and needs neither torch nor a frame.

Numbers become normal scores: their quantile among the training examples, as a standard normal has
it, straight between knots. So neither units nor outliers matter. Categories become one number a
level. What is missing is a number of its own where training examples lack it too.

Shape letters: N examples, F numbers of an example.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat, model_validator

from bend_ray.data.sources import listed
from bend_ray.errors import DataError
from bend_ray.process.lazy import pa
from bend_ray.spec import Spec
from bend_ray.storage.masking import cause

Kind = Literal["number", "boolean", "date", "category"]
MOST_LEVELS = 64
"""Of a category; rarer ones are like unseen ones."""
MOST_TEXTS = 256
"""Different texts of a column that is taken for a category."""
KNOTS = 64


class Column(Spec):
    """What becomes of a column; a level that no training example had becomes zeros."""

    kind: Kind
    """What it holds."""
    levels: tuple[str, ...] = ()
    """Of a category, sorted."""
    knots: tuple[FiniteFloat, ...] = ()
    """Of numbers: rising values,"""
    scores: tuple[FiniteFloat, ...] = ()
    """and what becomes of them."""
    missing: bool = False
    """Whether training examples lack it."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.knots) != len(self.scores) or bool(self.levels) == bool(self.knots):
            raise ValueError("expected levels, or as many scores as knots")
        if sorted(set(self.levels)) != list(self.levels) or sorted(self.knots) != list(self.knots):
            raise ValueError("expected levels and knots in order")
        return self

    @classmethod
    def fitted(cls, kind: Kind, values_N: NDArray[Any]) -> Column | None:
        """Of a raw training column; None where it says nothing: it never varies."""
        if kind == "category":
            names, counts = np.unique(values_N[values_N != ""], return_counts=True)
            missing = counts.sum() < len(values_N)
            frequent = np.sort(names[np.argsort(-counts, kind="stable")][:MOST_LEVELS])
            if len(frequent) + missing < 2:
                return None
            return cls(kind=kind, levels=tuple(frequent.tolist()), missing=missing)
        known = np.sort(values_N[~np.isnan(values_N)])
        missing = len(known) < len(values_N)
        if not len(known) or (known[0] == known[-1] and not missing):
            return None
        # As many quantiles, the ends included.
        places = np.linspace(0, len(known) - 1, min(len(known), KNOTS)).round().astype(np.int64)
        knots = np.unique(known[places])
        ranks = (np.searchsorted(known, knots) + np.searchsorted(known, knots, "right")) / 2
        normal = NormalDist()
        scores = tuple(normal.inv_cdf(share) for share in (ranks / len(known)).tolist())
        return cls(kind=kind, knots=tuple(knots.tolist()), scores=scores, missing=missing)

    @property
    def width(self) -> int:
        """Numbers it becomes."""
        return (len(self.levels) or 1) + self.missing

    def encode(self, values_N: NDArray[Any], out_NF: NDArray[np.float32]) -> None:
        """Write what becomes of raw values into ``width`` columns."""
        if self.kind == "category":
            values_N = values_N.astype(np.str_)
            lacking_N = values_N == ""
            levels = np.array(self.levels)
            place_N = np.searchsorted(levels, values_N).clip(max=len(levels) - 1)
            rows = np.flatnonzero(levels[place_N] == values_N)
            out_NF[rows, place_N[rows]] = 1.0
        else:
            lacking_N = np.isnan(values_N)
            out_NF[:, 0] = np.interp(values_N, self.knots, self.scores)
            out_NF[lacking_N, 0] = 0.0
        if self.missing:
            out_NF[:, -1] = lacking_N


Columns = Mapping[str, Column]


def encode(columns: Columns, raw: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """What a network is given of raw columns, ``(N, F)``: theirs side by side, in order."""
    count = len(next(iter(raw.values())))
    widths = [column.width for column in columns.values()]
    out_NF = np.zeros((count, sum(widths)), np.float32)
    for (name, column), end in zip(columns.items(), np.cumsum(widths).tolist(), strict=True):
        column.encode(raw[name], out_NF[:, end - column.width : end])
    return out_NF


def plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column whose texts, also those of a dictionary, are no views, which Arrow cannot take."""
    its = values.type
    if pa.types.is_dictionary(its) and pa.types.is_string_view(its.value_type):
        pairs = [(chunk.indices, chunk.dictionary.cast(pa.string())) for chunk in values.chunks]
        chunks = [pa.DictionaryArray.from_arrays(*pair) for pair in pairs]
        return pa.chunked_array(chunks, pa.dictionary(its.index_type, pa.string()))
    return values.cast(pa.string()) if pa.types.is_string_view(its) else values


def table_of(frame: Any, where: str) -> pa.Table:
    """The columns of a frame; DataError where one holds several types, or what Arrow does not."""
    try:
        # Else the rows' names, after a shuffle, would be a column.
        return pa.table(frame.reset_index(drop=True) if hasattr(frame, "iloc") else frame)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        # What it is about comes last, where pandas tells pyarrow's errors.
        told = ": ".join(map(str, reversed(error.args))).splitlines()[0]
        raise DataError(
            f"{where}: expected columns of different names, of one type each, got: {told}"
        ) from None


def cleaned(table: pa.Table, where: str) -> pa.Table:
    """A table that is given, without the names that pandas gives rows.

    DataError where columns have no name, or one twice.
    """
    names = table.column_names
    if "" in names:
        raise DataError(
            f"{where}: expected a name of every column, got none of column {names.index('') + 1}; "
            "name it, or leave it out, as to_csv(index=False) does"
        )
    if twice := [own for own, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"{where}: expected columns of different names, got {listed(twice)} twice; rename or "
            "drop them"
        )
    kept = [name for name in names if not re.fullmatch(r"__index_level_\d+__", name)]
    return pa.table([plain(table.column(name)) for name in kept], names=kept)


def kind_of_type(its: pa.DataType) -> Kind | None:
    """What a column of a type holds; texts are categories, None of what is no single value."""
    types = pa.types
    if types.is_boolean(its):
        return "boolean"
    if types.is_integer(its) or types.is_floating(its) or types.is_decimal(its):
        return "number"
    if types.is_timestamp(its) or types.is_date(its):
        return "date"
    texts = types.is_string(its) or types.is_large_string(its) or types.is_string_view(its)
    return "category" if texts or types.is_dictionary(its) or types.is_null(its) else None


def kind_of(values: pa.ChunkedArray, where: str) -> Kind | None:
    """What a column holds; None where it is empty, or holds more texts than a category has."""
    its, kind = values.type, kind_of_type(values.type)
    if kind is None:
        raise DataError(
            f"{where}: expected numbers, truth values, dates or texts, got {its}; drop it, or set "
            "it to ignore in dataset.columns"
        )
    if pa.types.is_null(its):
        return None
    if kind == "category" and not pa.types.is_dictionary(its):
        few = len(values.drop_null().unique()) <= min(MOST_TEXTS, len(values) / 2)
        return kind if few else None
    return kind


def raw_column(values: Any, kind: Kind, where: str, full: bool = False) -> NDArray[Any]:
    """A column as it is meant, of Arrow's, of numpy's, or a list.

    DataError where it is no such, or is to be ``full`` and lacks a value.
    """
    is_arrow = isinstance(values, pa.ChunkedArray | pa.Array)
    try:
        is_plain = not is_arrow and str(getattr(values, "dtype", "object")) == "object"
        if is_plain and len(values) > 1 and {*map(type, values)} > {bool}:
            raise TypeError("truth values among others")  # which Arrow makes numbers of
        array = values if is_arrow else pa.array(values, from_pandas=True)
        array = plain(array) if isinstance(array, pa.ChunkedArray) else array
        raw_N = _texts(array) if kind == "category" else _numbers(array, kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        each = [] if is_arrow else np.atleast_1d(np.asarray(values, dtype=object)).tolist()
        if len(each) > 1:  # of several types: what one means hangs on none beside it
            raw_N = np.concatenate([raw_column([value], kind, where) for value in each])
        elif isinstance(error, OverflowError):
            raw_N = raw_column([str(each[0])], kind, where)
        else:
            raise DataError(
                f"{where}: expected a column of kind {kind}, got: {cause(error)[:80]}"
            ) from None
    lacking_N = raw_N == "" if kind == "category" else np.isnan(raw_N)
    if full and lacking_N.any():
        raise DataError(
            f"{where}: expected a value in every row, got none in {lacking_N.sum()} of "
            f"{len(raw_N)}, the first in row {lacking_N.argmax()}; drop those rows"
        )
    return raw_N


def iso(seconds: float) -> str:
    """A date as people write it, in UTC: ``2026-11-30``, or with its time."""
    text = np.datetime_as_string(np.datetime64(round(seconds), "s"))
    return str(text).removesuffix("T00:00:00")


def _texts(values: pa.Array) -> NDArray[Any]:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_floating(values.type):
        # Whole numbers come as floats where some are missing, and from JSON as 5.0.
        known = pa.compute.if_else(pa.compute.is_nan(values), None, values)
        whole = known.cast(pa.int64(), safe=False)
        is_whole = pa.compute.equal(whole.cast(known.type, safe=False), known)
        values = pa.compute.if_else(is_whole, whole.cast(pa.string()), known.cast(pa.string()))
    texts = values.cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False)
    return np.asarray(texts, dtype=np.str_)


def filled(texts: pa.Array) -> pa.Array:
    """Texts without blanks around them, null where nothing is left."""
    texts = pa.compute.utf8_trim_whitespace(texts)
    return pa.compute.if_else(pa.compute.equal(texts, ""), None, texts)


def moments(texts: pa.Array) -> pa.Array:
    """Dates of ISO 8601; one without an offset is in UTC."""
    has_offset = pa.compute.match_substring_regex(texts, r"[T ].*(Z|[+-][0-9:]+)$")
    plain = pa.compute.if_else(has_offset, None, texts).cast(pa.timestamp("us"))
    with_offset = pa.compute.if_else(has_offset, texts, None).cast(pa.timestamp("us", "UTC"))
    return pa.compute.coalesce(plain, with_offset.cast(pa.timestamp("us")))


def _numbers(values: pa.Array, kind: Kind) -> NDArray[np.float64]:
    its = values.type
    if pa.types.is_dictionary(its):
        return _numbers(values.cast(its.value_type), kind)
    if values.null_count == len(values):
        return np.full(len(values), np.nan)
    is_kind = kind_of_type(its)
    if is_kind == {"number": "boolean", "date": "number"}.get(kind):
        raise ValueError(f"{its}, such as {values.drop_null()[0]}")
    if is_kind == "category":
        array = _parsed(filled(values), kind)
    elif kind == "date":
        array = _seconds(values)
    else:
        values = values.cast(pa.uint8()) if is_kind == "boolean" else values
        array = values.cast(pa.float64(), safe=not pa.types.is_integer(values.type))
    found: NDArray[np.float64] = array.to_numpy(zero_copy_only=False)
    if np.isinf(found).any():
        raise ValueError("infinity; replace it, or leave it empty")
    if kind == "boolean" and (others := found[~np.isin(found, (0, 1)) & ~np.isnan(found)]).size:
        raise ValueError(f"{others[0]:g}; give true, false, 1 or 0")
    return found


def _parsed(texts: pa.Array, kind: Kind) -> pa.Array:
    """Of texts; truth values may be 1 and 0."""
    if kind == "number":
        return texts.cast(pa.float64())
    if kind == "date":
        return _seconds(moments(texts))
    is_number = pa.compute.match_substring_regex(texts, "^-?[0-9.]+$")
    numbers = pa.compute.if_else(is_number, texts, None).cast(pa.float64())
    others = pa.compute.if_else(is_number, None, texts).cast(pa.bool_())
    return pa.compute.coalesce(numbers, others.cast(pa.uint8()).cast(pa.float64()))


def _seconds(values: pa.Array) -> pa.Array:
    """Since 1970, of dates, to the microsecond."""
    if pa.types.is_timestamp(values.type):  # whose nanoseconds may go
        values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
    micros = values.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64(), safe=False)
    return pa.compute.divide(micros, 1e6)
