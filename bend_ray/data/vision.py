"""Labelled images of the sets that torchvision knows by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets
from numpy.typing import NDArray

from bend_ray.data.decoding import Encoded
from bend_ray.data.files import Part
from bend_ray.data.sources import Source
from bend_ray.errors import DataError

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
SETS_OF_FILES = {
    "Flowers102": "_image_files",
    "OxfordIIITPet": "_images",
    "Food101": "_image_files",
}
"""Where those that consist of picture files name them."""


def open_torchvision(name: str, part: Part, root: Path, download: bool) -> Source:
    """One part of a set that torchvision knows by name; DataError where its files cannot be had."""
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
    where = partial("{} {} row {}".format, name, part)
    read = partial(_read_items, where, images, getattr(images, SETS_OF_FILES.get(name, ""), None))
    return Source(_labels(images), tuple(map(str, images.classes)), True, read, where)


def _labels(images: Any) -> NDArray[np.int64]:
    """Torchvision's sets have labels under one of three names, of which two are private."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(images, attribute):
            return np.asarray(getattr(images, attribute), dtype=np.int64)
    raise ValueError(f"{type(images).__name__} has no labels")


def _read_items(
    where: Callable[[int], str],
    images: Any,
    files: Sequence[Path] | None,
    rows: NDArray[np.int64],
) -> Iterator[tuple[str, Encoded]]:
    for row in rows.tolist():
        # Torchvision's own way from file to pixels drops transparency and orientation.
        yield where(row), images[row][0] if files is None else Path(files[row]).read_bytes()
