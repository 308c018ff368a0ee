"""Labelled images in Parquet as Hugging Face lays them out, on any file system.

A column ``struct<bytes, path>`` holds encoded images, an integer column their classes; the names
of the classes stand in the schema's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bend_ray.classifiers.decoding import OpenImage, Source, checked_labels, open_bytes
from bend_ray.errors import DataError, StoreError
from bend_ray.filesystems import resolve
from bend_ray.masking import cause, printable

BATCH_ROWS = 256
MOST_IMAGES = 2**26
"""In a file; a few bytes can say that they are more than memory could hold labels of."""


@dataclass(frozen=True)
class Columns:
    """The names of the two columns."""

    image: str = "image"
    label: str = "label"


def list_files(uri: str) -> tuple[pyarrow.fs.FileSystem, tuple[str, ...]]:
    """The Parquet files that a path or URI names: itself, or those anywhere below it.

    Raises:
        DataError: there is none.
    """
    try:
        filesystem, path = resolve(uri)
        if filesystem.get_file_info(path).type == pyarrow.fs.FileType.File:
            return filesystem, (path,)
        selector = pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=True)
        found = [info.path for info in filesystem.get_file_info(selector)]
    except (OSError, pa.ArrowException, StoreError) as error:
        raise DataError(f"dataset: cannot read {uri}: {cause(error)}") from None
    files = tuple(sorted(path for path in found if path.endswith(".parquet")))
    if not files:
        raise DataError(
            f"dataset: expected a Parquet file or a folder of them at {uri}, got none; check "
            "dataset.train, dataset.validation and dataset.test"
        )
    return filesystem, files


def open_parquet(uri: str, columns: Columns, class_names: tuple[str, ...] | None = None) -> Source:
    """The images of one part.

    Args:
        uri: of a file, or of a folder of files.
        columns: where images and labels are.
        class_names: those of the training part; None to take what the files say, else the
            numbers from 0 to the largest label.

    Raises:
        DataError: files that cannot be read or have other columns, labels that are missing or
            out of range.
    """
    filesystem, files = list_files(uri)
    labels, told = [], class_names
    for path in files:
        labels_N, names = _read_labels(filesystem, path, columns)
        told = told or names
        if told:
            checked_labels(labels_N, len(told), partial(_row, path))
        labels.append(labels_N)
    labels_N = np.concatenate(labels)
    if not len(labels_N):
        raise DataError(f"dataset: expected images in {uri}, got none")
    if told is None:
        # A class has an image at least, so a larger number is no class; of 2**40 names no memory.
        classes = min(int(labels_N.max()) + 1, len(labels_N))
        checked_labels(labels_N, classes, lambda row: f"{uri} row {row}")
        told = tuple(map(str, range(classes)))
    return Source(labels_N, told, partial(_read_images, filesystem, files, columns))


def _row(path: str, row: int) -> str:
    return f"{path} row {row}"


@contextmanager
def _file(filesystem: pyarrow.fs.FileSystem, path: str) -> Iterator[pq.ParquetFile]:
    try:
        with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
            yield file
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"dataset: cannot read {path} as Parquet: {cause(error)}") from None


def _read_labels(
    filesystem: pyarrow.fs.FileSystem, path: str, columns: Columns
) -> tuple[NDArray[np.int64], tuple[str, ...] | None]:
    """A file's labels, and what it says the classes are called."""
    with _file(filesystem, path) as file:
        _check_schema(file.schema_arrow, path, columns)
        if file.metadata.num_rows > MOST_IMAGES:
            raise DataError(
                f"dataset: expected at most {MOST_IMAGES:,} images, {path} says it has "
                f"{file.metadata.num_rows:,}"
            )
        column = file.read([columns.label]).column(columns.label)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(
                f"dataset: expected a label, {_row(path, row)} has none; remove the row"
            )
        labels_N = column.cast(pa.int64()).to_numpy()
        names = _class_names(file.schema_arrow, columns.label)
    if names and len(set(names)) < len(names):
        raise DataError(f"dataset: expected classes of different names, {path} has one twice")
    return labels_N, names


def _check_schema(schema: pa.Schema, path: str, columns: Columns) -> None:
    missing = [name for name in (columns.image, columns.label) if name not in schema.names]
    if missing:
        raise DataError(
            f"dataset: expected columns {columns.image} and {columns.label} in {path}, got "
            f"{', '.join(schema.names)}; set dataset.image_column and dataset.label_column"
        )
    image, label = schema.field(columns.image).type, schema.field(columns.label).type
    if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise DataError(
            f"dataset: expected column {columns.image} of {path} to be struct<bytes, path>, "
            f"got {image}"
        )
    if not pa.types.is_integer(label):
        raise DataError(
            f"dataset: expected column {columns.label} of {path} to hold integers, got {label} "
            "from row 0 on; number the classes from 0"
        )


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """``info.features.<label>.names`` of the Hugging Face metadata, where it is there."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])
        names = told["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _read_images(
    filesystem: pyarrow.fs.FileSystem,
    files: tuple[str, ...],
    columns: Columns,
    rows: NDArray[np.int64],
) -> Iterator[tuple[str, OpenImage]]:
    """The encoded images of ascending ``rows``, counted over all files; a batch in memory."""
    offset = 0
    for path in files:
        with _file(filesystem, path) as file:
            num_rows = file.metadata.num_rows
            wanted = _between(rows, offset, num_rows)
            yield from _file_images(file, path, columns.image, wanted)
        offset += num_rows


def _between(rows: NDArray[np.int64], start: int, count: int) -> NDArray[np.int64]:
    """Those of ascending ``rows`` in ``[start, start + count)``, counted from ``start``."""
    first, last = np.searchsorted(rows, [start, start + count])
    return rows[first:last] - start


def _file_images(
    file: pq.ParquetFile, path: str, column: str, rows: NDArray[np.int64]
) -> Iterator[tuple[str, OpenImage]]:
    start = 0
    for batch in file.iter_batches(BATCH_ROWS, columns=[column]) if len(rows) else ():
        for row in _between(rows, start, len(batch)).tolist():
            image = batch.column(0)[row].as_py() or {}
            where = _row(path, start + row)
            if image.get("path"):
                where += f" ({printable(image['path'])})"
            if image.get("bytes") is None:
                raise DataError(
                    f"dataset: expected the image itself in {where}, got none; files that only "
                    "name their images must be written again with the images embedded"
                )
            yield where, partial(open_bytes, image["bytes"])
        start += len(batch)
