"""A population as an Arrow table: the file format's columns, and views of theta in them.

Shape letters: K models, P parameters, S parameters of a range.

theta is cut into column ranges of at most 4 MiB a row, ``theta_000``, ``theta_001``, ..., so that
whoever needs a range of the parameters reads little else; a cell is a fixed_size_binary of
little-endian float32. It reads several times faster than a list or tensor column, and needs nothing
but pyarrow and ``frombuffer``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from bend_ray.artifacts.manifest import first_problem
from bend_ray.artifacts.population import Origin, Population
from bend_ray.errors import StoreError

FORMAT_VERSION = 1
MAX_PART_FLOATS = 2**20

ROW_TYPES = {
    "model_id": pa.int64(),
    "origin": pa.string(),
    "trunk": pa.int32(),
    "fork": pa.int32(),
    "step": pa.int64(),
    "seed": pa.int64(),
    "held_out": pa.bool_(),
    "val_accuracy": pa.float32(),
    "val_nll": pa.float32(),
    "fit_seconds": pa.float32(),
}

_PREFIX = "bend_ray."


class TableFormat(BaseModel):
    """What all tables of one population have in common, stored in the schema's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: int = FORMAT_VERSION
    """Of these columns and this metadata."""
    dtype: Literal["float32"] = "float32"
    """Of a parameter, little-endian."""
    num_parameters: int
    """P."""
    layout_digest: str
    """Names the layout that flattened the classifiers."""
    origin: Origin
    """The same in every row."""
    part_widths: tuple[PositiveInt, ...]
    """Floats in each theta column; they sum to P."""

    @classmethod
    def of(cls, population: Population) -> TableFormat:
        """The format a population is written in."""
        num_parameters = population.theta_KP.shape[1]
        return cls(
            num_parameters=num_parameters,
            layout_digest=population.layout_digest,
            origin=population.origin,
            part_widths=_part_widths(num_parameters),
        )

    @classmethod
    def from_schema(cls, schema: pa.Schema) -> TableFormat:
        """Reads the metadata and checks the columns against it.

        Raises:
            StoreError: a newer bend-ray wrote it.
            ValueError: it is not a population's, or contradicts itself.
        """
        try:
            metadata = {
                key.decode().removeprefix(_PREFIX): json.loads(value)
                for key, value in (schema.metadata or {}).items()
                if key.startswith(_PREFIX.encode())
            }
        except RecursionError as error:
            raise ValueError(f"expected the metadata of a population, got: {error}") from error
        for note in ("place", "maker"):
            metadata.pop(note, None)
        version = metadata.get("format_version", 0)
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise StoreError(
                f"expected population format {FORMAT_VERSION} or older, got {version}, "
                "which a newer bend-ray wrote: upgrade bend-ray"
            )
        try:
            found = cls.model_validate(metadata)
        except ValidationError as error:
            problem = first_problem(error)
            raise ValueError(f"expected the metadata of a population, got {problem}") from error
        adds_up = sum(found.part_widths) == found.num_parameters
        if not adds_up or not found.arrow_schema().equals(schema):
            raise ValueError(f"expected the columns of {found!r}, got {schema.names}")
        return found

    def arrow_schema(self) -> pa.Schema:
        """The columns in order, none of them nullable, and the metadata, each value as JSON."""
        theta_types = {name: pa.binary(4 * len(part)) for name, part in self.parts().items()}
        types = {**ROW_TYPES, **theta_types}
        return pa.schema(
            [pa.field(name, arrow, nullable=False) for name, arrow in types.items()],
            {f"{_PREFIX}{key}": json.dumps(value) for key, value in self.model_dump().items()},
        )

    def parts(self) -> dict[str, range]:
        """Theta column -> the parameters it holds."""
        return _consecutive(_part_names(len(self.part_widths)), self.part_widths)


def theta_part_names(num_parameters: int) -> list[str]:
    """The theta columns of a vector of P parameters, in order.

    >>> theta_part_names(MAX_PART_FLOATS + 1)
    ['theta_000', 'theta_001']
    """
    return _part_names(len(_part_widths(num_parameters)))


def table_from_population(population: Population, table_format: TableFormat) -> pa.Table:
    """The population as a table; a theta of one part is not copied."""
    columns: dict[str, Any] = {
        name: pa.array(getattr(population, name), arrow)
        for name, arrow in ROW_TYPES.items()
        if name != "origin"
    }
    columns["origin"] = pa.repeat(population.origin, len(population))
    for name, part in table_format.parts().items():
        bytes_KS = np.ascontiguousarray(population.theta_KP[:, part.start : part.stop], dtype="<f4")
        columns[name] = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(4 * len(part)), len(population), [None, pa.py_buffer(bytes_KS)]
        )
    schema = table_format.arrow_schema()
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def theta_from_table(table: pa.Table) -> NDArray[np.float32]:
    """The vectors of a table, ``theta_KP``.

    With one theta column in one chunk (a batch of Ray Data, a row group) it is a view of the
    table's memory, which may be read-only; otherwise a copy.

    Raises:
        ValueError: the table has no theta columns.
    """
    names = _part_names(sum(name.startswith("theta_") for name in table.column_names))
    if not names:
        raise ValueError(f"expected a column theta_000, got {table.column_names}")
    if len(names) == 1 and table.column(names[0]).num_chunks == 1:
        return _view(table.column(names[0]).chunk(0))
    widths = [table.schema.field(name).type.byte_width // 4 for name in names]
    theta_KP = np.empty((table.num_rows, sum(widths)), dtype=np.float32)
    copy_theta(table, _consecutive(names, widths), range(sum(widths)), theta_KP)
    return theta_KP


def copy_theta(
    table: pa.Table, parts: dict[str, range], wanted: range, out_KS: NDArray[np.float32]
) -> None:
    """Copies the parameters ``wanted`` of every row into ``out_KS``.

    Args:
        table: K rows, with the columns of ``parts``.
        parts: theta column -> the parameters it holds, for every part that overlaps ``wanted``.
        wanted: S parameters.
        out_KS: (K, S), written in place.
    """
    for name, part in parts.items():
        low, high = max(part.start, wanted.start), min(part.stop, wanted.stop)
        row = 0
        for chunk in table.column(name).chunks:
            view = _view(chunk)[:, low - part.start : high - part.start]
            out_KS[row : row + len(chunk), low - wanted.start : high - wanted.start] = view
            row += len(chunk)


def overlapping(parts: dict[str, range], wanted: range) -> dict[str, range]:
    """The parts that hold any of the parameters ``wanted``."""
    return {
        name: part
        for name, part in parts.items()
        if part.start < wanted.stop and wanted.start < part.stop
    }


def _view(chunk: pa.FixedSizeBinaryArray) -> NDArray[np.float32]:
    width = chunk.type.byte_width // 4
    # A sliced array shares the buffer of the whole and says where it starts.
    offset = chunk.offset * chunk.type.byte_width
    buffer = chunk.buffers()[1]
    flat = np.frombuffer(buffer, dtype="<f4", count=len(chunk) * width, offset=offset)
    return flat.reshape(len(chunk), width)


def _part_widths(num_parameters: int) -> tuple[int, ...]:
    full, rest = divmod(num_parameters, MAX_PART_FLOATS)
    return (MAX_PART_FLOATS,) * full + ((rest,) if rest else ())


def _part_names(num_parts: int) -> list[str]:
    return [f"theta_{index:03d}" for index in range(num_parts)]


def _consecutive(names: Iterable[str], widths: Iterable[int]) -> dict[str, range]:
    parts: dict[str, range] = {}
    start = 0
    for name, width in zip(names, widths, strict=True):
        parts[name] = range(start, start + width)
        start += width
    return parts
