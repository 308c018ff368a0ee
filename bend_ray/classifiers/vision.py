"""Labelled images as torchvision finds them: folders of classes, and the sets it knows by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torchvision.datasets
from numpy.typing import NDArray
from PIL import Image

from bend_ray.classifiers.decoding import OpenImage, Source, open_bytes
from bend_ray.errors import DataError

Part = Literal["train", "validation", "test"]

TRAIN_TEST: dict[Part, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
SPLITS: dict[Part, dict[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
PARTS: dict[str, dict[Part, dict[str, Any]]] = {
    "MNIST": TRAIN_TEST,
    "FashionMNIST": TRAIN_TEST,
    "CIFAR10": TRAIN_TEST,
    "CIFAR100": TRAIN_TEST,
    "STL10": SPLITS,
    "Flowers102": SPLITS | {"validation": {"split": "val"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Food101": SPLITS,
}
"""What each set's class takes for each of its parts."""


def open_folder(path: Path, class_names: tuple[str, ...] | None = None) -> Source:
    """The images of ``path/<class>/*``, at any depth below a class.

    Args:
        path: the folder of one part.
        class_names: those of the training part; None to take the folders' names in their order.

    Raises:
        DataError: no such folder, no images in a class, or a class the training part lacks.
    """
    require_folder(path)
    try:
        folder = torchvision.datasets.ImageFolder(str(path), allow_empty=class_names is not None)
    except (FileNotFoundError, OSError) as error:
        raise DataError(
            f"dataset: expected {path} to hold a folder of images for each class; "
            f"{str(error).partition(chr(10))[0]}"
        ) from None
    names = class_names or tuple(folder.classes)
    if unknown := [name for name in folder.classes if name not in names]:
        raise DataError(
            f"dataset: expected the classes of the training part in {path}, got {unknown[0]} "
            f"besides; its classes are {', '.join(names[:10])}"
        )
    if not folder.samples:
        raise DataError(f"dataset: expected images in {path}, got none")
    numbers = np.array([names.index(name) for name in folder.classes], dtype=np.int64)
    labels_N = numbers[[label for _, label in folder.samples]]
    return Source(labels_N, names, partial(_read_files, [file for file, _ in folder.samples]))


def require_folder(path: Path) -> None:
    """Refuse what is no folder.

    Raises:
        DataError: with what was expected there.
    """
    if not path.is_dir():
        raise DataError(
            f"dataset: expected a folder {path} that holds a folder of images for each class, "
            "got none; check dataset.root"
        )


def _read_files(files: Sequence[str], rows: NDArray[np.int64]) -> Iterator[tuple[str, OpenImage]]:
    for row in rows.tolist():
        yield f"{files[row]} (row {row})", partial(_open_file, files[row])


def _open_file(file: str) -> Image.Image:
    return open_bytes(Path(file).read_bytes())


def open_torchvision(name: str, part: Part, root: Path, download: bool) -> Source:
    """One part of a set that torchvision knows by name.

    Raises:
        DataError: its files are neither there nor can be had.
    """
    try:
        images = getattr(torchvision.datasets, name)(
            str(root), download=download, **PARTS[name][part]
        )
    except (RuntimeError, OSError) as error:
        advice = (
            "check the network, or download it elsewhere and copy the folder"
            if download
            else "set dataset.download=true, or copy them there"
        )
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"dataset {name}: expected torchvision's files below {root} ({reason}); {advice}"
        ) from None
    return Source(_labels(images), _class_names(images), partial(_read_items, name, part, images))


def _labels(images: Any) -> NDArray[np.int64]:
    """Torchvision's sets have labels under one of three names, of which two are private."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(images, attribute):
            return np.asarray(getattr(images, attribute), dtype=np.int64)
    raise ValueError(f"{type(images).__name__} has no labels")


def _class_names(images: Any) -> tuple[str, ...]:
    if hasattr(images, "classes"):
        return tuple(map(str, images.classes))
    return tuple(str(label) for label in range(int(_labels(images).max()) + 1))


def _read_items(
    name: str, part: str, images: Any, rows: NDArray[np.int64]
) -> Iterator[tuple[str, OpenImage]]:
    for row in rows.tolist():
        yield f"{name} {part} row {row}", partial(_item, images, row)


def _item(images: Any, row: int) -> Image.Image:
    image: Image.Image = images[row][0]
    return image
