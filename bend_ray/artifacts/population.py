"""Population: many classifiers of one architecture, one row a model, and as an Arrow table.

Shape letters: K models, P parameters, S parameters of a range.

In a table theta is cut into column ranges of at most 256 KiB a row, ``theta_000``, ``theta_001``,
..., so that whoever needs a range of the parameters reads little else; a cell is a
fixed_size_binary of little-endian float32. It reads several times faster than a list or tensor
column, and needs nothing but pyarrow and ``frombuffer``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, ValidationError

from bend_ray.process.matrix import STORED_COLUMNS
from bend_ray.spec import Record, first_problem

Origin = Literal["trained", "generated"]

MAX_PART_FLOATS = STORED_COLUMNS

_FORMAT = b"bend_ray.population"
"""Key of the schema's metadata."""


@dataclass(frozen=True, eq=False)
class Population:
    """K classifiers; what comes is converted to the types below, or refused by a ValueError.

    Columns are (K,), and ``theta_KP`` (K, 0) when it was not read. ``trunk`` is the independent
    start a model descends from, ``fork`` which continuation of it, ``step`` counts optimizer steps,
    ``held_out`` ones are kept from the generator's training. ``val_accuracy`` is the task's score:
    accuracy in [0, 1], or R^2 of regression; ``val_nll`` is in nats, ``fit_seconds`` are of CPU.
    ``layout_digest`` names the layout that flattened them, ``origin`` says if they were drawn.
    """

    model_id: NDArray[np.int64]
    trunk: NDArray[np.int32]
    fork: NDArray[np.int32]
    step: NDArray[np.int64]
    seed: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    val_accuracy: NDArray[np.float32]
    val_nll: NDArray[np.float32]
    fit_seconds: NDArray[np.float32]
    origin: Origin
    theta_KP: NDArray[np.float32]
    layout_digest: str

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=dtype))
        if self.origin not in get_args(Origin):
            raise ValueError(f"expected origin {Origin}, got {self.origin!r}")
        if self.theta_KP.ndim != 2:
            raise ValueError(f"expected theta_KP of shape (K, P), got {self.theta_KP.shape}")
        for name in _DTYPES:
            shape = getattr(self, name).shape
            if name != "theta_KP" and shape != (len(self),):
                raise ValueError(f"expected {name} of shape {(len(self),)}, got {shape}")

    def __len__(self) -> int:
        return len(self.theta_KP)

    def select(self, rows: ArrayLike | slice) -> Population:
        """The models at a boolean mask, at indices, or in a slice (a view, nothing copied)."""
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            # numpy takes an empty list for floats, and floats for no index.
            rows = rows if rows.size else rows.astype(np.intp)
        return replace(self, **{name: getattr(self, name)[rows] for name in _DTYPES})


_DTYPES = {
    name: get_args(get_args(hint)[1])[0]
    for name, hint in get_type_hints(Population).items()
    if get_origin(hint) is np.ndarray
}
ROW_TYPES = {"model_id": pa.int64(), "origin": pa.string()} | {
    name: pa.from_numpy_dtype(dtype) for name, dtype in _DTYPES.items() if name != "theta_KP"
}


class TableFormat(Record):
    """What all tables of one population have in common, stored in the schema's metadata."""

    layout_digest: str
    """Names the layout that flattened the classifiers."""
    origin: Origin
    """The same in every row."""
    part_widths: tuple[Annotated[int, Field(gt=0, lt=2**28)], ...]
    """Floats in each theta column, little-endian float32; they sum to P."""

    @property
    def num_parameters(self) -> int:
        """P."""
        return sum(self.part_widths)

    @classmethod
    def of(cls, population: Population) -> TableFormat:
        """The format a population is written in."""
        full, rest = divmod(population.theta_KP.shape[1], MAX_PART_FLOATS)
        return cls(
            layout_digest=population.layout_digest,
            origin=population.origin,
            part_widths=(MAX_PART_FLOATS,) * full + ((rest,) if rest else ()),
        )

    @classmethod
    def from_schema(cls, schema: pa.Schema) -> TableFormat:
        """Reads the metadata; ValueError where it is none, or contradicts the columns."""
        try:
            found = cls.model_validate_json((schema.metadata or {}).get(_FORMAT, b""))
        except ValidationError as error:
            problem = first_problem(error)
            raise ValueError(f"expected the metadata of a population, got {problem}") from error
        if not found.arrow_schema().equals(schema):
            raise ValueError(f"expected the columns of {found!r}, got {schema.names}")
        return found

    def arrow_schema(self) -> pa.Schema:
        """The columns in order, none of them nullable, and the metadata, as JSON."""
        theta_types = {name: pa.binary(4 * len(part)) for name, part in self.parts().items()}
        return pa.schema(
            [pa.field(*each, nullable=False) for each in (ROW_TYPES | theta_types).items()],
            {_FORMAT: self.model_dump_json()},
        )

    def parts(self, wanted: range | None = None) -> dict[str, range]:
        """Theta column -> the parameters it holds; of those with any of ``wanted``."""
        ends = list(accumulate(self.part_widths, initial=0))
        every = map(range, ends, ends[1:])
        return {
            f"theta_{i:03d}": part
            for i, part in enumerate(every)
            if wanted is None or (part.start < wanted.stop and wanted.start < part.stop)
        }


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
    return pa.table(columns, schema=table_format.arrow_schema())


def copy_theta(
    table: pa.Table,
    parts: dict[str, range],
    wanted: range,
    out_KS: NDArray[np.float32],
    places: NDArray[np.intp],
    rows: NDArray[np.intp],
) -> None:
    """Copies the parameters ``wanted`` of some rows of a table into ``places`` of ``out_KS``.

    ``parts`` are the table's theta columns that overlap ``wanted``, see ``TableFormat.parts``.
    """
    for name, part in parts.items():
        low, high = max(part.start, wanted.start), min(part.stop, wanted.stop)
        columns = slice(low - wanted.start, high - wanted.start)
        first = 0
        for chunk in table.column(name).chunks:
            # A sliced array shares the buffer of the whole and says where it starts.
            offset = chunk.offset * chunk.type.byte_width
            flat = np.frombuffer(chunk.buffers()[1], "<f4", len(chunk) * len(part), offset)
            view = flat.reshape(-1, len(part))[:, low - part.start : high - part.start]
            own = (rows >= first) & (rows < first + len(chunk))
            out_KS[_run(places[own]), columns] = view[_run(rows[own] - first)]
            first += len(chunk)


def _run(index: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """As a slice where it is a run, which is copied at once."""
    is_run = len(index) and (np.diff(index) == 1).all()
    return slice(index[0], index[-1] + 1) if is_run else index
