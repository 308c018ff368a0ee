"""Splits: which examples are of which part.

A split of a table says in which order rows are dealt to parts, the test part first, and where one
may cut. To add one: a class with ``order``, and its name in the union below. N are the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bend_ray.data.columns import Kind, kind_of_type, raw_column
from bend_ray.data.examples import Examples, Parts
from bend_ray.data.files import Part
from bend_ray.data.sources import check_classes, check_overlap
from bend_ray.ensemble.programs import check_names
from bend_ray.errors import DataError
from bend_ray.process.lazy import pa
from bend_ray.spec import Spec
from bend_ray.storage.masking import printable
from bend_ray.tasks import Task

if TYPE_CHECKING:
    from bend_ray.data.arrays import Arrays
    from bend_ray.data.datasets import DrawnParts

Order = tuple[NDArray[np.int64], NDArray[np.bool_]]
MOST_DRAWN = 5000
"""Validation examples that are drawn where nobody says how many."""
STRATA = 10
"""Of numbers: equally many rows each."""


class Random(Spec):
    """By chance."""

    kind: Literal["random"] = "random"

    def order(self, table: pa.Table, target: str, chance_N: NDArray[np.int64]) -> Order:
        """Rows in order, and which of these places begins something that stays whole."""
        return np.argsort(chance_N), np.ones(len(table), np.bool_)


class Stratified(Spec):
    """By chance, each class, or each tenth of a target's numbers, evenly over the parts."""

    kind: Literal["stratified"] = "stratified"

    def order(self, table: pa.Table, target: str, chance_N: NDArray[np.int64]) -> Order:
        """Rows in order, and which of these places begins something that stays whole."""
        values, count = table.column(target), len(table)
        strata_N = raw_column(values, "category", target)
        is_number = kind_of_type(values.type) == "number"
        if is_number and len(np.unique(strata_N)) > count / STRATA:
            rank_N = np.argsort(np.argsort(raw_column(values, "number", target), kind="stable"))
            strata_N = rank_N * STRATA // count
        _, stratum_N, sizes = np.unique(strata_N, return_inverse=True, return_counts=True)
        place_N = np.empty(count)
        by_stratum = np.lexsort((chance_N, stratum_N))
        place_N[by_stratum] = np.concatenate([np.arange(size) for size in sizes]) + 0.5
        return np.lexsort((chance_N, place_N / sizes[stratum_N])), np.ones(count, np.bool_)


class ByGroup(Spec):
    """Whole groups by chance, so that no part has seen another's."""

    kind: Literal["group"] = "group"
    column: str
    """What says which group a row is of; no input."""

    def order(self, table: pa.Table, target: str, chance_N: NDArray[np.int64]) -> Order:
        """Rows in order, and which of these places begins something that stays whole."""
        names_N = _full(table, self.column, "category")
        _, group_N = np.unique(names_N, return_inverse=True)
        dealt = np.random.default_rng(chance_N[:8]).permutation(int(group_N.max()) + 1)
        order_N = np.lexsort((chance_N, dealt[group_N]))
        return order_N, np.diff(group_N[order_N], prepend=-1) != 0


class ByTime(Spec):
    """The latest rows for the test, those before for validation; rows of one time together."""

    kind: Literal["time"] = "time"
    column: str
    """What says when a row is of, dates or numbers; no input."""

    def order(self, table: pa.Table, target: str, chance_N: NDArray[np.int64]) -> Order:
        """Rows in order, and which of these places begins something that stays whole."""
        is_number = kind_of_type(table.schema.field(self.column).type) == "number"
        time_N = _full(table, self.column, "number" if is_number else "date")
        order_N = np.lexsort((chance_N, -time_N))
        return order_N, np.diff(time_N[order_N], prepend=np.inf) != 0


def _full(table: pa.Table, name: str, kind: Kind) -> NDArray[Any]:
    return raw_column(table.column(name), kind, f"dataset: {printable(name)}", full=True)


Split = Annotated[Random | Stratified | ByGroup | ByTime, Field(discriminator="kind")]


def cut(starts_N: NDArray[np.bool_], place: int) -> int:
    """The first place from there on where something begins that stays whole; else the end."""
    later = np.flatnonzero(starts_N[place:])
    return place + int(later[0]) if len(later) else len(starts_N)


def num_drawn(asked: int | None, num_examples: int) -> int:
    """Validation examples drawn of so many: as many as asked, or a fifth, at most 5,000."""
    return asked or max(1, min(MOST_DRAWN, num_examples // 5))


def split_rows(
    num_examples: int, num_train: int | None, num_validation: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which examples are for training and which for validation: one seeded shuffle.

    ``num_train`` None is for all that are left. DataError where there are too few.
    """
    needed = num_validation + (num_train or 1)
    if needed > num_examples:
        raise DataError(
            f"dataset: expected at least {needed} examples ({num_validation} for validation and "
            f"{num_train or 1} for training), got {num_examples}; lower dataset.num_validation or "
            "dataset.num_train"
        )
    order = np.random.default_rng(seed).permutation(num_examples)
    return order[num_validation:][:num_train], order[:num_validation]


def assembled(
    spec: DrawnParts,
    read: Mapping[Part, Callable[[], Any]],
    whole: Any,
    rows: Mapping[Part, Any],
    arrays: Callable[[Any, Part], Arrays],
    task: Task,
    **known: Any,
) -> Parts:
    """The parts of a data set, looked through; DataError where they do not fit together.

    ``read`` gives each part that there are files of; the training part's has given ``whole``, of
    which each part that is drawn has some ``rows``. ``arrays`` makes arrays of what is a part.
    ``known`` is what else a ``Parts`` says; of a table it is what became of columns, whose rows are
    no duplicates of others by their few categories alone.
    """
    parts: dict[Part, Arrays] = {}
    for part in get_args(Part):
        if part in read and part != "train":
            parts[part] = arrays(read[part](), part)
        elif part in rows:
            parts[part] = arrays(whole.take(rows[part]), part)
    check_names(known.get("columns") or parts["train"].inputs, task.outputs, "dataset: ")
    if task.has_classes:
        check_classes(parts)
    of_table = "columns" in known
    digests = {part: its.row_digests(of_table) for part, its in parts.items()}
    check_overlap(digests, spec.duplicates == "refuse")
    load_test = None
    if "test" in parts:
        own = (read["test"], None) if "test" in read else (read["train"], rows["test"])
        load_test = partial(_test_of, arrays, *own)
    train, validation = parts["train"].examples(), parts["validation"].examples()
    names = parts["train"].class_names
    return Parts(train, validation, names, load_test, task=task.fitted(train.labels_N), **known)


def _test_of(
    arrays: Callable[[Any, Part], Arrays],
    read: Callable[[], Any],
    rows: NDArray[np.int64] | None,
) -> Examples:
    whole = read()
    return arrays(whole if rows is None else whole.take(rows), "test").examples()
