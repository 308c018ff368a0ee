"""Arrays in files: ``.npz`` of numpy and ``.safetensors``, one array an input and one of labels.

Nothing here runs what it reads: arrays of objects, which numpy pickles, are refused.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from bend_ray.data.examples import Examples
from bend_ray.data.files import File, Files
from bend_ray.data.sources import listed, numbered
from bend_ray.errors import DataError
from bend_ray.storage.filesystems import open_file, store_errors
from bend_ray.storage.masking import cause, printable

ENDINGS = (".npz", ".safetensors")
CLASS_NAMES = "class_names"
"""Of a safetensors file's metadata: a JSON list."""
SINGLE = "inputs"
"""What we call the one input of a file that we write."""


@dataclass(frozen=True)
class Arrays:
    """Inputs and labels of one part.

    Attributes:
        inputs: by name, each ``(N, ...)`` of float32, uint8 or int64.
        labels_N: indices into ``class_names``.
        class_names: one a class.
        named: whether classes have names; else these are their numbers.
    """

    inputs: dict[str, NDArray[Any]]
    labels_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    named: bool

    @classmethod
    def of(
        cls,
        inputs: Mapping[str, Any],
        labels: Any,
        class_names: Sequence[str] | None = None,
        where: str = "data",
    ) -> Arrays:
        """Arrays of what a user has.

        Args:
            inputs: by name, anything numpy takes.
            labels: numbers or texts.
            class_names: what numbers 0, 1, ... mean.
            where: it is from, for messages.

        Raises:
            DataError: lengths differ, values are missing or infinite, or nothing is there.
        """
        if not inputs:
            raise DataError(f"{where}: expected inputs beside labels, got none")
        values = {name: _values(value, f"{where}: {name}") for name, value in inputs.items()}
        codes_N, names, named = _classes(_array(labels, f"{where}: labels"), class_names, where)
        for name, value in values.items():
            if len(value) != len(codes_N):
                raise DataError(
                    f"{where}: expected as many labels as examples, got {len(codes_N)} labels and "
                    f"{len(value)} of {name}"
                )
        if not len(codes_N):
            raise DataError(f"{where}: expected examples, got none; an iterator gives them once")
        return cls(values, codes_N, names, named)

    def take(self, index: NDArray[np.int64]) -> Arrays:
        """Some of the examples."""
        inputs = {name: value[index] for name, value in self.inputs.items()}
        return Arrays(inputs, self.labels_N[index], self.class_names, self.named)

    def like(self, train: Arrays, part: str) -> Arrays:
        """These with the classes of the training part, matched by name.

        Raises:
            DataError: other inputs, or a class that the training part lacks.
        """
        shapes = [
            {name: (value.shape[1:], value.dtype) for name, value in each.inputs.items()}
            for each in (train, self)
        ]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"dataset.{part}: expected inputs as in the training part, {_told(shapes[0])}, got "
                f"{_told(shapes[1])}"
            )
        index = {name: label for label, name in enumerate(train.class_names)}
        found = np.array([index.get(name, -1) for name in self.class_names], dtype=np.int64)
        if self.named != train.named or (found[self.labels_N] < 0).any():
            raise DataError(
                f"dataset.{part}: expected the classes of the training part, "
                f"{listed(train.class_names)}, got {listed(self.class_names)}"
            )
        return Arrays(self.inputs, found[self.labels_N], train.class_names, train.named)

    def examples(self) -> Examples:
        """They, as a network is given them: by name where there are several inputs."""
        values = self.inputs if len(self.inputs) > 1 else next(iter(self.inputs.values()))
        return Examples.of_arrays(values, self.labels_N)

    def row_digests(self) -> list[bytes]:
        """What tells an example's inputs from others."""
        rows = zip(*(np.ascontiguousarray(value) for value in self.inputs.values()), strict=True)
        return [blake2b(b"".join(map(bytes, row)), digest_size=16).digest() for row in rows]

    def to_bytes(self) -> bytes:
        """As a safetensors file, which ``read_arrays`` reads back."""
        arrays = {name: np.ascontiguousarray(value) for name, value in self.inputs.items()}
        names = {CLASS_NAMES: json.dumps(self.class_names)} if self.named else {}
        labels_N = self.labels_N
        if not self.named:
            labels_N = np.array(self.class_names, dtype=np.int64)[labels_N]
        return safetensors.numpy.save({**arrays, "labels": labels_N}, names)


def read_arrays(files: Files, label: str, class_names: Sequence[str] | None) -> Arrays:
    """All examples of a part, its files one after another.

    Args:
        files: of the part.
        label: name of the array of labels.
        class_names: what numbers 0, 1, ... mean in files that do not say it.

    Raises:
        DataError: a file that is none, or that does not fit the others.
    """
    parts = [_read(files, file, label, class_names) for file in files]
    first = parts[0]
    names = tuple(dict.fromkeys(name for part in parts for name in part.class_names))
    if not first.named:
        names = tuple(sorted(names, key=int))
    whole = Arrays(first.inputs, first.labels_N, names, first.named)
    alike = [part.like(whole, file.name) for part, file in zip(parts, files, strict=True)]
    inputs = {
        name: np.concatenate([part.inputs[name] for part in alike])
        if len(alike) > 1
        else first.inputs[name]
        for name in first.inputs
    }
    labels_N = np.concatenate([part.labels_N for part in alike])
    return Arrays(inputs, labels_N, names, first.named)


def _read(files: Files, file: File, label: str, class_names: Sequence[str] | None) -> Arrays:
    where = printable(file.name)
    with store_errors("read", file.path), open_file(files.filesystem, file.path) as source:
        content = source.read()
    read = _read_npz if file.name.endswith(".npz") else _read_safetensors
    try:
        arrays, names = read(content)
    except (SafetensorError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{where}: expected arrays without objects, got: {cause(error)}") from None
    if label not in arrays:
        raise DataError(
            f"{where}: expected an array of labels called {label}, got {listed(sorted(arrays))}; "
            "name it in dataset.labels"
        )
    labels = arrays.pop(label)
    return Arrays.of(arrays, labels, class_names or names, where)


def _read_npz(content: bytes) -> tuple[dict[str, NDArray[Any]], list[str] | None]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        if not hasattr(archive, "files"):
            raise ValueError("a single array; name several with numpy.savez")
        return {name: archive[name] for name in archive.files}, None


def _read_safetensors(content: bytes) -> tuple[dict[str, NDArray[Any]], list[str] | None]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    names = (header.get("__metadata__") or {}).get(CLASS_NAMES)
    return safetensors.numpy.load(content), None if names is None else json.loads(names)


def _values(given: Any, where: str) -> NDArray[Any]:
    """Inputs in the few types that travel: float32, uint8, int64."""
    values = _array(given, where)
    if values.ndim == 0:
        raise DataError(f"{where}: expected one row an example, got a single number")
    if values.dtype == np.uint8 or values.dtype == np.int64:
        return values
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int64)
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"{where}: expected numbers, got {values.dtype}; encode them first")
    values = values.astype(np.float32, copy=False)
    wrong = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if wrong.any():
        raise DataError(
            f"{where}: expected finite numbers, got nan or inf in {int(wrong.sum())} of "
            f"{len(values)} examples, the first at {int(wrong.argmax())}; fill or drop them"
        )
    return values


def _array(given: Any, where: str) -> NDArray[Any]:
    if hasattr(given, "detach"):  # a tensor
        given = given.detach().cpu()
        given = (given.float() if given.dtype.is_floating_point else given).numpy()
    try:
        array = np.asarray(given)
        if array.dtype == object:
            array = np.array(array.tolist())
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: expected rows of one shape, got: {cause(error)}") from None
    if array.dtype == object:
        raise DataError(f"{where}: expected numbers or texts, got objects")
    return array


def _classes(
    labels: NDArray[Any], class_names: Sequence[str] | None, where: str
) -> tuple[NDArray[np.int64], tuple[str, ...], bool]:
    """Labels as indices of their classes, the classes, and whether they have names."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{where}: expected one label an example, got shape {labels.shape}")
    if labels.dtype.kind in "US":
        names, codes_N = np.unique(labels.astype(str), return_inverse=True)
        return codes_N.astype(np.int64), tuple(names.tolist()), True
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iub":
        raise DataError(f"{where}: expected labels of whole numbers or texts, got {labels.dtype}")
    labels = labels.astype(np.int64)
    if class_names is None:
        codes_N, numbers = numbered(labels, lambda row: f"{where}, row {row}")
        return codes_N, numbers, False
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise DataError(
            f"{where}: expected labels from 0 to {len(class_names) - 1}, one for each of the "
            f"{len(class_names)} class names, got {labels.min()} to {labels.max()}"
        )
    return labels, tuple(class_names), True


def _told(shapes: Mapping[str, tuple[tuple[int, ...], Any]]) -> str:
    return ", ".join(f"{name} {shape} {dtype}" for name, (shape, dtype) in shapes.items())
