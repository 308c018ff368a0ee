"""Labelled images that are not decoded yet, with classes that are names.

Files of one data set may number their classes differently. ``by_name`` gives every part the
classes of the training part; nothing is ever matched by its position.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bend_ray.data.decoding import Encoded
from bend_ray.data.files import Part
from bend_ray.errors import DataError
from bend_ray.storage.masking import printable

if TYPE_CHECKING:
    from bend_ray.data.arrays import Arrays

T = TypeVar("T", "Source", "Arrays")
logger = logging.getLogger(__name__)

ReadRows = Callable[[NDArray[np.int64]], Iterator[tuple[str, Encoded]]]
SHOWN = 10
"""Names that a message lists."""


@dataclass(frozen=True)
class Source:
    """One part of a data set.

    Attributes:
        labels_N: the class of each image, an index into ``class_names``.
        class_names: one a class, each once.
        named: whether the files name their classes; else the names are their numbers.
        read: ascending rows to (where the image is, in words; the image) for each.
        where: a row in words.
        num_bytes: of the files.
        notes: on how the files were chosen.
        run: neighbours that are read together, as one costs as much as all of them.
    """

    labels_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    named: bool
    read: ReadRows
    where: Callable[[int], str]
    num_bytes: int = 0
    notes: tuple[str, ...] = ()
    run: int = 1


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
    most = None if class_names is None else len(class_names) - 1
    wrong = labels < 0 if most is None else (labels < 0) | (labels > most)
    if wrong.any():
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


def joint_classes(files: Sequence[T]) -> tuple[str, ...]:
    """The classes of files of one part: in the order in which files name them, or of numbers."""
    names = dict.fromkeys(name for file in files for name in file.class_names)
    return tuple(names if any(file.named for file in files) else sorted(names, key=int))


def by_name(
    source: T, what: str, class_names: Sequence[str], named: bool, like: str = "the training part"
) -> T:
    """A part, or a file of one, whose labels are indices into the classes of another.

    ``what`` it is and what it shall be ``like`` are for messages; ``named``: the classes have
    names, and not only numbers. DataError where it has examples of a class that the other lacks, or
    one of the two names its classes and the other numbers them.
    """
    if source.named != named:
        kinds = {True: "names", False: "numbers alone"}
        raise DataError(
            f"dataset: expected {what} to give its classes as {kinds[named]}, as {like} does, got "
            f"{kinds[source.named]}; name them in both, or give dataset.class_names"
        )
    index = {name: label for label, name in enumerate(class_names)}
    label_of = np.array([index.get(name, -1) for name in source.class_names], dtype=np.int64)
    labels_N = label_of[source.labels_N]
    unknown = np.flatnonzero(labels_N < 0)
    if len(unknown):
        row = int(unknown[0])
        raise DataError(
            f"dataset: expected the classes of {like} in {what}, got "
            f"{printable(source.class_names[source.labels_N[row]])} besides "
            f"({source.where(row)}); those of {like} are {listed(class_names)}"
        )
    return replace(source, labels_N=labels_N, class_names=tuple(class_names), named=named)


def check_classes(parts: Mapping[Part, Source]) -> None:
    """Tell of each part's files, which numbers became which classes, and which parts lack one.

    All parts have the same classes. DataError where all training images are of one.
    """
    train = parts["train"]
    names = train.class_names
    if not train.named and names != tuple(map(str, range(len(names)))):
        logger.info("%-12s labels %s are the classes", "dataset", listed(names))
    for source in parts.values():
        for note in source.notes:
            logger.info("%-12s %s", "dataset", printable(note))
    check_counts({part: source.labels_N for part, source in parts.items()}, names)


def check_counts(labels: Mapping[str, NDArray[np.int64]], class_names: Sequence[str]) -> None:
    """Tell which parts lack a class; DataError where all training examples are of one.

    Labels of each part are indices into ``class_names``.
    """
    if len(np.unique(labels["train"])) < 2:
        raise DataError(
            "dataset: expected examples of two classes at least, those of the training part are "
            f"all {printable(class_names[labels['train'][0]])}; check the labels"
        )
    for part, labels_N in labels.items():
        counts = np.bincount(labels_N, minlength=len(class_names))
        if missing := [n for n, count in zip(class_names, counts, strict=True) if not count]:
            logger.warning(
                "%-12s the %s part has no example of %d of %d classes: %s",
                *("dataset", part, len(missing), len(class_names), listed(missing)),
            )


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(map(printable, names[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def check_overlap(digests: dict[str, list[bytes]], refuse: bool) -> None:
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
