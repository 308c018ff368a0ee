"""Shards: a population as Parquet files, ``shard-00000.parquet`` onwards.

Shape letters: K models, P parameters, S parameters of a range.

theta is stored plain, without dictionary, compression or statistics: random floats do not
compress, and whoever reads wants the bytes. Metadata of the schema (``bend_ray.*``, JSON) says the
layout's digest and how theta is cut, and which shard of which artifact it is. Every page has a
checksum, which is verified whenever it is read. pyarrow alone reads it::

    np.frombuffer(pq.read_table(path)["theta_000"][0].as_buffer(), "<f4")
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bend_ray.artifacts.directory import MANIFEST_NAME
from bend_ray.artifacts.manifest import ManifestFile, installed_versions
from bend_ray.artifacts.population import (
    MAX_PART_FLOATS,
    ROW_TYPES,
    Population,
    TableFormat,
    copy_theta,
    table_from_population,
)
from bend_ray.artifacts.store import Artifact
from bend_ray.errors import CorruptArtifact, StoreError
from bend_ray.storage.filesystems import open_file, patiently, side_by_side
from bend_ray.storage.masking import cause

ROW_GROUP_BYTES = 64 * 2**20
PIECE_BYTES = 16 * 2**20
"""Of a row group's theta, read at once."""
PAGE_BYTES = 2**18
"""Of theta in one page, or one vector's part: what a processor's cache holds while it is copied,
and its checksum taken."""

_PLACE = b"bend_ray.place"
"""Key of the schema's metadata: ``stage/fingerprint/name``, so that no shard passes for another."""
_MAKER = b"bend_ray.maker"
"""Key of the node that wrote it, and of what it computed with: other kernels round otherwise."""

_SHARD_NAME = re.compile(r"shard-(\d{5,})\.parquet")


def shard_name(index: int) -> str:
    """The file of shard ``index``."""
    return f"shard-{index:05d}.parquet"


@contextmanager
def table_writer(
    artifact: Artifact, name: str, schema: pa.Schema, **options: Any
) -> Iterator[pq.ParquetWriter]:
    """Writes a Parquet file of plain pages with checksums, that is there whole or not at all."""
    plain = {"compression": "NONE", "use_dictionary": False, "write_statistics": False}
    with (
        artifact.open_output(name) as stream,
        pq.ParquetWriter(
            stream, schema, write_page_checksum=True, **{**plain, **options}
        ) as writer,
    ):
        yield writer


def write_shard(artifact: Artifact, index: int, population: Population) -> str:
    """Writes one shard, atomically, in row groups of about 64 MiB; its file's name.

    ValueError for a population without models or without theta.
    """
    if 0 in population.theta_KP.shape:
        raise ValueError(f"expected models to write, got theta {population.theta_KP.shape}")
    table_format, name = TableFormat.of(population), shard_name(index)
    schema = table_format.arrow_schema()
    maker = json.dumps({"node": socket.gethostname(), **installed_versions()}).encode()
    notes = {_PLACE: _place(artifact, name), _MAKER: maker}
    schema = schema.with_metadata({**schema.metadata, **notes})
    bytes_per_row = 4 * table_format.num_parameters
    rows_per_group = max(1, ROW_GROUP_BYTES // bytes_per_row)
    pages = {
        "write_statistics": list(ROW_TYPES),
        "data_page_size": PAGE_BYTES,
        # After so many rows it looks whether a page is full; by default after 1,024.
        "write_batch_size": max(1, PAGE_BYTES // bytes_per_row),
    }

    def write() -> None:
        with table_writer(artifact, name, schema, **pages) as writer:
            for start in range(0, len(population), rows_per_group):
                group = population.select(slice(start, start + rows_per_group))
                writer.write_table(table_from_population(group, table_format), rows_per_group)

    patiently(artifact.filesystem, write)
    return name


def shard_rows(artifact: Artifact, index: int) -> int | None:
    """How many models a shard holds; None where it is missing, torn or no population."""
    # A local file is visible before it is closed, so only a readable footer proves it whole.
    try:
        with _open_shard(artifact, shard_name(index)) as (file, _):
            return _num_rows(file)
    except CorruptArtifact:
        return None


def complete_shards(artifact: Artifact, expected: Mapping[int, int]) -> set[int]:
    """Which shards need not be made again, by index -> models that they should hold."""
    # Listed a thousand at a time: of shards that are not there, none is asked for.
    there = artifact.list_files("shard-")
    indices = [index for index in expected if shard_name(index) in there]
    found = side_by_side(partial(shard_rows, artifact), indices)
    return {index for index, rows in zip(indices, found, strict=True) if rows == expected[index]}


def count_models(artifact: Artifact) -> int:
    """Models in the whole shards of an artifact, committed or not."""
    found = map(_SHARD_NAME.fullmatch, artifact.list_files("shard-"))
    return sum(shard_rows(artifact, int(match[1])) or 0 for match in found if match)


def listed_shards(artifact: Artifact) -> list[ManifestFile]:
    """The shards of a committed population, with their rows, in order."""
    shards = [file for file in artifact.manifest().files if _SHARD_NAME.fullmatch(file.name)]
    if not shards:
        raise StoreError(f"expected a population in {artifact!r}, got no shard in its manifest")
    for shard in shards:
        if shard.rows is None:
            raise artifact.corrupt(MANIFEST_NAME, f"expected the rows of {shard.name}, got none")
    return sorted(shards, key=lambda shard: int(shard.name[len("shard-") : -len(".parquet")]))


def verify_table(artifact: Artifact, name: str) -> None:
    """Read a shard, or another Parquet file, against the checksums of its pages."""
    if _SHARD_NAME.fullmatch(name):
        with _open_shard(artifact, name):
            pass
    with open_table(artifact, name) as file:
        for group in range(file.num_row_groups):
            read_group(artifact, name, file, group)


def read_format(artifact: Artifact) -> TableFormat:
    """P, the layout's digest and the theta columns of a committed population, without its rows."""
    return _listed(artifact)[1]


def _listed(artifact: Artifact) -> tuple[list[ManifestFile], TableFormat]:
    """The shards, and the format of the first, which all must have."""
    shards = listed_shards(artifact)
    with _open_shard(artifact, shards[0].name) as (_, table_format):
        return shards, table_format


def read_population(
    artifact: Artifact, *, theta: bool = True, shards: Collection[str] | None = None
) -> Population:
    """All models of a committed artifact, or those of some shards, in the order of its shards.

    Memory holds the vectors once, plus one row group; without ``theta``, ``theta_KP`` is (K, 0).
    """
    listed, table_format = _listed(artifact)
    listed = [shard for shard in listed if shards is None or shard.name in shards]
    names = [name for name in ROW_TYPES if name != "origin"]
    wanted = range(table_format.num_parameters if theta else 0)
    rows, theta_KP = _read(artifact, listed, table_format, names, wanted)
    return Population(
        **{name: rows.column(name).to_numpy() for name in names},
        origin=table_format.origin,
        theta_KP=theta_KP,
        layout_digest=table_format.layout_digest,
    )


def read_columns(
    artifact: Artifact, start: int, stop: int, rows: NDArray[np.intp] | None = None
) -> NDArray[np.float32]:
    """Parameters ``start`` to ``stop`` of all models, or of some, reading little else.

    Gives theta_KS, models in the order of ``read_population``, or that of ``rows``. ValueError for
    an empty range, or one beyond the parameters.
    """
    shards, table_format = _listed(artifact)
    if not 0 <= start < stop <= table_format.num_parameters:
        raise ValueError(
            f"expected a range within {table_format.num_parameters} parameters, "
            f"got {start} to {stop}"
        )
    return _read(artifact, shards, table_format, [], range(start, stop), rows)[1]


def _read(
    artifact: Artifact,
    shards: list[ManifestFile],
    table_format: TableFormat,
    names: list[str],
    wanted: range,
    rows: NDArray[np.intp] | None = None,
) -> tuple[pa.Table, NDArray[np.float32]]:
    """The columns ``names`` of all and, beside them, the parameters ``wanted`` as theta_KS."""
    parts = table_format.parts(wanted)
    rows = np.arange(sum(shard.rows or 0 for shard in shards)) if rows is None else rows
    theta_KS = np.empty((len(rows), len(wanted)), dtype=np.float32)
    tables = []
    stop = 0
    for shard in shards:
        start, stop = stop, stop + (shard.rows or 0)
        if not (names or ((rows >= start) & (rows < stop)).any()):
            continue
        with _open_shard(artifact, shard.name) as (file, found):
            if found != table_format:
                raise artifact.corrupt(shard.name, f"expected {table_format!r}, got {found!r}")
            if (num_rows := _num_rows(file)) != shard.rows:
                came = f"expected {shard.rows} models, got {num_rows}"
                raise artifact.corrupt(shard.name, came)
            for group in range(file.num_row_groups):
                length = file.metadata.row_group(group).num_rows
                own = np.flatnonzero((rows >= start) & (rows < start + length))
                if names:
                    tables.append(read_group(artifact, shard.name, file, group, names))
                # Not all of a large model at once: Arrow keeps what it has ever held.
                few = max(1, PIECE_BYTES // (4 * MAX_PART_FLOATS * length))
                for first in range(0, len(parts) if len(own) else 0, few):
                    some = dict([*parts.items()][first : first + few])
                    table = read_group(artifact, shard.name, file, group, [*some])
                    copy_theta(table, some, wanted, theta_KS, own, rows[own] - start)
                start += length
    return pa.concat_tables(tables) if tables else pa.table({}), theta_KS


def _num_rows(file: pq.ParquetFile) -> int:
    # Not the footer's total, which a damaged footer may contradict.
    return sum(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))


def read_group(
    artifact: Artifact, name: str, file: pq.ParquetFile, group: int, columns: Any = None
) -> pa.Table:
    """A row group of what ``open_table`` has opened, or some columns of it."""
    with reading(artifact, name):
        return patiently(artifact.filesystem, partial(file.read_row_group, group, columns=columns))


@contextmanager
def open_table(artifact: Artifact, name: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file of an artifact, read against the checksums of its pages."""
    # Columns asked for at once save a cloud's latency, and cost a copy where there is none.
    far = artifact.filesystem.type_name != "local"
    with ExitStack() as stack:
        with reading(artifact, name):
            source = stack.enter_context(open_file(artifact.filesystem, artifact.child(name)))
            file = stack.enter_context(
                pq.ParquetFile(source, pre_buffer=far, page_checksum_verification=True)
            )
        yield file


@contextmanager
def _open_shard(artifact: Artifact, name: str) -> Iterator[tuple[pq.ParquetFile, TableFormat]]:
    with open_table(artifact, name) as file:
        schema = file.schema_arrow
        try:
            table_format = TableFormat.from_schema(schema)
        except ValueError as error:
            raise artifact.corrupt(name, cause(error)) from error
        expected = _place(artifact, name)
        if (found := schema.metadata.get(_PLACE, expected)) != expected:
            raise artifact.corrupt(name, f"expected shard {expected!r}, got {found!r}")
        yield file, table_format


def _place(artifact: Artifact, name: str) -> bytes:
    return json.dumps(f"{artifact.stage}/{artifact.fingerprint}/{name}").encode()


@contextmanager
def reading(artifact: Artifact, name: str) -> Iterator[None]:
    """Tells a broken file (``CorruptArtifact``) from a store that fails (``StoreError``)."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        # The Parquet reader also complains with OSErrors, but without an errno. A cloud's
        # network failures have none either, and nobody should delete data because of those.
        local = artifact.filesystem.type_name == "local"
        gone = isinstance(error, FileNotFoundError)
        if isinstance(error, OSError) and not gone and (error.errno is not None or not local):
            raise StoreError(f"cannot read {name} of {artifact!r}: {cause(error)}") from error
        got = "got no such file" if gone else f"got: {cause(error)}"
        raise artifact.corrupt(name, f"expected a Parquet file, {got}") from error
