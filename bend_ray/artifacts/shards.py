"""Shards: a population as Parquet files, ``shard-00000.parquet`` onwards.

Shape letters: K models, P parameters, S parameters of a range.

theta is stored plain, without dictionary, compression or statistics: random floats do not
compress, and whoever reads wants the bytes. Metadata of the schema (``bend_ray.*``, JSON) says P,
the layout's digest and how theta is cut, and which shard of which artifact it is. Every page has a
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

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bend_ray.artifacts.directory import MANIFEST_NAME
from bend_ray.artifacts.manifest import ManifestFile, installed_versions
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.tables import (
    ROW_TYPES,
    TableFormat,
    copy_theta,
    overlapping,
    table_from_population,
)
from bend_ray.errors import CorruptArtifact, StoreError
from bend_ray.storage.filesystems import open_file, patiently, side_by_side
from bend_ray.storage.masking import cause

ROW_GROUP_BYTES = 64 * 2**20
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


def write_shard(artifact: Artifact, index: int, population: Population) -> str:
    """Writes one shard, atomically, in row groups of about 64 MiB.

    Returns:
        The file's name.

    Raises:
        ValueError: a population without models or without theta.
        StoreError: it cannot be written.
    """
    if 0 in population.theta_KP.shape:
        raise ValueError(f"expected models to write, got theta {population.theta_KP.shape}")
    table_format = TableFormat.of(population)
    schema = table_format.arrow_schema()
    maker = json.dumps({"node": socket.gethostname(), **installed_versions()}).encode()
    notes = {_PLACE: _place(artifact, shard_name(index)), _MAKER: maker}
    schema = schema.with_metadata({**schema.metadata, **notes})
    bytes_per_row = 4 * table_format.num_parameters
    rows_per_group = max(1, ROW_GROUP_BYTES // bytes_per_row)

    def write() -> None:
        with (
            artifact.open_output(shard_name(index)) as stream,
            pq.ParquetWriter(
                stream,
                schema,
                compression="NONE",
                use_dictionary=False,
                write_statistics=list(ROW_TYPES),
                write_page_checksum=True,
                data_page_size=PAGE_BYTES,
                # After so many rows it looks whether a page is full; by default after 1,024.
                write_batch_size=max(1, PAGE_BYTES // bytes_per_row),
            ) as writer,
        ):
            for start in range(0, len(population), rows_per_group):
                group = population.select(slice(start, start + rows_per_group))
                writer.write_table(table_from_population(group, table_format), rows_per_group)

    patiently(artifact.filesystem, write)
    return shard_name(index)


def shard_rows(artifact: Artifact, index: int) -> int | None:
    """How many models a shard holds; None where it is missing, torn or no population.

    Raises:
        StoreError: the store cannot be read, or a newer bend-ray wrote the shard.
    """
    # A local file is visible before it is closed, so only a readable footer proves it whole.
    try:
        with _open_shard(artifact, shard_name(index)) as (file, _):
            return _num_rows(file)
    except CorruptArtifact:
        return None


def complete_shards(artifact: Artifact, expected: Mapping[int, int]) -> set[int]:
    """Which shards need not be made again.

    Args:
        artifact: the artifact being made.
        expected: shard index -> models it should hold.

    Raises:
        StoreError: the store cannot be read.
    """
    # Listed a thousand at a time: of shards that are not there, none is asked for.
    there = {file.name for file in artifact.list_files("shard-")}
    indices = [index for index in expected if shard_name(index) in there]
    found = side_by_side(partial(shard_rows, artifact), indices)
    return {index for index, rows in zip(indices, found, strict=True) if rows == expected[index]}


def count_models(artifact: Artifact) -> int:
    """Models in the whole shards of an artifact, committed or not.

    Raises:
        StoreError: the store cannot be read.
    """
    found = (_SHARD_NAME.fullmatch(file.name) for file in artifact.list_files("shard-"))
    indices = [int(match[1]) for match in found if match]
    return sum(shard_rows(artifact, index) or 0 for index in indices)


def shard_names(artifact: Artifact) -> list[str]:
    """The files of a committed population's shards, in order.

    Raises:
        StoreError: nothing is committed, or it is no population.
    """
    return [shard.name for shard in _listed_shards(artifact)]


def verified() -> pa.dataset.ParquetFragmentScanOptions:
    """How pyarrow's and Ray's datasets read shards: each page against its checksum."""
    return pa.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)


def verify_table(artifact: Artifact, name: str) -> None:
    """Read a shard, or another Parquet file, against the checksums of its pages.

    Raises:
        CorruptArtifact: it is not what was written.
        StoreError: the store cannot be read.
    """
    with ExitStack() as stack:
        if _SHARD_NAME.fullmatch(name):
            file, _ = stack.enter_context(_open_shard(artifact, name))
        else:
            file = stack.enter_context(_open_table(artifact, name))
        for group in range(file.num_row_groups):
            with _reading(artifact, name):
                patiently(artifact.filesystem, partial(file.read_row_group, group))


def read_format(artifact: Artifact) -> TableFormat:
    """P, the layout's digest and the theta columns of a committed population, without its rows.

    Raises:
        CorruptArtifact: the first shard does not read.
        StoreError: nothing is committed, or it is no population.
    """
    return _first_format(artifact, _listed_shards(artifact))


def read_population(artifact: Artifact, *, theta: bool = True) -> Population:
    """All models of a committed artifact, in the order of its shards.

    Memory holds the vectors once, plus one row group.

    Args:
        artifact: committed, with the rows of its shards.
        theta: whether to read the vectors; without, ``theta_KP`` is (K, 0).

    Raises:
        CorruptArtifact: a shard is missing, does not read, or disagrees with the manifest or
            with the first shard; the message names it.
        StoreError: it is not committed, is no population, or cannot be read.
    """
    shards = _listed_shards(artifact)
    table_format = _first_format(artifact, shards)
    stop = table_format.num_parameters if theta else 0
    names = [name for name in ROW_TYPES if name != "origin"]
    rows, theta_KP = _read(artifact, shards, table_format, names, range(stop))
    return Population(
        **{name: rows.column(name).to_numpy() for name in names},
        origin=table_format.origin,
        theta_KP=theta_KP,
        layout_digest=table_format.layout_digest,
    )


def read_table(artifact: Artifact, names: Collection[str]) -> pa.Table:
    """Some shards of a committed population as they are stored, one after another.

    Args:
        artifact: committed, with the rows of its shards.
        names: of ``shard_names``.

    Raises:
        CorruptArtifact, StoreError: as ``read_population``.
    """
    shards = _listed_shards(artifact)
    table_format = _first_format(artifact, shards)
    tables = []
    for shard in shards:
        if shard.name in names:
            with _open_listed(artifact, shard, table_format) as file:
                # Row groups at once: each column of a file is one piece of memory then.
                read = partial(file.read, use_threads=False)
                with _reading(artifact, shard.name):
                    tables.append(patiently(artifact.filesystem, read))
    return pa.concat_tables(tables)


def read_columns(artifact: Artifact, start: int, stop: int) -> NDArray[np.float32]:
    """Parameters ``start`` to ``stop`` of all models, reading only the parts that overlap.

    Returns:
        theta_KS, models in the order of ``read_population``.

    Raises:
        ValueError: an empty range, or one beyond the parameters.
        CorruptArtifact, StoreError: as ``read_population``.
    """
    shards = _listed_shards(artifact)
    table_format = _first_format(artifact, shards)
    if not 0 <= start < stop <= table_format.num_parameters:
        raise ValueError(
            f"expected a range within {table_format.num_parameters} parameters, "
            f"got {start} to {stop}"
        )
    return _read(artifact, shards, table_format, [], range(start, stop))[1]


def _first_format(artifact: Artifact, shards: list[ManifestFile]) -> TableFormat:
    with _open_shard(artifact, shards[0].name) as (_, table_format):
        return table_format


def _read(
    artifact: Artifact,
    shards: list[ManifestFile],
    table_format: TableFormat,
    names: list[str],
    wanted: range,
) -> tuple[pa.Table, NDArray[np.float32]]:
    """The columns ``names`` and, beside them, the parameters ``wanted`` as theta_KS."""
    parts = overlapping(table_format.parts(), wanted)
    num_models = sum(shard.rows or 0 for shard in shards)
    theta_KS = np.empty((num_models, len(wanted)), dtype=np.float32)
    tables = []
    row = 0
    for table in _row_groups(artifact, shards, table_format, [*names, *parts]):
        copy_theta(table, parts, wanted, theta_KS[row : row + table.num_rows])
        tables.append(table.select(names))
        row += table.num_rows
    return pa.concat_tables(tables), theta_KS


def _row_groups(
    artifact: Artifact, shards: list[ManifestFile], table_format: TableFormat, columns: list[str]
) -> Iterator[pa.Table]:
    """Every row group in order."""
    for shard in shards:
        with _open_listed(artifact, shard, table_format) as file:
            for group in range(file.num_row_groups):
                read = partial(file.read_row_group, group, columns=columns)
                with _reading(artifact, shard.name):
                    table = patiently(artifact.filesystem, read)
                yield table


@contextmanager
def _open_listed(
    artifact: Artifact, shard: ManifestFile, table_format: TableFormat
) -> Iterator[pq.ParquetFile]:
    """A shard, checked against the manifest and the format that all have."""
    with _open_shard(artifact, shard.name) as (file, found):
        if found != table_format:
            raise artifact.corrupt(shard.name, f"expected {table_format!r}, got {found!r}")
        if (num_rows := _num_rows(file)) != shard.rows:
            came = f"expected {shard.rows} models, got {num_rows}"
            raise artifact.corrupt(shard.name, came)
        yield file


def _num_rows(file: pq.ParquetFile) -> int:
    # Not the footer's total, which a damaged footer may contradict.
    return sum(file.metadata.row_group(index).num_rows for index in range(file.num_row_groups))


def _listed_shards(artifact: Artifact) -> list[ManifestFile]:
    shards = [file for file in artifact.manifest().files if _SHARD_NAME.fullmatch(file.name)]
    if not shards:
        raise StoreError(f"expected a population in {artifact!r}, got no shard in its manifest")
    for shard in shards:
        if shard.rows is None:
            raise artifact.corrupt(MANIFEST_NAME, f"expected the rows of {shard.name}, got none")
    return sorted(shards, key=lambda shard: int(shard.name[len("shard-") : -len(".parquet")]))


@contextmanager
def _open_table(artifact: Artifact, name: str) -> Iterator[pq.ParquetFile]:
    # Columns asked for at once save a cloud's latency, and cost a copy where there is none.
    far = artifact.filesystem.type_name != "local"
    with ExitStack() as stack:
        with _reading(artifact, name):
            source = stack.enter_context(open_file(artifact.filesystem, artifact.child(name)))
            file = stack.enter_context(
                pq.ParquetFile(source, pre_buffer=far, page_checksum_verification=True)
            )
        yield file


@contextmanager
def _open_shard(artifact: Artifact, name: str) -> Iterator[tuple[pq.ParquetFile, TableFormat]]:
    with _open_table(artifact, name) as file:
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
def _reading(artifact: Artifact, name: str) -> Iterator[None]:
    """Tells a broken file (``CorruptArtifact``) from a store that fails (``StoreError``)."""
    try:
        yield
    except FileNotFoundError as error:
        raise artifact.corrupt(name, "expected a Parquet file, got no such file") from error
    except OSError as error:
        # The Parquet reader also complains with OSErrors, but without an errno. A cloud's
        # network failures have none either, and nobody should delete data because of those.
        if error.errno is None and artifact.filesystem.type_name == "local":
            raise artifact.corrupt(name, f"expected a Parquet file, got: {cause(error)}") from error
        raise StoreError(f"cannot read {name} of {artifact!r}: {cause(error)}") from error
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise artifact.corrupt(name, f"expected a Parquet file, got: {cause(error)}") from error
