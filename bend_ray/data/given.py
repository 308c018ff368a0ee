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

from bend_ray.data.arrays import LABELS, SINGLE, WRITTEN, Arrays, array_of, label_among
from bend_ray.data.columns import cleaned, kind_of, kind_of_type, table_of
from bend_ray.data.decoding import Look, pixels_of
from bend_ray.data.files import Part
from bend_ray.data.images import class_names_of
from bend_ray.data.sources import listed
from bend_ray.errors import DataError
from bend_ray.process.code import blamed
from bend_ray.process.lazy import pa
from bend_ray.storage.filesystems import file_exists, resolve, write_bytes
from bend_ray.storage.masking import printable
from bend_ray.storage.uris import joined

MOST = 10_000_000
"""Examples; an iterator without end would fill the memory."""


def together(given: Any) -> Mapping[str, Any] | None:
    """The parts by name where they are given so, as by a ``DatasetDict`` or the folder of one."""
    if isinstance(given, str | Path) and (listing := Path(given, "dataset_dict.json")).is_file():
        return {name: Path(given, name) for name in json.loads(listing.read_text())["splits"]}
    return given if isinstance(given, Mapping) and "train" in given else None


def parts_of(given: Mapping[Any, Any], where: str = "") -> dict[Part, Arrays]:
    """The examples of each part, of what ``arrays_of`` takes; None where there is none.

    ``where`` stands before a part's name in messages. DataError where names are others, or parts
    hold no examples, or have columns in another order.
    """
    if strange := sorted(set(given) - set(get_args(Part))):
        raise DataError(
            f"{where}dataset: expected parts called train, validation and test, got "
            f"{listed(strange)}; rename or drop them"
        )
    there = {part: its for part, its in given.items() if its is not None or part == "train"}
    columns = {part: names for part, its in there.items() if (names := _columns_of(its))}
    for part, names in columns.items():
        if names != (first := next(iter(columns.values()))):
            raise DataError(
                f"{where}{part}: expected columns of all parts alike and in one order, "
                f"{listed(first)}, got {listed(names)}"
            )
    return {part: arrays_of(its, f"{where}{part}") for part, its in there.items()}


def _columns_of(given: Any) -> list[str]:
    """Of a frame or table, where their order says which number is which; else none."""
    frame = given[0] if isinstance(given, tuple | list) and given else given
    names = getattr(frame, "column_names", None) or (_is_frame(frame) and list(frame.columns))
    return [str(n) for n in names if n not in LABELS] if isinstance(names, list) else []


def arrays_of(given: Any, where: str) -> Arrays:
    """The examples of whatever holds them; DataError where there are none, or they do not fit.

    It is ``(inputs, labels)``; a mapping, frame or table with one of ``LABELS`` in it; a torch
    ``Dataset`` or ``DataLoader``; a Hugging Face data set, or the folder of one; scikit-learn's
    ``Bunch``; items of ``(input, label)``. Inputs are anything numpy takes, pictures, or several by
    name. ``where`` is what it is called, for messages.
    """
    try:
        inputs, labels, class_names = _split(given, where)
        return Arrays.of(inputs_of(inputs), labels, class_names, where)
    except DataError:
        raise
    except Exception as error:  # a user's object, and what libraries make of it, may fail anyhow
        raise DataError(
            f"{where}: expected (inputs, labels), a frame, or a data set of examples, got "
            f"{printable(blamed(error))}"
        ) from error


def _split(given: Any, where: str) -> tuple[Any, Any, Sequence[str] | None]:
    """Inputs, labels, and what classes are called."""
    if (table := _table(given, where)) is not None:
        label = label_among(table.column_names, where)
        names = class_names_of(table.schema, label)
        return table.drop_columns([label]), table.column(label).to_numpy(), names
    if isinstance(given, Mapping) and "DESCR" in given:
        # scikit-learn's Bunch, whose openml kind has a column's name there.
        called = [str(name) for name in given.get("target_names", ())]
        return given["data"], given["target"], called if called[1:] else None
    if isinstance(given, Mapping):
        label = label_among(list(given), where)
        return {name: its for name, its in given.items() if name != label}, given[label], None
    # A list of two may be two examples, rather than all inputs and all labels.
    first = given[0] if isinstance(given, tuple | list) and len(given) == 2 else (0, 0)
    if not (isinstance(first, tuple) and len(first) == 2 and np.ndim(first[1]) == 0):
        return given[0], given[1], None
    return _of_items(given, where)


def _table(given: Any, where: str) -> pa.Table | None:
    """What is a frame or a table, or can be shown as one."""
    if isinstance(given, str | Path):
        files = sorted(Path(given).glob("data-*.arrow"))
        if not files:
            raise DataError(
                f"{where}: expected a file that ends in .npz or .safetensors, or a folder that "
                f"save_to_disk of datasets wrote, got {given}; read it, and give what holds it"
            )
        streams = [pa.ipc.open_stream(pa.memory_map(str(file))) for file in files]
        return pa.concat_tables([stream.read_all() for stream in streams])
    if hasattr(given, "with_format") and isinstance(getattr(given, "num_rows", None), int):
        shown = given.format
        if shown["type"] != "custom":  # else its items are what the user's function makes
            return given.with_format("arrow", columns=shown["columns"])[:]
    return table_of(given, where) if _is_frame(given) else None


def _is_frame(value: Any) -> bool:
    return hasattr(value, "__arrow_c_stream__") and hasattr(value, "columns")


def rows_of(given: Any, where: str) -> pa.Table | None:
    """The rows of a frame with labels in it, or beside it; None of all that is no such table.

    DataError where its columns are no inputs of a table, nor numbers and lists of these.
    """
    frame, labels = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not _is_frame(frame):
        return None
    table = cleaned(table_of(frame, where), where)
    if labels is not None:
        column_N = array_of(labels, f"{where}: {WRITTEN}")
        if column_N.shape != (len(table),):
            raise DataError(
                f"{where}: expected a label of each of {len(table)} rows, got shape "
                f"{column_N.shape}"
            )
        table = table.append_column(WRITTEN, [pa.array(column_N)])
    kinds = {field.name: kind_of_type(field.type) for field in table.schema}
    others = [name for name, kind in kinds.items() if kind is None]
    if others and {kinds[name] for name in kinds if name not in LABELS} & {"category", "date"}:
        kind_of(table.column(others[0]), f"{where}: {others[0]}")
    return None if others else table


def spilled(given: Arrays | pa.Table, folder: str) -> str:
    """The file of arrays or of a table in a folder; its name is the same for the same content."""
    if isinstance(given, pa.Table):
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(given, sink)
        content, ending = sink.getvalue().to_pybytes(), "parquet"
    else:
        content, ending = given.to_bytes(), "safetensors"
    uri = joined(folder, f"{hashlib.sha256(content).hexdigest()[:16]}.{ending}")
    filesystem, path = resolve(uri)
    if not file_exists(filesystem, path):
        write_bytes(filesystem, path, content)
    return uri


def inputs_of(inputs: Any) -> Mapping[str, Any]:
    """Inputs by name: several as they are, one array, or columns of a frame.

    Of these numbers are together one input, each column of lists or pictures is by itself.
    DataError where a column holds no numbers.
    """
    if not _is_frame(inputs):
        return inputs if isinstance(inputs, Mapping) else {SINGLE: inputs}
    table = table_of(inputs, SINGLE)
    columns = {name: _column(table.column(name)) for name in table.column_names}
    numbers = [
        name
        for name, its in columns.items()
        if isinstance(its, np.ndarray) and its.dtype.kind in "biuf"
    ]
    if numbers:
        name = "numbers" if SINGLE in columns else SINGLE
        columns[name] = np.stack([columns.pop(n).astype(float) for n in numbers], axis=1)
    return columns


def _column(values: pa.ChunkedArray) -> Any:
    if isinstance(values.type, pa.ExtensionType):
        chunks = [chunk.storage for chunk in values.chunks]
        values = pa.chunked_array(chunks, values.type.storage_type)
    if not pa.types.is_struct(values.type):
        return values.to_numpy()
    files = (value.as_py() for value in values)
    # Pictures as they are in their files.
    return [pixels_of(f["bytes"] or Path(f["path"]).read_bytes(), Look()) for f in files]


def _of_items(given: Any, where: str) -> tuple[Any, Any, Sequence[str] | None]:
    names = _class_names(given)
    if hasattr(given, "batch_sampler") and hasattr(given, "dataset"):  # a DataLoader
        chosen = getattr(given.sampler, "indices", None)
        if chosen is None:
            return _split(given.dataset, where)
        given = map(given.dataset.__getitem__, chosen)
    sized = hasattr(given, "__len__") and hasattr(given, "__getitem__")
    items = [given[i] for i in range(len(given))] if sized else list(islice(given, MOST + 1))
    if not 0 < len(items) <= MOST:
        raise DataError(
            f"{where}: expected 1 to {MOST:,} examples, got {'more' if items else 'none'}; an "
            "iterator gives them once"
        )
    if isinstance(items[0], Mapping):
        return _split(_by_name(items), where)
    for item in items:
        if not (isinstance(item, tuple | list) and len(item) == 2):
            raise DataError(
                f"{where}: expected pairs of (input, label), got a {type(item).__name__}"
            )
    inputs, labels = zip(*items, strict=True)
    return _by_name(inputs) if isinstance(inputs[0], Mapping) else inputs, labels, names


def _class_names(given: Any) -> Sequence[str] | None:
    """What torchvision's data sets call classes, also where they are those of a ``Subset``."""
    names = getattr(given, "classes", None)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return names
    return _class_names(given.dataset) if hasattr(given, "dataset") else None


def _by_name(items: Sequence[Any]) -> dict[str, list[Any]]:
    return {name: [item[name] for item in items] for name in items[0]}
