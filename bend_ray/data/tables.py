"""Tables: files of rows to parts, their columns' types inferred and shown, or given.

Shape letters: N examples, F numbers of an example, T targets.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bend_ray.data.arrays import LABELS, SINGLE, Arrays
from bend_ray.data.columns import Column, Columns, Kind, cleaned, encode, kind_of, raw_column
from bend_ray.data.csv_text import read_csv, typed
from bend_ray.data.examples import Parts
from bend_ray.data.files import Files, Part, reading
from bend_ray.data.images import PARQUET
from bend_ray.data.sources import classes_of, listed
from bend_ray.data.splits import ByGroup, ByTime, assembled, cut, num_drawn
from bend_ray.errors import DataError
from bend_ray.process.lazy import pa
from bend_ray.storage.filesystems import open_file
from bend_ray.storage.masking import printable
from bend_ray.tasks import Classification, Regression, Task

if TYPE_CHECKING:
    from bend_ray.data.datasets import Table

ENDINGS = (*PARQUET, ".csv", ".arrow", ".feather")
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_TEXTS = {b"values": b"texts"}
FEW_VALUES = 20
"""Different whole numbers of a target that are taken for classes."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """How rows become examples, as the training part says it."""

    columns: Columns
    targets: tuple[str, ...]
    task: Task
    class_names: tuple[str, ...]
    are_texts: bool
    """Classes, also those that look like numbers."""

    def arrays(self, table: pa.Table, part: Part) -> Arrays:
        """The examples of rows of a part; DataError where a column is not as it was."""
        where = f"the {part} part"
        raw = {name: _column(table, name, col.kind, where) for name, col in self.columns.items()}
        inputs = {SINGLE: encode(self.columns, raw)}
        if not self.are_texts:
            table = typed(table, {*table.column_names} - {*self.targets})
        labels = _labels(table, self.targets, self.task, where)
        if not self.task.has_classes:
            return Arrays(np.stack(labels, axis=1), self.targets, True, inputs=inputs)
        arrays = Arrays(*classes_of(labels[0], None, where), inputs=inputs)
        known = Arrays(labels[0][:0], self.class_names, True, inputs=inputs)
        return arrays.as_in(known, f"{printable(self.targets[0])} of {where}")


def read_table(files: Files) -> pa.Table:
    """The rows of a part's files, one after another, those of CSV as texts, as metadata say.

    DataError where files have other columns.
    """
    tables, are_texts = [], True
    for file in files:
        name, where = file.name.lower(), printable(file.name)
        with reading(printable(file.path)), open_file(files.filesystem, file.path) as source:
            if name.endswith(".csv"):
                table = read_csv(source, where)
            elif name.endswith(PARQUET):
                table = pa.parquet.ParquetFile(source).read()
            elif name.endswith(ENDINGS):
                table = pa.feather.read_table(source)
            else:
                raise DataError(f"{where}: expected a file that ends in {', '.join(ENDINGS)}")
        are_texts &= name.endswith(".csv")
        tables.append(cleaned(table, where))
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"dataset: expected files with the same columns, got: {error}") from None
    if not len(table):
        names = listed([file.name for file in files])
        raise DataError(f"dataset: expected rows in {names}, got no rows, a header alone")
    return table.replace_schema_metadata(_TEXTS if are_texts else None)


def split_table(spec: Table, read: Mapping[Part, Callable[[], pa.Table]]) -> Parts:
    """The parts of a table; DataError where columns or targets are not what they should be."""
    table = read["train"]()
    if table.schema.metadata == _TEXTS:
        table = typed(table, _kept(spec, table.column_names))
    targets = _targets(spec, table)
    task, class_names = _task(spec, table, targets)
    labels = _labels(table, targets, task, "dataset")
    if task.has_classes and (signs := _missing_signs(table.column(targets[0]))):
        logger.warning(
            "%-12s target %s: classes %s beside numbers; leave empty what is missing, and drop it",
            *("dataset", printable(targets[0]), listed(signs)),
        )
    rows = _places(spec, table, targets[0], read)
    for name, values_N in zip(targets, labels, strict=True):
        _check_labels(printable(name), values_N, values_N[rows["train"]], task)
    train = table.take(rows["train"])
    columns = _fitted(spec, train, targets)
    are_texts = kind_of(train.column(targets[0]), "dataset") in (None, "category")
    reader = Reader(columns, targets, task, class_names, are_texts)
    kinds: dict[str, list[str]] = {}
    for name, column in columns.items():
        kinds.setdefault(column.kind, []).append(name)
    told = "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items())
    logger.info("%-12s %s of %s; columns %s", "dataset", task.kind, listed([*targets]), told)
    known: dict[str, Any] = {"standardise": False, "columns": columns}
    if spec.num_calibration and (splitting := _splitting(spec)):
        held = read["validation"]() if "validation" in read else table.take(rows["validation"])
        _check_columns(held, splitting, "the validation part")
        order_N, starts_N = spec.split.order(held, targets[0], np.arange(len(held)))
        known["whole_N"] = np.cumsum(starts_N)[np.argsort(order_N)]
    return assembled(spec, read, table, rows, reader.arrays, task, **known)


def _column(table: pa.Table, name: str, kind: Kind, where: str, full: bool = False) -> NDArray[Any]:
    _check_columns(table, [name], where)
    return raw_column(table.column(name), kind, f"{where}: {printable(name)}", full)


def _labels(table: pa.Table, targets: Sequence[str], task: Task, where: str) -> list[NDArray[Any]]:
    """Raw values of each target, of which none is missing."""
    kind: Kind = "category" if task.has_classes else "number"
    return [_column(table, name, kind, where, full=True) for name in targets]


def _check_labels(name: str, values_N: NDArray[Any], train_N: NDArray[Any], task: Task) -> None:
    """DataError where training rows cannot tell what all rows have of a target."""
    known = np.unique(train_N)
    if not task.has_classes and len(known) == 1:
        raise DataError(
            f"dataset: expected values of {name} that vary, those of the training part are all "
            f"{known[0]}; check the column"
        )
    if task.has_classes and len(train_N) < 2 * len(known):
        raise DataError(
            f"dataset: expected two training rows of a class of {name} on average, got "
            f"{len(train_N)} of {len(known)} classes; give more, or a target that has classes"
        )
    if task.has_classes and len(lacking := np.setdiff1d(values_N, known)):
        raise DataError(
            f"dataset: expected training rows of every class of {name}, got none of "
            f"{listed(lacking.tolist())}; drop these, give more, or split: {{kind: stratified}}"
        )


def _check_columns(table: pa.Table, names: Sequence[str], where: str) -> None:
    # By hash, as there may be thousands.
    if missing := [name for name in names if table.schema.get_field_index(name) < 0]:
        raise DataError(
            f"{where}: expected a column {printable(missing[0])}, got {listed(table.column_names)}"
        )


def _targets(spec: Table, table: pa.Table) -> tuple[str, ...]:
    """Names of the columns to be told."""
    targets = _named(spec, table.column_names)
    if not targets:
        raise DataError(
            "dataset.target: expected the name of the column to predict, got none; columns are "
            f"{listed(table.column_names)}"
        )
    if len(set(targets)) < len(targets):
        raise DataError(f"dataset.target: expected each column once, got {listed(targets)}")
    _check_columns(table, [*targets, *_splitting(spec), *spec.columns], "dataset")
    return targets


def _task(spec: Table, table: pa.Table, targets: Sequence[str]) -> tuple[Task, tuple[str, ...]]:
    """What is learnt, as given or by what the target holds, and its classes if it has any."""
    task, values, where = spec.task, table.column(targets[0]), f"dataset: {printable(targets[0])}"
    kind = kind_of(values, where)
    if task is None:
        found = np.unique(raw_column(values, kind, where)) if kind == "number" else np.zeros(1)
        few = len(found) <= FEW_VALUES and (found == np.rint(found)).all()
        task = Classification() if few and len(targets) == 1 else Regression()
    if isinstance(task, Regression):
        return task, ()
    if len(targets) > 1:
        raise DataError(
            f"dataset.target: expected one column of classes, got {listed(targets)}; name one, or "
            "set dataset.task to {kind: regression}"
        )
    if kind == "date" and spec.task is None:
        raise DataError(f"{where}: expected numbers, truth values or texts as target, got dates")
    texts = np.unique(raw_column(values, "category", where)).tolist()
    if all(text.removeprefix("-").isdecimal() for text in texts):
        texts = sorted(texts, key=float)
    return task, tuple(texts)


def _places(
    spec: Table, table: pa.Table, target: str, given: Container[Part]
) -> dict[Part, NDArray[np.int64]]:
    count = len(table)
    shuffle, fold = divmod(spec.split_seed, spec.folds) if spec.folds else (spec.split_seed, 0)
    chance_N = np.random.default_rng(shuffle).permutation(count)
    order_N, starts_N = spec.split.order(table, target, chance_N)
    first, end = 0, cut(starts_N, round(spec.test_share * count))
    if spec.test_share and not end:
        raise DataError(
            f"dataset.test_share: expected a row at least, got {spec.test_share:g} of {count} rows"
        )
    if spec.folds:
        ends = [cut(starts_N, n * count // spec.folds) for n in range(spec.folds + 1)]
        first, end = ends[fold : fold + 2]
        if len(set(ends)) <= spec.folds:
            raise DataError(
                f"dataset.folds: expected a test part in each, got rows for {len(set(ends)) - 1} "
                f"of {spec.folds}; lower it, or give groups of fewer rows"
            )
    order_N, starts_N = np.roll(order_N, -first), np.roll(starts_N, -first)
    num_test = end - first
    if "validation" not in given:
        end = num_test + num_drawn(spec.num_validation, count - num_test)
    test, validation, train = np.split(order_N, [num_test, cut(starts_N, end)])
    train = train[: spec.num_train]
    if not len(train) or not (len(validation) or "validation" in given):
        advice = "a lower dataset.num_validation" if starts_N.all() else "groups of fewer rows"
        raise DataError(
            f"dataset: expected rows for each part, got {len(train)} for training and "
            f"{len(validation)} for validation of {count}; give more, or {advice}"
        )
    drawn: dict[Part, NDArray[np.int64]] = {"train": train, "validation": validation, "test": test}
    return {part: np.sort(rows) for part, rows in drawn.items() if len(rows)}


def _fitted(spec: Table, train: pa.Table, targets: Sequence[str]) -> dict[str, Column]:
    """The columns that say something, of the training rows."""
    found: dict[str, Column] = {}
    out: dict[str, list[str]] = {}
    names = [name for name in train.column_names if name not in (*targets, *_splitting(spec))]
    for name in names:
        values, where = train.column(name), f"dataset: {printable(name)}"
        kind = spec.columns.get(name) or kind_of(values, where)
        if kind == "ignore":
            continue
        if name not in spec.columns and (signs := _missing_signs(values)):
            why = f"texts, as they hold {listed(signs)} beside numbers; leave empty what is missing"
            out.setdefault(why, []).append(name)
        column = kind and Column.fitted(kind, raw_column(values, kind, where))
        if column:
            found[name] = column
            continue
        empty = values.null_count == len(values)
        why = "they never vary" if kind else "empty" if empty else "texts of many values"
        if pa.types.is_integer(values.type) and len(values.drop_null().unique()) > 1:
            why = "float64 does not tell their numbers apart; set them to category"
        out.setdefault(f"left out, as {why}", []).append(name)
    for why, own in out.items():
        logger.warning("%-12s columns %s: %s", "dataset", listed(own), why)
    if not found:
        raise DataError(f"dataset: expected a column that varies, got {listed(names) or 'none'}")
    return found


def _missing_signs(values: pa.ChunkedArray) -> list[str]:
    """Up to three texts, such as ?, of a column that else holds numbers; none of other columns."""
    if not pa.types.is_string(values.type):
        return []
    found = values.drop_null().unique().to_pylist()
    others = list(islice((text for text in found if not _NUMBER.fullmatch(text)), 4))
    return others if len(others) < min(4, len(found)) else []


def _splitting(spec: Table) -> list[str]:
    """The column that parts are drawn by, if any: no input."""
    return [spec.split.column] if isinstance(spec.split, ByGroup | ByTime) else []


def _named(spec: Table, columns: Sequence[str]) -> tuple[str, ...]:
    """The targets, as they are called or as targets are."""
    given = (spec.target,) if isinstance(spec.target, str) else spec.target
    return given or tuple(name for name in LABELS if name in columns)[:1]


def _kept(spec: Table, columns: Sequence[str]) -> set[str]:
    """Columns of which texts are names, also where they look like numbers: 1 and 01 are two."""
    kept = {name for name, kind in spec.columns.items() if kind == "category"}
    if isinstance(spec.split, ByGroup):
        kept.add(spec.split.column)
    return kept.union(_named(spec, columns) if isinstance(spec.task, Classification) else ())
