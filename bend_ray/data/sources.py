"""Labelled examples of a part, with classes that are names, and images that are not decoded yet.

Files of one data set may number their classes differently. ``Labelled.as_in`` gives every part the
classes of the training part; nothing is ever matched by its position.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bend_ray.data.files import Part
from bend_ray.errors import DataError
from bend_ray.storage.masking import printable

T = TypeVar("T", bound="Labelled")
logger = logging.getLogger(__name__)

Images = Iterator[tuple[str, Any]]
"""Where each is, in words, and its file's content, or what a library has made of that."""
SHOWN = 20
"""Names that a message lists."""


@dataclass(frozen=True)
class Labelled:
    """Examples of one part, or of one of its files.

    Attributes:
        labels_N: the class of each, an index into ``class_names``; or float64 targets ``(N, T)``.
        class_names: one a class, each once; or a target.
        named: whether classes have names; else these are their numbers.
        where: a row in words.
        notes: on how the files were chosen.
    """

    labels_N: NDArray[Any]
    class_names: tuple[str, ...]
    named: bool
    where: Callable[[int], str] = "row {}".format
    notes: tuple[str, ...] = ()

    def as_in(self, other: Labelled, what: str, like: str = "the training part") -> Self:
        """The same examples, with labels that are indices into the classes of another.

        ``what`` these are and what they shall be ``like`` are for messages. DataError where they
        are of a class that the other lacks, or one of the two names classes and the other numbers
        them.
        """
        if self.named != other.named:
            kinds = {True: "names", False: "numbers alone"}
            raise DataError(
                f"dataset: expected {what} to give its classes as {kinds[other.named]}, as {like} "
                f"does, got {kinds[self.named]}; name them in both, or give dataset.class_names"
            )
        index = {name: label for label, name in enumerate(other.class_names)}
        label_of = np.array([index.get(name, -1) for name in self.class_names], dtype=np.int64)
        labels_N = label_of[self.labels_N]
        if (unknown_N := labels_N < 0).any():
            row = int(unknown_N.argmax())
            raise DataError(
                f"dataset: expected the classes of {like} in {what}, got "
                f"{printable(self.class_names[self.labels_N[row]])} besides ({self.where(row)}); "
                f"those of {like} are {listed(other.class_names)}"
            )
        return replace(self, labels_N=labels_N, class_names=other.class_names)


@dataclass(frozen=True)
class Source(Labelled):
    """Images in their files.

    Attributes:
        read: ascending rows to (where the image is, in words; the image) for each.
        num_bytes: of the files.
        run: neighbours that are read together, as one costs as much as all of them.
    """

    read: Callable[[NDArray[np.int64]], Images] = field(kw_only=True)
    num_bytes: int = 0
    run: int = 1


def alike(files: Sequence[T], names: Sequence[str]) -> list[T]:
    """Files of one part, each called by its name, with the classes of all of them.

    These are in the order in which files name them, or of numbers.
    """
    known = dict.fromkeys(name for file in files for name in file.class_names)
    numbers = not any(file.named for file in files)
    whole = replace(files[0], class_names=tuple(sorted(known, key=int) if numbers else known))
    return [file.as_in(whole, name, names[0]) for file, name in zip(files, names, strict=True)]


def classes_of(
    labels: NDArray[Any], class_names: Sequence[str] | None, where: str
) -> tuple[NDArray[np.int64], tuple[str, ...], bool]:
    """Labels as indices of their classes, the classes, and whether they have names.

    Texts are names, in whose order classes are. Of whole numbers ``class_names`` says what 0, 1,
    ... are called; None: numbers are the names. DataError where labels are out of range, or
    negative, by which data sets say that there is none.
    """
    if labels.dtype.kind == "U":
        names, codes_N = np.unique(labels, return_inverse=True)
        return codes_N.astype(np.int64), tuple(names.tolist()), True
    most = np.inf if class_names is None else len(class_names) - 1
    if (wrong := (labels < 0) | (labels > most)).any():
        row = int(wrong.argmax())
        meant = "on" if class_names is None else f"to {most} ({listed(class_names)})"
        advice = "give texts" if class_names is None else "name all classes"
        raise DataError(
            f"dataset: expected labels from 0 {meant}, {where} row {row} has {labels[row]}; "
            f"remove what is not labelled, or {advice}"
        )
    if class_names is None:
        numbers, codes_N = np.unique(labels, return_inverse=True)
        return codes_N.astype(np.int64), tuple(map(str, numbers.tolist())), False
    if len(set(class_names)) < len(class_names):
        raise DataError(f"dataset: expected classes of different names, {where} has one twice")
    return labels, tuple(class_names), True


def check_classes(parts: Mapping[Part, Labelled]) -> None:
    """Tell of each part's files, which numbers became which classes, and which parts lack one.

    All parts have the same classes. DataError where all training examples are of one.
    """
    train = parts["train"]
    names = train.class_names
    if not train.named and names != tuple(map(str, range(len(names)))):
        logger.info("%-12s labels %s are the classes", "dataset", listed(names))
    for note in (note for part in parts.values() for note in part.notes):
        logger.info("%-12s %s", "dataset", printable(note))
    if len(np.unique(train.labels_N)) < 2:
        raise DataError(
            "dataset: expected examples of two classes at least, those of the training part are "
            f"all {printable(names[train.labels_N[0]])}; check the labels"
        )
    for name, part in parts.items():
        counts = np.bincount(part.labels_N, minlength=len(names))
        if missing := [n for n, count in zip(names, counts, strict=True) if not count]:
            logger.warning(
                "%-12s the %s part has no example of %d of %d classes: %s",
                *("dataset", name, len(missing), len(names), listed(missing)),
            )


def check_overlap(digests: Mapping[Part, list[bytes]], refuse: bool) -> None:
    """Tell of examples that two parts have in common, or ``refuse`` them with DataError."""
    for (one, its), (other, others) in combinations(digests.items(), 2):
        both = Counter(others) & Counter(dict.fromkeys(its, len(others)))
        if not (count := both.total()):
            continue
        message = f"{count} of {len(others)} examples of the {other} part are in the {one} part too"
        if refuse:
            raise DataError(
                f"dataset: expected parts without an example in common, {message}; remove them, "
                "or set dataset.duplicates to tell"
            )
        logger.warning("%-12s %s; figures on them tell of memory", "dataset", message)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(map(printable, names[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
