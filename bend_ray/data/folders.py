"""Folders of image files, one a class, on any file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.fs
from numpy.typing import NDArray

from bend_ray.data.decoding import Encoded
from bend_ray.data.files import SPELLINGS, File, Files, Part, find_files, is_left_over, reading
from bend_ray.data.sources import Source, listed
from bend_ray.errors import DataError
from bend_ray.storage.filesystems import resolve
from bend_ray.storage.masking import masked, printable
from bend_ray.storage.uris import joined

ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".gif", ".bmp", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)


def part_folders(root: str) -> dict[Part, str]:
    """The folder of each part that there is below a root, by any of the part's names.

    DataError where the root cannot be read, lacks a training or a test part, or has one twice.
    """
    with reading(masked(root)):
        names = _folders(*resolve(root))
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
    for needed in ("train", "test"):
        if needed not in folders:
            raise DataError(
                f"dataset: expected folders train and test in {masked(root)}, each with a folder "
                f"of images for each class, got {listed(names) or 'none'}; check "
                "dataset.root"
            )
    return folders


def find_folder(uri: str) -> Files:
    """The image files of one part, ``uri/<class>/*``, at any depth below a class.

    DataError where there are none, or they cannot be read.
    """
    found = find_files([uri], None, ENDINGS, "dataset.root")
    inside = tuple(file for file in found if "/" in file.name)
    notes = [*found.notes]
    if strays := len(found.files) - len(inside):
        notes.append(f"left out of {masked(uri)}: {strays} images in no class's folder")
    if not inside:
        raise DataError(
            f"dataset: expected {masked(uri)} to hold a folder of images for each class, got "
            f"{len(found.files)} images in no folder"
        )
    others = set(_folders(*resolve(uri))) - {_class_of(file) for file in inside}
    if empty := sorted(name for name in others if not is_left_over(name)):
        notes.append(f"folders without an image in {masked(uri)} are no classes: {listed(empty)}")
    return Files(found.filesystem, inside, tuple(notes))


def _folders(filesystem: pyarrow.fs.FileSystem, path: str) -> list[str]:
    entries = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    return sorted(entry.base_name for entry in entries if not entry.is_file)


def _class_of(file: File) -> str:
    return file.name.partition("/")[0]


def open_folder(files: Files) -> Source:
    """The images of one part, whose classes are the names of their folders."""
    names = sorted({_class_of(file) for file in files})
    index = {name: label for label, name in enumerate(names)}
    labels_N = np.array([index[_class_of(file)] for file in files], dtype=np.int64)

    # A million names as objects take half a gigabyte, which each process would have.
    paths = pa.array([os.fsencode(file.path) for file in files], pa.large_binary())
    where, read = partial(_where, paths), partial(_read_files, files.filesystem, paths)
    return Source(labels_N, tuple(names), True, read, where, files.num_bytes, files.notes)


def _where(paths: pa.LargeBinaryArray, row: int) -> str:
    return f"{printable(os.fsdecode(paths[row].as_py()))} (row {row})"


def _read_files(
    filesystem: pyarrow.fs.FileSystem, paths: pa.LargeBinaryArray, rows: NDArray[np.int64]
) -> Iterator[tuple[str, Encoded]]:
    for row in rows.tolist():
        path = os.fsdecode(paths[row].as_py())
        with reading(printable(path)), filesystem.open_input_stream(path) as stream:
            content = stream.read()
        yield _where(paths, row), content
