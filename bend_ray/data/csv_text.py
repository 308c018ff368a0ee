"""CSV, with a header, commas and UTF-8: values are the texts that stand there till a kind is known.

So a category is the same in a file to train on, in one to predict and in JSON, whatever rows are
beside it. What is missing is left empty; NA and null are texts.
"""

from __future__ import annotations

from collections.abc import Container
from contextlib import suppress
from typing import Any

from bend_ray.data.columns import filled, moments
from bend_ray.data.sources import listed
from bend_ray.errors import DataError
from bend_ray.process.lazy import pa


def as_texts(its: pa.DataType | None = None) -> pa.csv.ConvertOptions:
    """How columns are read, as texts or as another type: null where they are empty."""
    return pa.csv.ConvertOptions(
        default_column_type=its or pa.string(), null_values=[""], strings_can_be_null=True
    )


def read_csv(source: Any, name: str) -> pa.Table:
    """The rows of an open file as texts, null where they are empty; ``name`` is for messages.

    DataError where it has other delimiters or another encoding, pa.ArrowInvalid where it is no CSV.
    """
    if (begin := source.read(2)) in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{name}: expected UTF-8, got UTF-16; convert it, as by iconv -f utf-16")
    if not begin:
        raise DataError(f"{name}: expected a header and rows, got an empty file")
    source.seek(0)
    alone = f"{name}: expected commas between columns, got a header without one"
    # A text in quotes may have lines.
    lines, strange, texts = pa.csv.ParseOptions(newlines_in_values=True), [], []
    try:
        table = pa.csv.read_csv(source, None, lines, as_texts(pa.binary()))
        names = table.column_names
    except UnicodeDecodeError:
        names, strange = [], ["the header"]
    except pa.ArrowInvalid as error:
        if "Expected 1 columns" not in str(error):
            raise
        raise DataError(f"{alone}; is its delimiter ; or a tab? rewrite it") from None
    for own, values in zip(names, table.columns if names else [], strict=True):
        try:
            texts.append(values.cast(pa.string()))
        except pa.ArrowInvalid:
            strange.append(own)
    if strange:
        raise DataError(
            f"{name}: expected UTF-8, got other bytes in {listed(strange)}; is it Latin-1? convert "
            "it, as by iconv -f latin1 -t utf-8"
        )
    if len(names) == 1 and (found := [sign for sign in ";\t|" if sign in names[0]]):
        raise DataError(f"{alone}; is its delimiter {found[0]!r}? rewrite it")
    return pa.table(texts, names=names)


def typed(table: pa.Table, kept: Container[str]) -> pa.Table:
    """Columns of texts as what all their values look like, but for those that are ``kept``."""
    columns = [
        values if name in kept or not pa.types.is_string(values.type) else _typed(values)
        for name, values in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.table(columns, names=table.column_names)


def _typed(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts as whole numbers, numbers, truth values or dates, where all of them are such."""
    texts = filled(values)
    if texts.null_count == len(texts):
        return pa.chunked_array([pa.nulls(len(texts))])
    # As in 01234, or more than 64 bits hold: the digits of a code.
    codes = pa.compute.match_substring_regex(texts, "^[-+]?(0[0-9xX]|[0-9]{20,}$)")
    if pa.compute.any(codes).as_py():
        return values
    for its in (pa.int64(), pa.float64(), pa.bool_()):
        with suppress(pa.ArrowInvalid):
            return texts.cast(its)
    with suppress(pa.ArrowInvalid):
        return moments(texts)
    return values
