"""Labelled images in their files: in Parquet, in folders, and as torchvision has them.

Parquet is as Hugging Face lays it out, on any file system: a column ``struct<bytes, path>`` holds
encoded images, one of integers, texts or truth values their classes; what integers are called
stands in the schema's metadata. Of folders each is a class.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bend_ray.data.columns import kind_of_type
from bend_ray.data.files import SPELLINGS, File, Files, Part, find_files, is_left_over, reading
from bend_ray.data.sources import Images, Source, alike, classes_of, listed
from bend_ray.errors import DataError
from bend_ray.process.lazy import pa
from bend_ray.storage.filesystems import resolve
from bend_ray.storage.masking import masked, printable
from bend_ray.storage.uris import joined

if TYPE_CHECKING:
    from bend_ray.data.datasets import ImageParquet

PARQUET = (".parquet", ".parq", ".pq")
MOST_IMAGES = 2**26
"""In a file; a few bytes can say that they are more than memory could hold labels of."""
BATCH_BYTES = 8 * 2**20
"""Of a column in memory at a time."""
BUFFER_BYTES = 4 * 2**20
MOST_BATCH_ROWS = 256
PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".gif", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)
_TRAIN_TEST: dict[Part, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
_SPLITS: dict[Part, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
TORCHVISION: dict[str, dict[Part, dict[str, Any]]] = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"), _TRAIN_TEST),
    **dict.fromkeys(("STL10", "Food101"), _SPLITS),
    "Flowers102": _SPLITS | {"validation": {"split": "val"}},
    "OxfordIIITPet": _SPLITS | {"train": {"split": "trainval"}},
}
"""What each set's class takes for each of its parts."""
SETS_OF_FILES = {
    "Flowers102": "_image_files",
    "OxfordIIITPet": "_images",
    "Food101": "_image_files",
}
"""Where those that consist of picture files name them."""


def open_parquet(spec: ImageParquet, files: Files) -> Source:
    """The images of one part, whose files may number classes each in its own way.

    DataError where files cannot be read or have other columns, labels are missing or out of range,
    or some files alone name them.
    """
    names = [printable(file.path) for file in files]
    parts = [_open(spec, files.filesystem, file.path) for file in files]
    parts = alike(parts, names)
    labels_N = np.concatenate([part.labels_N for part in parts])
    if not len(labels_N):
        raise DataError(f"dataset: expected images in {names[0]}, got none")
    starts = [0, *accumulate(len(part.labels_N) for part in parts)]

    def where(row: int) -> str:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return parts[file].where(row - starts[file])

    def read(rows: NDArray[np.int64]) -> Images:
        for part, start in zip(parts, starts, strict=False):
            yield from part.read(_between(rows, start, len(part.labels_N)))

    found = (labels_N, parts[0].class_names, parts[0].named, where, files.notes)
    return Source(*found, read=read, num_bytes=files.num_bytes, run=parts[0].run)


@contextmanager
def _file(filesystem: pa.fs.FileSystem, path: str) -> Iterator[pa.parquet.ParquetFile]:
    with (
        reading(f"{printable(path)} as Parquet"),
        filesystem.open_input_file(path) as stream,
        # Else whole row groups are read ahead, and kept.
        pa.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES) as file,
    ):
        yield file


def _open(spec: ImageParquet, filesystem: pa.fs.FileSystem, path: str) -> Source:
    image, label = spec.image_column, spec.label_column
    where = partial("{} row {}".format, printable(path))
    with _file(filesystem, path) as file:
        _check_schema(file.schema_arrow, path, image, label)
        rows = file.metadata.num_rows
        if rows > MOST_IMAGES:
            raise DataError(
                f"dataset: expected at most {MOST_IMAGES:,} images, {path} says it has {rows:,}"
            )
        run = -(-rows // max(1, file.num_row_groups))
        column = file.read([label]).column(label)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise DataError(f"dataset: expected a label, {where(row)} has none; remove the row")
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_integer(column.type):
            given = class_names_of(file.schema_arrow, label) or spec.class_names
            found = classes_of(column.cast(pa.int64()).to_numpy(), given, printable(path))
        else:
            # Truth values are called false and true.
            texts = column.cast(pa.string()).combine_chunks().dictionary_encode()
            # In an order of the names' own, whichever row comes first.
            rank, names, _ = classes_of(np.array(texts.dictionary.to_pylist(), str), None, "")
            found = rank[texts.indices.to_numpy()], names, True

    def read(rows: NDArray[np.int64]) -> Images:
        with _file(filesystem, path) as file:
            yield from _read_images(file, where, image, rows)

    return Source(*found, where, read=read, run=run)


def _check_schema(schema: pa.Schema, path: str, images: str, labels: str) -> None:
    if not {images, labels} <= {*schema.names}:
        raise DataError(
            f"dataset: expected columns {images} and {labels} in {path}, got "
            f"{', '.join(schema.names)}; set dataset.image_column and dataset.label_column"
        )
    image, label = schema.field(images).type, schema.field(labels).type
    if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
        raise DataError(
            f"dataset: expected column {images} of {path} to be struct<bytes, path>, got {image}"
        )
    plain = label.value_type if pa.types.is_dictionary(label) else label
    if not pa.types.is_integer(plain) and kind_of_type(plain) not in ("boolean", "category"):
        raise DataError(
            f"dataset: expected column {labels} of {path} to hold classes as integers or "
            f"texts, got {label}"
        )


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
    file: pa.parquet.ParquetFile, where: Callable[[int], str], column: str, rows: NDArray[np.int64]
) -> Images:
    """The encoded images of ascending ``rows``; a batch in memory, of about ``BATCH_BYTES``."""
    first = 0
    for group in range(file.num_row_groups):
        metadata = file.metadata.row_group(group)
        chunks = [metadata.column(index) for index in range(metadata.num_columns)]
        sizes = [
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema.startswith(f"{column}.")
        ]
        count = metadata.num_rows
        fitting = BATCH_BYTES * count // max(1, sum(sizes))
        wanted, start = _between(rows, first, count), 0
        batches = file.iter_batches(
            max(1, min(MOST_BATCH_ROWS, fitting)),
            row_groups=[group],
            columns=[column],
            use_threads=False,
        )
        for batch in batches if len(wanted) else ():
            for row in _between(wanted, start, len(batch)).tolist():
                place = where(first + start + row)
                value = batch.column(0)[row].as_py() or {}
                if value.get("path"):
                    place += f" ({printable(str(value['path']))})"
                if not isinstance(content := value.get("bytes"), bytes):
                    raise DataError(
                        f"dataset: expected the image itself in {place}, got none; files that only "
                        "name their images must be written again with the images embedded"
                    )
                yield place, content
            start += len(batch)
        first += count


def part_folders(root: str) -> dict[Part, str]:
    """The folder of each part that there is below a root, by any of the part's names.

    DataError where the root cannot be read, lacks a training or a test part, or has one twice.
    """
    with reading(masked(root)):
        names = _folders(root)
    folders: dict[Part, str] = {}
    for part, spellings in SPELLINGS.items():
        found = [name for name in names if name.lower() in spellings]
        if len(found) > 1:
            raise DataError(
                f"dataset: expected one folder of the {part} part below {masked(root)}, got "
                f"{' and '.join(found)}; remove or rename all but one"
            )
        if found:
            folders[part] = joined(root, found[0])
    if not {"train", "test"} <= folders.keys():
        raise DataError(
            f"dataset: expected folders train and test in {masked(root)}, each with a folder "
            f"of images for each class, got {listed(names) or 'none'}; check dataset.root"
        )
    return folders


def find_folder(uri: str) -> Files:
    """The image files of one part, ``uri/<class>/*``, at any depth below a class.

    DataError where there are none, or they cannot be read.
    """
    found = find_files(uri, None, PICTURES, "dataset.root")
    inside = tuple(file for file in found if "/" in file.name)
    notes = [*found.notes]
    if strays := len(found.files) - len(inside):
        notes.append(f"left out of {masked(uri)}: {strays} images in no class's folder")
    if not inside:
        raise DataError(
            f"dataset: expected {masked(uri)} to hold a folder of images for each class, got "
            f"{len(found.files)} images in no folder"
        )
    others = set(_folders(uri)) - {_class_of(file) for file in inside}
    if empty := sorted(name for name in others if not is_left_over(name)):
        notes.append(f"folders without an image in {masked(uri)} are no classes: {listed(empty)}")
    return Files(found.filesystem, inside, tuple(notes), named=True)


def _folders(uri: str) -> list[str]:
    filesystem, path = resolve(uri)
    entries = filesystem.get_file_info(pa.fs.FileSelector(path, allow_not_found=True))
    return sorted(entry.base_name for entry in entries if not entry.is_file)


def _class_of(file: File) -> str:
    return file.name.partition("/")[0]


def open_folder(files: Files) -> Source:
    """The images of one part, whose classes are the names of their folders."""
    names, labels_N = np.unique([_class_of(file) for file in files], return_inverse=True)
    read = _of_files(files.filesystem, [file.path for file in files])
    read |= {"notes": files.notes, "num_bytes": files.num_bytes}
    return Source(labels_N, tuple(names.tolist()), True, **read)


def open_torchvision(name: str, part: Part, root: Path, download: bool) -> Source:
    """One part of a set that torchvision knows by name; DataError where its files cannot be had."""
    import torchvision.datasets

    options = TORCHVISION[name][part]
    try:
        images = getattr(torchvision.datasets, name)(str(root), download=download, **options)
    except (RuntimeError, OSError) as error:
        advice = "set dataset.download=true, or copy them there"
        if download:
            advice = "check the network, or download it elsewhere and copy the folder"
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"dataset {name}: expected torchvision's files below {root} ({reason}); {advice}"
        ) from None
    # Under one of three names, of which two are private.
    labels = next(
        getattr(images, n) for n in ("targets", "labels", "_labels") if hasattr(images, n)
    )
    labels_N, names = np.asarray(labels, dtype=np.int64), tuple(map(str, images.classes))
    if name in SETS_OF_FILES:
        # Torchvision's own way from file to pixels drops transparency and orientation.
        paths = [str(path) for path in getattr(images, SETS_OF_FILES[name])]
        return Source(labels_N, names, True, **_of_files(pa.fs.LocalFileSystem(), paths))
    where = partial("{} {} row {}".format, name, part)

    def read(rows: NDArray[np.int64]) -> Images:
        yield from ((where(row), images[row][0]) for row in rows.tolist())

    return Source(labels_N, names, True, where, read=read)


def _of_files(filesystem: pa.fs.FileSystem, paths: Sequence[str]) -> dict[str, Any]:
    """What a ``Source`` of image files has: where each is, and what reads them."""
    # A million names as objects take half a gigabyte, which each process would have.
    held = pa.array(map(os.fsencode, paths), pa.large_binary())

    def where(row: int) -> str:
        return f"{printable(os.fsdecode(held[row].as_py()))} (row {row})"

    def read(rows: NDArray[np.int64]) -> Images:
        for row in rows.tolist():
            path = os.fsdecode(held[row].as_py())
            with reading(printable(path)), filesystem.open_input_stream(path) as stream:
                content = stream.read()
            yield where(row), content

    return {"where": where, "read": read}
