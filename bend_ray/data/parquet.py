"""Labelled images in Parquet as Hugging Face lays it out, on any file system.

A column ``struct<bytes, path>`` holds encoded images. A column of integers, texts or truth values
holds their classes; what integers are called stands in the schema's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bend_ray.data.decoding import Encoded
from bend_ray.data.files import Files, reading
from bend_ray.data.sources import Source, by_name, classes_of, joint_classes
from bend_ray.errors import DataError
from bend_ray.storage.masking import printable

ENDINGS = (".parquet", ".parq", ".pq")
MOST_IMAGES = 2**26
"""In a file; a few bytes can say that they are more than memory could hold labels of."""
BATCH_BYTES = 8 * 2**20
"""Of a column in memory at a time."""
BUFFER_BYTES = 4 * 2**20
MOST_BATCH_ROWS = 256


def open_parquet(
    files: Files, image: str, label: str, class_names: tuple[str, ...] | None
) -> Source:
    """The images of one part, whose files may number classes each in its own way.

    DataError where files cannot be read or have other columns, labels are missing or out of range,
    or some files alone name them.
    """
    parts = [_open(files.filesystem, file.path, image, label, class_names) for file in files]
    names, first = joint_classes(parts), printable(files.files[0].path)
    parts = [
        by_name(part, printable(file.path), names, parts[0].named, like=first)
        for part, file in zip(parts, files, strict=True)
    ]
    labels_N = np.concatenate([part.labels_N for part in parts])
    if not len(labels_N):
        raise DataError(f"dataset: expected images in {first}, got none")
    starts = [0, *accumulate(len(part.labels_N) for part in parts)]

    def where(row: int) -> str:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return parts[file].where(row - starts[file])

    def read(rows: NDArray[np.int64]) -> Iterator[tuple[str, Encoded]]:
        for part, start in zip(parts, starts, strict=False):
            yield from part.read(_between(rows, start, len(part.labels_N)))

    notes, run = files.notes, parts[0].run
    return Source(labels_N, names, parts[0].named, read, where, files.num_bytes, notes, run)


@contextmanager
def _file(filesystem: pyarrow.fs.FileSystem, path: str) -> Iterator[pq.ParquetFile]:
    with (
        reading(f"{printable(path)} as Parquet"),
        filesystem.open_input_file(path) as stream,
        # Else whole row groups are read ahead, and kept.
        pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES) as file,
    ):
        yield file


def _open(
    filesystem: pyarrow.fs.FileSystem,
    path: str,
    image: str,
    label: str,
    class_names: tuple[str, ...] | None,
) -> Source:
    """The images of one file."""
    where = partial("{} row {}".format, printable(path))
    with _file(filesystem, path) as file:
        _check_schema(file.schema_arrow, path, image, label)
        if file.metadata.num_rows > MOST_IMAGES:
            raise DataError(
                f"dataset: expected at most {MOST_IMAGES:,} images, {path} says it has "
                f"{file.metadata.num_rows:,}"
            )
        run = -(-file.metadata.num_rows // max(1, file.num_row_groups))
        column = file.read([label]).column(label)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(f"dataset: expected a label, {where(row)} has none; remove the row")
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_integer(column.type):
            given = class_names_of(file.schema_arrow, label) or class_names
            found = classes_of(column.cast(pa.int64()).to_numpy(), given, printable(path))
        else:
            found = _texts(column)

    def read(rows: NDArray[np.int64]) -> Iterator[tuple[str, Encoded]]:
        with _file(filesystem, path) as file:
            yield from _read_images(file, where, image, rows)

    return Source(*found, read, where, run=run)


def _texts(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], tuple[str, ...], bool]:
    """Labels that are names: texts, and truth values as ``false`` and ``true``."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    # In an order of the names' own, whichever row comes first.
    rank, names, _ = classes_of(np.array(encoded.dictionary.to_pylist(), dtype=str), None, "")
    return rank[encoded.indices.to_numpy()], names, True


def _check_schema(schema: pa.Schema, path: str, images: str, labels: str) -> None:
    missing = [name for name in (images, labels) if name not in schema.names]
    if missing:
        raise DataError(
            f"dataset: expected columns {images} and {labels} in {path}, got "
            f"{', '.join(schema.names)}; set dataset.image_column and dataset.label_column"
        )
    image, label = schema.field(images).type, schema.field(labels).type
    if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise DataError(
            f"dataset: expected column {images} of {path} to be struct<bytes, path>, got {image}"
        )
    if not _holds_classes(label):
        raise DataError(
            f"dataset: expected column {labels} of {path} to hold classes as integers or "
            f"texts, got {label}"
        )


def _holds_classes(label: pa.DataType) -> bool:
    label = label.value_type if pa.types.is_dictionary(label) else label
    kinds = pa.types.is_integer, pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string
    return any(check(label) for check in kinds)


def class_names_of(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """``info.features.<label>.names`` of the Hugging Face metadata, where it is there."""
    try:
        description = json.loads((schema.metadata or {})[b"huggingface"])
        names = description["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _between(rows: NDArray[np.int64], start: int, count: int) -> NDArray[np.int64]:
    """Those of ascending ``rows`` in ``[start, start + count)``, counted from ``start``."""
    first, last = np.searchsorted(rows, [start, start + count])
    return rows[first:last] - start


def _read_images(
    file: pq.ParquetFile, where: Callable[[int], str], column: str, rows: NDArray[np.int64]
) -> Iterator[tuple[str, Encoded]]:
    """The encoded images of ascending ``rows``; a batch in memory."""
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        wanted, start = _between(rows, first, count), 0
        batches = file.iter_batches(
            _batch_rows(file, group, column),
            row_groups=[group],
            columns=[column],
            use_threads=False,
        )
        for batch in batches if len(wanted) else ():
            for row in _between(wanted, start, len(batch)).tolist():
                yield _image(batch.column(0)[row].as_py(), where(first + start + row))
            start += len(batch)
        first += count


def _batch_rows(file: pq.ParquetFile, group: int, column: str) -> int:
    """As many rows as take about ``BATCH_BYTES``."""
    metadata = file.metadata.row_group(group)
    chunks = [metadata.column(index) for index in range(metadata.num_columns)]
    inside = [c for c in chunks if c.path_in_schema.startswith(f"{column}.")]
    row_bytes = sum(c.total_uncompressed_size for c in inside) / max(1, metadata.num_rows)
    return max(1, min(MOST_BATCH_ROWS, int(BATCH_BYTES / max(1.0, row_bytes))))


def _image(value: dict[str, object] | None, where: str) -> tuple[str, Encoded]:
    value = value or {}
    if value.get("path"):
        where += f" ({printable(str(value['path']))})"
    content = value.get("bytes")
    if not isinstance(content, bytes):
        raise DataError(
            f"dataset: expected the image itself in {where}, got none; files that only "
            "name their images must be written again with the images embedded"
        )
    return where, content
