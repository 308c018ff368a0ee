"""Data given as objects: arrays, frames, data sets of torch and of Hugging Face.

They become ``Arrays``, which are written once, by content, so that fingerprints, other processes
and a later run know them as they know files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from bend_ray.data.arrays import SINGLE, Arrays
from bend_ray.errors import DataError

LABELS = ("labels", "label", "y", "target")
"""Names by which a column or key of labels is known."""
MOST_EXAMPLES = 10_000_000


def arrays_of(given: Any, where: str) -> Arrays:
    """The examples of whatever holds them.

    Args:
        given: ``(inputs, labels)``; a mapping or frame with one of ``LABELS`` in it; a torch
            ``Dataset`` or ``DataLoader``; a Hugging Face data set, or the folder of one; items of
            ``(input, label)``. Inputs are anything numpy takes, or several by name.
        where: what it is called, for messages.

    Raises:
        DataError: it holds no examples, or they do not fit together.
    """
    if isinstance(given, str | Path):
        return _of_table(_read_saved(Path(given), where), where)
    if hasattr(given, "batch_sampler") and hasattr(given, "dataset"):  # a DataLoader
        given = given.dataset
    if hasattr(given, "features") and hasattr(given, "with_format"):
        return _of_table(given.with_format("arrow")[:], where)
    if _is_frame(given):
        return _of_table(_table(given), where)
    if isinstance(given, Mapping):
        return _of_mapping(given, where)
    if isinstance(given, tuple | list) and len(given) == 2 and not _is_example(given[0]):
        inputs, labels = given
        return Arrays.of(_named(inputs, where), labels, where=where)
    return _of_items(given, where)


def spilled(arrays: Arrays) -> tuple[str, bytes]:
    """The name of a file for these arrays, which is the same for the same content, and the file."""
    content = arrays.to_bytes()
    return f"{hashlib.sha256(content).hexdigest()[:16]}.safetensors", content


def _is_example(value: Any) -> bool:
    """Whether a list's first item is an example and its label, rather than all inputs."""
    return isinstance(value, tuple) and len(value) == 2 and np.ndim(value[1]) == 0


def _is_frame(value: Any) -> bool:
    return hasattr(value, "columns") and (hasattr(value, "to_arrow") or hasattr(value, "iloc"))


def _table(frame: Any) -> pa.Table:
    if hasattr(frame, "to_arrow"):
        table: pa.Table = frame.to_arrow()
        return table
    return pa.Table.from_pandas(frame, preserve_index=False)


def _named(inputs: Any, where: str) -> dict[str, Any]:
    if _is_frame(inputs):
        return _columns(_table(inputs), where)
    return dict(inputs) if isinstance(inputs, Mapping) else {SINGLE: inputs}


def _of_mapping(given: Mapping[str, Any], where: str) -> Arrays:
    label = _label(list(given), where)
    inputs = {name: value for name, value in given.items() if name != label}
    return Arrays.of(inputs, given[label], where=where)


def _of_table(table: pa.Table, where: str) -> Arrays:
    label = _label(table.column_names, where)
    names = _class_names(table.schema, label)
    labels = table.column(label).to_numpy(zero_copy_only=False)
    return Arrays.of(_columns(table.drop_columns([label]), where), labels, names, where)


def _label(names: Sequence[str], where: str) -> str:
    found = [name for name in LABELS if name in names]
    if not found:
        raise DataError(
            f"{where}: expected labels called {', '.join(LABELS)}, got "
            f"{', '.join(map(str, names))}; give (inputs, labels), or rename the column"
        )
    return found[0]


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """The names that a Hugging Face data set gives its classes."""
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(label, {})
    names: list[str] | None = feature.get("names")
    return names


def _columns(table: pa.Table, where: str) -> dict[str, Any]:
    """Inputs of a table: numbers together as one, each column of lists or pictures by itself."""
    numbers = [f.name for f in table.schema if _is_number(f.type)]
    others = [f for f in table.schema if f.name not in numbers]
    inputs: dict[str, Any] = {f.name: _column(table, f, where) for f in others}
    if numbers:
        columns = [table.column(name).to_numpy(zero_copy_only=False) for name in numbers]
        inputs[SINGLE] = np.stack([np.asarray(c, dtype=np.float32) for c in columns], axis=1)
    return inputs


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _column(table: pa.Table, field: pa.Field, where: str) -> Any:
    values = table.column(field.name)
    kind = field.type.storage_type if isinstance(field.type, pa.ExtensionType) else field.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return np.stack([_pixels(each["bytes"].as_py(), where) for each in values])
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        return values.to_pylist()
    raise DataError(
        f"{where}: expected columns of numbers, lists or pictures, got {field.name} of "
        f"{field.type}; encode it first, or drop it"
    )


def _pixels(content: bytes | None, where: str) -> Any:
    """A picture ``(C, H, W)`` as it is in its file."""
    from bend_ray.data.decoding import Look, pixels_of

    if content is None:
        raise DataError(f"{where}: expected the bytes of pictures, got a path; embed them first")
    return pixels_of(content, Look())


def _of_items(given: Any, where: str) -> Arrays:
    if not isinstance(given, Iterable) and not hasattr(given, "__getitem__"):
        raise DataError(
            f"{where}: expected (inputs, labels), arrays, a frame or a data set, got a "
            f"{type(given).__qualname__}"
        )
    sized = hasattr(given, "__len__") and hasattr(given, "__getitem__")
    items = [given[i] for i in range(len(given))] if sized else list(islice(given, MOST_EXAMPLES))
    if not items:
        raise DataError(f"{where}: expected examples, got none; an iterator gives them once")
    if isinstance(items[0], Mapping):
        return _of_mapping({name: _stacked(items, name) for name in items[0]}, where)
    if not (isinstance(items[0], tuple | list) and len(items[0]) == 2):
        raise DataError(
            f"{where}: expected examples of (input, label), got a {type(items[0]).__qualname__}"
        )
    inputs, labels = zip(*items, strict=True)
    if isinstance(inputs[0], Mapping):
        return Arrays.of({n: _stacked(inputs, n) for n in inputs[0]}, _plain(labels), where=where)
    return Arrays.of({SINGLE: _plain(inputs)}, _plain(labels), where=where)


def _stacked(items: Sequence[Mapping[str, Any]], name: str) -> Any:
    return _plain([item[name] for item in items])


def _plain(values: Sequence[Any]) -> list[Any]:
    """Tensors and pictures as arrays, pictures ``(C, H, W)``."""
    arrays = [value.numpy() if hasattr(value, "detach") else np.asarray(value) for value in values]
    if not hasattr(values[0], "getexif"):
        return arrays
    return [each[None] if each.ndim == 2 else each.transpose(2, 0, 1) for each in arrays]


def _read_saved(folder: Path, where: str) -> pa.Table:
    """The table of a data set that ``datasets`` saved to a folder."""
    files = sorted(folder.glob("data-*.arrow")) or sorted(folder.glob("*.arrow"))
    if not files:
        raise DataError(
            f"{where}: expected a folder that save_to_disk of datasets wrote, got {folder}"
        )
    tables = []
    for file in files:
        with pa.memory_map(str(file)) as source:
            tables.append(pyarrow.ipc.open_stream(source).read_all())
    return pa.concat_tables(tables)
