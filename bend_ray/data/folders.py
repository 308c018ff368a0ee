"""Labelled image files: in folders, one a class, on any file system, or as torchvision has them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bend_ray.data.files import SPELLINGS, File, Files, Part, find_files, is_left_over, reading
from bend_ray.data.sources import Images, Source, listed
from bend_ray.errors import DataError
from bend_ray.process.lazy import pa
from bend_ray.storage.filesystems import resolve
from bend_ray.storage.masking import masked, printable
from bend_ray.storage.uris import joined

ENDINGS = (
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
    found = find_files(uri, None, ENDINGS, "dataset.root")
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
    paths = [file.path for file in files]
    source = _of_files(files.filesystem, paths, labels_N, tuple(names.tolist()))
    return replace(source, notes=files.notes, num_bytes=files.num_bytes)


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
        return _of_files(pa.fs.LocalFileSystem(), paths, labels_N, names)
    where = partial("{} {} row {}".format, name, part)

    def read(rows: NDArray[np.int64]) -> Images:
        yield from ((where(row), images[row][0]) for row in rows.tolist())

    return Source(labels_N, names, True, where, read=read)


def _of_files(
    filesystem: pa.fs.FileSystem,
    paths: Sequence[str],
    labels_N: NDArray[np.int64],
    class_names: tuple[str, ...],
) -> Source:
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

    return Source(labels_N, class_names, True, where, read=read)
