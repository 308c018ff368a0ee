"""Data given as objects: arrays, frames, data sets of torch and of Hugging Face.

They become ``Arrays``, which are written once, by content, so that fingerprints, other processes
and a later run know them as they know files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from bend_ray.data.arrays import SINGLE, Arrays, label_among
from bend_ray.data.files import Part
from bend_ray.data.parquet import class_names_of
from bend_ray.data.sources import listed
from bend_ray.errors import DataError
from bend_ray.process.code import blamed
from bend_ray.storage.masking import cause

MOST = 10_000_000
"""Examples; an iterator without end would fill the memory."""


def together(given: Any) -> Mapping[str, Any] | None:
    """The parts by name where they are given so, as by a ``DatasetDict`` or the folder of one."""
    if isinstance(given, str | Path) and (listing := Path(given, "dataset_dict.json")).is_file():
        return {name: Path(given, name) for name in json.loads(listing.read_text())["splits"]}
    return given if isinstance(given, Mapping) and "train" in given else None


def parts_of(given: Mapping[str, Any], where: str = "") -> dict[str, Arrays]:
    """The examples of each part.

    Args:
        given: for each what ``arrays_of`` takes, by the part's name.
        where: what stands before that name in messages.

    Raises:
        DataError: other names, or parts that hold no examples, or of columns in another order.
    """
    if strange := sorted(set(given) - set(get_args(Part))):
        raise DataError(
            f"{where}dataset: expected parts called train, validation and test, got "
            f"{listed(strange)}; rename or drop them"
        )
    found = {part: arrays_of(its, f"{where}{part}") for part, its in given.items()}
    for part, arrays in found.items():
        first = next(iter(found.values()))
        if arrays.columns != first.columns:
            raise DataError(
                f"{where}{part}: expected columns of all parts alike and in one order, "
                f"{listed(first.columns)}, got {listed(arrays.columns)}"
            )
    return found


def arrays_of(given: Any, where: str) -> Arrays:
    """The examples of whatever holds them.

    Args:
        given: ``(inputs, labels)``; a mapping, frame or table with one of ``LABELS`` in it; a torch
            ``Dataset`` or ``DataLoader``; a Hugging Face data set, or the folder of one;
            scikit-learn's ``Bunch``; items of ``(input, label)``. Inputs are anything numpy takes,
            pictures, or several by name.
        where: what it is called, for messages.

    Raises:
        DataError: it holds no examples, or they do not fit together.
    """
    if isinstance(given, str | Path):
        return _of_table(_read_saved(Path(given), where), where)
    if hasattr(given, "with_format") and isinstance(getattr(given, "num_rows", None), int):
        shown = given.format
        if shown["type"] != "custom":  # else its items are what the user's function makes
            return _of_table(given.with_format("arrow", columns=shown["columns"])[:], where)
    if _is_frame(given):
        return _of_table(_table(given, where), where)
    if isinstance(given, Mapping):
        return _of_mapping(given, where)
    if isinstance(given, tuple | list) and len(given) == 2 and not _is_example(given[0]):
        return _of_inputs(given[0], given[1], None, where)
    return _of_items(given, where)


def spilled(arrays: Arrays) -> tuple[str, bytes]:
    """The name of a file for these arrays, which is the same for the same content, and the file."""
    content = arrays.to_bytes()
    return f"{hashlib.sha256(content).hexdigest()[:16]}.safetensors", content


def _is_example(value: Any) -> bool:
    """Whether a list's first item is an example and its label, rather than all inputs."""
    return isinstance(value, tuple) and len(value) == 2 and np.ndim(value[1]) == 0


def _is_frame(value: Any) -> bool:
    methods = ("to_arrow", "iloc", "to_batches")
    return any(hasattr(value, name) for name in methods) and hasattr(value, "columns")


def _table(frame: Any, where: str) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    try:
        if hasattr(frame, "to_arrow"):
            return frame.to_arrow()
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (ValueError, TypeError) as error:  # Arrow's are such
        raise DataError(
            f"{where}: expected columns of one type each and of different names, got: "
            f"{cause(error)}"
        ) from None


def _of_inputs(inputs: Any, labels: Any, names: Sequence[str] | None, where: str) -> Arrays:
    columns: Sequence[str] = ()
    if _is_frame(inputs):
        inputs, columns = _columns(_table(inputs, where), where)
    elif not isinstance(inputs, Mapping):
        inputs = {SINGLE: inputs}
    return Arrays.of(inputs, labels, names, where, columns)


def _of_mapping(given: Mapping[str, Any], where: str) -> Arrays:
    if "DESCR" in given:  # scikit-learn's Bunch, whose openml kind has a column's name there
        names = [str(name) for name in given.get("target_names", ())]
        return _of_inputs(given["data"], given["target"], names if names[1:] else None, where)
    label = label_among(list(given), where)
    inputs = {name: value for name, value in given.items() if name != label}
    return Arrays.of(inputs, given[label], where=where)


def _of_table(table: pa.Table, where: str) -> Arrays:
    label = label_among(table.column_names, where)
    names = class_names_of(table.schema, label)
    labels = table.column(label).to_numpy()
    inputs, columns = _columns(table.drop_columns([label]), where)
    return Arrays.of(inputs, labels, names, where, columns)


def _columns(table: pa.Table, where: str) -> tuple[dict[str, Any], list[str]]:
    """Inputs of a table: numbers together as one, each column of lists or pictures by itself.

    Returns:
        Inputs, and the columns that are together, in order.
    """
    numbers = [field.name for field in table.schema if _is_number(field.type)]
    inputs: dict[str, Any] = {
        field.name: _column(table.column(field.name), field, where)
        for field in table.schema
        if field.name not in numbers
    }
    if numbers:
        # What is missing is nan.
        columns = [table.column(name).to_numpy().astype(np.float64) for name in numbers]
        inputs[SINGLE] = np.stack(columns, axis=1)
    return inputs, numbers


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _column(values: pa.ChunkedArray, field: pa.Field, where: str) -> Any:
    kind = field.type
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
        values = pa.chunked_array([chunk.storage for chunk in values.chunks], kind)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return [_picture(value.as_py(), where) for value in values]
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        return values.to_numpy()
    raise DataError(
        f"{where}: expected columns of numbers, lists or pictures, got {field.name} of "
        f"{field.type}; encode it first, or drop it"
    )


def _picture(value: Mapping[str, Any] | None, where: str) -> NDArray[np.uint8]:
    """A picture ``(C, H, W)`` as it is in its file."""
    from bend_ray.data.decoding import Look, UnreadableError, pixels_of

    value = value or {}
    try:
        return pixels_of(value["bytes"] or Path(value["path"]).read_bytes(), Look())
    except (KeyError, TypeError, OSError, UnreadableError) as error:
        raise DataError(f"{where}: expected pictures, got: {cause(error)}") from None


def _of_items(given: Any, where: str) -> Arrays:
    names = _class_names(given)
    if hasattr(given, "batch_sampler") and hasattr(given, "dataset"):  # a DataLoader
        chosen = getattr(given.sampler, "indices", None)
        if chosen is None:
            return arrays_of(given.dataset, where)
        given = map(given.dataset.__getitem__, chosen)
    sized = hasattr(given, "__len__") and hasattr(given, "__getitem__")
    try:
        items = [given[i] for i in range(len(given))] if sized else list(islice(given, MOST + 1))
    except Exception as error:  # a user's data set may fail in any way
        raise DataError(
            f"{where}: expected (inputs, labels), a frame, or a data set of examples, got "
            f"{blamed(error)}"
        ) from error
    if not 0 < len(items) <= MOST:
        raise DataError(
            f"{where}: expected 1 to {MOST:,} examples, got {'more' if items else 'none'}; an "
            "iterator gives them once"
        )
    if isinstance(items[0], Mapping):
        return _of_mapping(_by_name(items, where), where)
    for number, item in enumerate(items):
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise DataError(
                f"{where}: expected pairs of (input, label), got a {type(item).__qualname__} as "
                f"example {number}"
            )
    inputs, labels = zip(*items, strict=True)
    several = _by_name(inputs, where) if isinstance(inputs[0], Mapping) else inputs
    return _of_inputs(several, labels, names, where)


def _class_names(given: Any) -> Sequence[str] | None:
    """What torchvision's data sets call classes, also where they are those of a ``Subset``."""
    names = getattr(given, "classes", None)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return names
    return _class_names(given.dataset) if hasattr(given, "dataset") else None


def _by_name(items: Sequence[Any], where: str) -> dict[str, list[Any]]:
    try:
        return {name: [item[name] for item in items] for name in items[0]}
    except (KeyError, TypeError, IndexError):
        raise DataError(
            f"{where}: expected {listed(list(items[0]))} in each example, as the first has, got "
            "one without"
        ) from None


def _read_saved(folder: Path, where: str) -> pa.Table:
    """The table of a data set that ``datasets`` saved to a folder."""
    files = sorted(folder.glob("data-*.arrow"))
    if not files:
        raise DataError(
            f"{where}: expected a file that ends in .npz or .safetensors, or a folder that "
            f"save_to_disk of datasets wrote, got {folder}; read it, and give what holds it"
        )
    try:
        streams = [pa.ipc.open_stream(pa.memory_map(str(file))) for file in files]
        return pa.concat_tables([stream.read_all() for stream in streams])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{where}: cannot read {folder}: {cause(error)}") from None
