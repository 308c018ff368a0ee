"""Arrays in files: ``.npz`` of numpy and ``.safetensors``, one array an input and one of labels.

Nothing here runs what it reads: arrays of objects, which numpy pickles, are refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from bend_ray.data.decoding import Look, pixels_of
from bend_ray.data.examples import Examples, Parts
from bend_ray.data.files import File, Files, Part
from bend_ray.data.sources import Labelled, alike, classes_of, listed
from bend_ray.data.splits import assembled, num_drawn, split_rows
from bend_ray.errors import DataError
from bend_ray.storage.filesystems import read_bytes
from bend_ray.storage.masking import cause, printable
from bend_ray.tasks import Classification, Regression, Task

if TYPE_CHECKING:
    from bend_ray.data.datasets import ArrayFiles, ArrayParts

ENDINGS = (".npz", ".safetensors")
CLASS_NAMES = "class_names"
"""Of a safetensors file's metadata: a JSON list."""
SINGLE = "inputs"
"""What we call the one input of a file that we write."""
WRITTEN = "labels"
"""What we call labels in it."""
LABELS = (WRITTEN, "label", "y", "target")
"""Names by which a column, key or array of labels is known."""


@dataclass(frozen=True)
class Arrays(Labelled):
    """Inputs and labels of one part; inputs by name, ``(N, ...)`` of float32, uint8 or int64."""

    inputs: dict[str, NDArray[Any]] = field(kw_only=True)

    @classmethod
    def of(
        cls,
        inputs: Mapping[str, Any],
        labels: Any,
        class_names: Sequence[str] | None = None,
        where: str = "data",
        task: Task | None = None,
    ) -> Arrays:
        """Arrays of what a user has: inputs that numpy takes, by name; labels as numbers or texts.

        ``class_names`` say what numbers 0, 1, ... mean; ``where`` is for messages. Without a task,
        fractions are targets. DataError where lengths differ, values are missing or infinite, or
        nothing is there.
        """
        if not inputs:
            raise DataError(f"{where}: expected inputs beside labels, got none")
        if wrong := [name for name in inputs if not isinstance(name, str) or name == WRITTEN]:
            raise DataError(
                f"{where}: expected inputs by names of the network's parameters, not {WRITTEN}, "
                f"got {wrong[0]}; rename it"
            )
        # A safetensors file's come in any order.
        values = {name: _values(inputs[name], f"{where}: {name}") for name in sorted(inputs)}
        found = array_of(labels, f"{where}: labels")
        known = found[np.isfinite(found)] if found.dtype.kind == "f" else np.zeros(0)
        fractions = (known != np.rint(known)).any()
        if isinstance(task, Regression) or (task is None and fractions):
            arrays = cls(*_targets(found, where), True, inputs=values)
        else:
            told = classes_of(_whole(found, where), class_names, where)
            arrays = cls(*told, inputs=values)
        count = len(arrays.labels_N)
        if unlike := [name for name, value in values.items() if len(value) != count]:
            raise DataError(
                f"{where}: expected as many labels as examples, got {count} labels and "
                f"{len(values[unlike[0]])} of {unlike[0]}"
            )
        if not count:
            raise DataError(f"{where}: expected examples, got none; an iterator gives them once")
        return arrays

    def take(self, index: NDArray[np.int64] | slice) -> Arrays:
        """Some of the examples."""
        inputs = {name: value[index] for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, labels_N=self.labels_N[index])

    def as_in(self, other: Labelled, what: str, like: str = "the training part") -> Self:
        """See ``Labelled``; DataError also where inputs are others."""
        assert isinstance(other, Arrays)
        kinds = [
            ", ".join(f"{name} {v.shape[1:]} {v.dtype}" for name, v in each.inputs.items())
            for each in (other, self)
        ]
        if kinds[0] != kinds[1]:
            raise DataError(
                f"dataset: expected inputs of {what} as in {like}, {kinds[0]}, got {kinds[1]}; "
                "give all alike"
            )
        if other.labels_N.shape[1:] != self.labels_N.shape[1:]:
            raise DataError(
                f"dataset: expected labels of {what} as in {like}, got classes in the one and "
                "numbers in the other, or others; set dataset.task"
            )
        return self if self.labels_N.ndim > 1 else super().as_in(other, what, like)

    def examples(self) -> Examples:
        """They, as a network is given them: by name where there are several inputs."""
        values = self.inputs if len(self.inputs) > 1 else next(iter(self.inputs.values()))
        return Examples.of_arrays(values, self.labels_N)

    def row_digests(self, labelled: bool) -> list[bytes]:
        """What tells an example from others: its inputs, and, where it is ``labelled``, labels."""
        values = [*self.inputs.values(), *([self.labels_N] if labelled else [])]
        rows = zip(*map(np.ascontiguousarray, values), strict=True)
        return [
            blake2b(b"".join(v.tobytes() for v in row), digest_size=16).digest() for row in rows
        ]

    def to_bytes(self) -> bytes:
        """As a safetensors file, which ``read_arrays`` reads back."""
        arrays = {name: np.ascontiguousarray(value) for name, value in self.inputs.items()}
        if self.labels_N.ndim > 1:
            return safetensors.numpy.save(arrays | {WRITTEN: np.ascontiguousarray(self.labels_N)})
        names = {CLASS_NAMES: json.dumps(self.class_names)} if self.named else {}
        codes = range(len(self.class_names)) if self.named else map(int, self.class_names)
        arrays[WRITTEN] = np.array([*codes], dtype=np.int64)[self.labels_N]
        return safetensors.numpy.save(arrays, names)


def label_among(names: Sequence[str], where: str, wanted: Sequence[str] = LABELS) -> str:
    """The first of the wanted names that is there; DataError where none is, or a name is twice."""
    if len(set(names)) < len(names):
        raise DataError(f"{where}: expected columns of different names, got {listed(names)}")
    if found := [name for name in wanted if name in names]:
        return found[0]
    raise DataError(
        f"{where}: expected labels called {' or '.join(wanted)}, got "
        f"{listed(list(map(str, names))) or 'nothing'}; give (inputs, labels), or rename them"
    )


def split_arrays(spec: ArrayParts, read: Mapping[Part, Callable[[], Arrays]]) -> Parts:
    """The parts of a data set of arrays, split as ``spec`` says.

    ``read`` has what gives each part that there is, the training part among them. DataError where
    there are too few examples, also of a class, or one class alone.
    """
    whole, given = read["train"](), "validation" in read
    count = 0 if given else num_drawn(spec.num_validation, len(whole.labels_N))
    train, held = split_rows(len(whole.labels_N), spec.num_train, count, spec.split_seed)
    task = spec.task or (Regression() if whole.labels_N.ndim > 1 else Classification())
    if task.has_classes and len(train) < 2 * len(set(whole.labels_N[train])):
        raise DataError(
            f"dataset: expected two training examples of a class on average, got {len(train)} of "
            f"{len(whole.class_names)} classes; give more, or labels that are classes"
        )
    rows: dict[Part, Any] = {"train": train, "validation": held}
    if given:
        # A slice copies nothing.
        rows = {"train": slice(None) if spec.num_train is None else np.sort(train)}
    arrays = partial(_as_in, whole.take(train[:0]))
    return assembled(spec, read, whole, rows, arrays, task, standardise=spec.standardise)


def _as_in(train: Arrays, arrays: Arrays, part: Part) -> Arrays:
    return arrays.as_in(train, f"the {part} part")


def read_arrays(spec: ArrayFiles, files: Files) -> Arrays:
    """All examples of a part, its files one after another.

    DataError where a file is none, or does not fit the others.
    """
    parts = [_read(spec, files, file) for file in files]
    parts = alike(parts, [printable(file.name) for file in files])
    if len(parts) == 1:
        return parts[0]
    names = parts[0].inputs
    inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in names}
    return replace(parts[0], inputs=inputs, labels_N=np.concatenate([p.labels_N for p in parts]))


def _read(spec: ArrayFiles, files: Files, file: File) -> Arrays:
    where = printable(file.name)
    content, names = read_bytes(files.filesystem, file.path) or b"", None
    try:
        if file.name.endswith(".npz"):
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = dict(archive)
        else:
            arrays = safetensors.numpy.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            if told := (header.get("__metadata__") or {}).get(CLASS_NAMES):
                names = [str(name) for name in json.loads(told)]
    except Exception as error:  # what numpy and zlib raise of a file that is none
        raise DataError(f"{where}: expected arrays without objects, got: {cause(error)}") from None
    label = label_among(list(arrays), where, [spec.labels] if spec.labels else LABELS)
    return Arrays.of(arrays, arrays.pop(label), spec.class_names or names, where, spec.task)


def _values(given: Any, where: str) -> NDArray[Any]:
    """Inputs in the few types that travel: float32, uint8, int64."""
    values = array_of(given, where)
    if 0 in values.shape[1:] or values.ndim == 0:
        raise DataError(f"{where}: expected a row of numbers an example, got shape {values.shape}")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind in "iu":
        return values.astype(np.int64, copy=False)
    if values.dtype.kind not in "fb":
        raise DataError(f"{where}: expected numbers, got {values.dtype}; encode them first")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32, copy=False)
    wrong = ~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if wrong.any():
        raise DataError(
            f"{where}: expected finite numbers, got nan or inf in {int(wrong.sum())} of "
            f"{len(values)} examples, the first at {int(wrong.argmax())}; fill or drop them"
        )
    return values


def array_of(given: Any, where: str) -> NDArray[Any]:
    """Whatever numpy takes, or a tensor, as numbers or texts.

    DataError where it has rows of several shapes, or objects.
    """
    try:
        array = _plain(given)
    except Exception as error:  # what libraries raise of what they cannot give as an array
        several = "rows of several shapes; pad, cut or resize them"
        reason = several if "inhomogeneous" in str(error) else cause(error)
        raise DataError(f"{where}: expected numbers in rows of one shape, got: {reason}") from None
    if array.dtype == object:
        kinds = sorted({type(value).__name__ for value in array.flat})
        raise DataError(
            f"{where}: expected numbers or texts, got {listed(kinds)}; fill, encode or unpack them"
        )
    return array


def _plain(given: Any) -> NDArray[Any]:
    """What numpy takes, tensors, pictures as ``(C, H, W)``, and lists of these."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        return (given.float() if given.dtype.is_floating_point else given).numpy()  # type: ignore
    if hasattr(given, "getexif"):
        return pixels_of(given, Look())
    first = given[0] if isinstance(given, list | tuple) and given else None
    if hasattr(first, "detach") or hasattr(first, "getexif"):
        given = [_plain(value) for value in given]
    elif np.ma.is_masked(given):
        given = given.astype(float).filled(np.nan)
    array = np.asarray(given)
    if array.dtype != object:
        return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
    # Objects may be plain numbers and texts, or arrays of them.
    deeper = np.array(array.tolist())
    return deeper if deeper.shape == array.shape else _plain(deeper)


def _targets(labels: NDArray[Any], where: str) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Numbers to be told, ``(N, T)``, and what they are called."""
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "biuf" or 0 in labels.shape[1:]:
        raise DataError(
            f"{where}: expected a number or a row of numbers an example as targets, got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    targets_NT = labels.reshape(len(labels), -1).astype(np.float64)
    if not np.isfinite(targets_NT).all():
        raise DataError(f"{where}: expected finite targets, got nan or inf; drop those examples")
    width = targets_NT.shape[1]
    return targets_NT, ("target",) if width == 1 else tuple(f"target_{t}" for t in range(width))


def _whole(labels: NDArray[Any], where: str) -> NDArray[Any]:
    """Labels as texts, or as int64 ``(N,)``."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(
            f"{where}: expected one label an example, got shape {labels.shape}; of one-hot rows "
            "give the argmax"
        )
    if labels.dtype.kind == "U":
        return labels
    if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iub":
        some = labels[labels != np.rint(labels)][0] if labels.dtype.kind == "f" else labels.dtype
        raise DataError(f"{where}: expected labels that are whole numbers or texts, got {some}")
    return labels.astype(np.int64)
