from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bend_ray.artifacts import population as tables
from bend_ray.artifacts import shards
from bend_ray.artifacts import store as store_module
from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.manifest import installed_versions
from bend_ray.artifacts.population import ROW_TYPES, Population
from bend_ray.artifacts.shards import (
    complete_shards,
    listed_shards,
    read_columns,
    read_format,
    read_population,
    shard_rows,
    write_shard,
)
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.errors import CorruptArtifact, StoreError

ARRAYS = [*(name for name in ROW_TYPES if name != "origin"), "theta_KP"]


def models(num_models: int, num_parameters: int = 6, **changes: Any) -> Population:
    rng = np.random.default_rng(num_models)
    values: dict[str, Any] = {
        name: rng.integers(0, 100, num_models) for name in ROW_TYPES if name != "origin"
    }
    values["val_accuracy"] = np.where(rng.random(num_models) < 0.3, np.nan, 0.5)
    values["theta_KP"] = rng.standard_normal((num_models, num_parameters), dtype=np.float32)
    return Population(**{**values, "origin": "trained", "layout_digest": "d1", **changes})


def commit(artifact: Artifact, populations: list[Population]) -> Artifact:
    names = [write_shard(artifact, index, each) for index, each in enumerate(populations)]
    rows = {name: len(each) for name, each in zip(names, populations, strict=True)}
    return artifact.commit(files=names, rows=rows, metrics={}, cost=Cost())


def assert_same(found: Population, expected: Population) -> None:
    assert (found.origin, found.layout_digest) == (expected.origin, expected.layout_digest)
    for name in ARRAYS:
        assert getattr(found, name).dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def joined(populations: list[Population]) -> Population:
    """One population after the other."""
    every = {
        name: np.concatenate([getattr(each, name) for each in populations])
        for name in (*ROW_TYPES.keys() - {"origin"}, "theta_KP")
    }
    return replace(populations[0], **every)


@pytest.fixture(params=["local", "object"])
def artifact(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Artifact:
    if request.param == "object":
        tree = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
        monkeypatch.setattr(store_module, "resolve", lambda uri: (tree, "bucket"))
        return Store("s3://bucket").artifact("seeds", 1, {})
    return Store(str(tmp_path)).artifact("seeds", 1, {})


@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    num_parameters=st.integers(1, 9),
    max_part_floats=st.integers(1, 9),
    row_group_bytes=st.integers(1, 100),
    data=st.data(),
)
def test_what_was_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    num_parameters: int,
    max_part_floats: int,
    row_group_bytes: int,
    data: st.DataObject,
) -> None:
    artifact = Store(str(tmp_path_factory.mktemp("store"))).artifact("seeds", 1, {})
    written = [models(size, num_parameters) for size in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "MAX_PART_FLOATS", max_part_floats)
        patch.setattr(shards, "ROW_GROUP_BYTES", row_group_bytes)
        commit(artifact, written)
    expected = joined(written)
    found = read_population(artifact)
    assert_same(found, expected)
    assert found.theta_KP.flags.writeable
    start = data.draw(st.integers(0, num_parameters - 1))
    stop = data.draw(st.integers(start + 1, num_parameters))
    np.testing.assert_array_equal(
        read_columns(artifact, start, stop), expected.theta_KP[:, start:stop]
    )
    names = [shard.name for shard in listed_shards(artifact)]
    some = data.draw(st.integers(1, len(names)))
    few = read_population(artifact, shards=names[-some:])
    assert_same(few, joined(written[-some:]))


def test_a_store_without_rename_gives_back_what_it_got(artifact: Artifact) -> None:
    written = models(4)
    commit(artifact, [written])
    assert_same(read_population(artifact), written)


def test_theta_can_be_left_out(artifact: Artifact) -> None:
    written = [models(4), models(3)]
    commit(artifact, written)
    found = read_population(artifact, theta=False)
    assert found.theta_KP.shape == (7, 0)
    assert found.seed.tolist() == joined(written).seed.tolist()
    assert read_format(artifact).num_parameters == 6


def test_only_overlapping_parts_are_read(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_PART_FLOATS", 2)
    written = models(3)
    commit(artifact, [written])
    asked: list[list[str]] = []
    original = pq.ParquetFile.read_row_group

    def spy(self: Any, group: int, columns: list[str]) -> pa.Table:
        asked.append(columns)
        return original(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    np.testing.assert_array_equal(read_columns(artifact, 3, 5), written.theta_KP[:, 3:5])
    assert asked == [["theta_001", "theta_002"]]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (0, 7)])
def test_a_range_beyond_the_parameters_is_a_mistake(tmp_path: Path, start: int, stop: int) -> None:
    artifact = commit(Store(str(tmp_path)).artifact("seeds", 1, {}), [models(2)])
    with pytest.raises(ValueError, match="expected a range within 6 parameters"):
        read_columns(artifact, start, stop)


def test_pyarrow_alone_reads_a_vector(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).artifact("seeds", 1, {})
    written = models(3)
    table = pq.read_table(artifact.child(write_shard(artifact, 3, written)))
    assert os.listdir(artifact.path) == ["shard-00003.parquet"]
    assert table.column_names == [*ROW_TYPES, "theta_000"]
    vector = np.frombuffer(table["theta_000"][1].as_buffer(), "<f4")
    np.testing.assert_array_equal(vector, written.theta_KP[1])
    assert table["seed"].to_pylist() == written.seed.tolist()
    told = json.loads(table.schema.metadata[b"bend_ray.population"])
    assert (told["part_widths"], told["layout_digest"]) == ([6], "d1")


def test_theta_is_stored_plain_in_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 2 * 4 * 6)
    artifact = Store(str(tmp_path)).artifact("seeds", 1, {})
    metadata = pq.read_metadata(artifact.child(write_shard(artifact, 0, models(5))))
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2, 2, 1]
    theta = metadata.row_group(0).column(len(ROW_TYPES))
    assert theta.path_in_schema == "theta_000"
    assert theta.compression == "UNCOMPRESSED"
    assert not theta.has_dictionary_page
    assert not theta.is_stats_set
    assert "PLAIN" in theta.encodings


def test_nothing_to_write_is_a_mistake(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).artifact("seeds", 1, {})
    for empty in (models(0), models(2, num_parameters=0)):
        with pytest.raises(ValueError, match="expected models to write"):
            write_shard(artifact, 0, empty)
    assert artifact.list_files() == {}


def test_only_whole_shards_are_complete(artifact: Artifact) -> None:
    for index in range(4):
        write_shard(artifact, index, models(3))
    whole = artifact.read_bytes("shard-00001.parquet")
    with artifact.open_output("shard-00001.parquet") as stream:
        stream.write(whole[:-10])
    pq.write_table(
        pa.table({"a": [1, 2, 3]}),
        artifact.child("shard-00002.parquet"),
        filesystem=artifact.filesystem,
    )
    assert [shard_rows(artifact, index) for index in range(5)] == [3, None, None, 3, None]
    assert complete_shards(artifact, {0: 3, 1: 3, 2: 3, 3: 4, 4: 3}) == {0}


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (models(3, layout_digest="d2"), "layout_digest='d1'.*layout_digest='d2'"),
        (models(3, num_parameters=7), r"part_widths=\(6,\).*part_widths=\(7,\)"),
        (models(3, origin="generated"), "origin='trained'.*origin='generated'"),
        (models(4), "expected 3 models, got 4"),
        (b"garbage", "expected a Parquet file"),
        (b"", "expected a Parquet file"),
        (None, "no such file"),
    ],
)
def test_a_shard_that_does_not_fit_is_named(
    tmp_path: Path, second: Population | bytes | None, problem: str
) -> None:
    artifact = commit(Store(str(tmp_path)).artifact("seeds", 1, {}), [models(3), models(3)])
    name = "shard-00001.parquet"
    if isinstance(second, Population):
        write_shard(artifact, 1, second)
    else:
        artifact.discard(name)
    if isinstance(second, bytes):
        Path(artifact.child(name)).write_bytes(second)
    with pytest.raises(CorruptArtifact, match=f"{name} is corrupt: .*{problem}") as caught:
        read_population(artifact)
    assert f"delete {artifact.uri}" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CorruptArtifact, match=f"{name} is corrupt: .*{problem}"):
        read_population(artifact, shards=[name])
    assert len(read_population(artifact, shards=["shard-00000.parquet"])) == 3


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_shard_is_called_corrupt_or_holds_what_it_held(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    artifact = Store(str(tmp_path_factory.mktemp("store"))).artifact("seeds", 1, {})
    commit(artifact, [models(3)])
    path = Path(artifact.child("shard-00000.parquet"))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        found = read_population(artifact)
    except (CorruptArtifact, StoreError):
        return
    # Whoever reads compares the digest with that of the layout.
    assert_same(found, models(3, layout_digest=found.layout_digest))


def test_every_bit_of_theta_is_covered_by_a_checksum(tmp_path: Path) -> None:
    artifact = commit(Store(str(tmp_path)).artifact("seeds", 1, {}), [models(3)])
    path = Path(artifact.child("shard-00000.parquet"))
    whole = path.read_bytes()
    place = whole.index(models(3).theta_KP[1].tobytes())
    for bit in range(0, 8 * 6 * 4, 5):
        damaged = bytearray(whole)
        damaged[place + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptArtifact, match="checksum"):
            read_population(artifact)
        checked = pyarrow.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
        dataset = pyarrow.dataset.ParquetFileFormat(default_fragment_scan_options=checked)
        with pytest.raises(OSError, match="checksum"):
            pyarrow.dataset.dataset(str(path), format=dataset).to_table()


def test_no_shard_passes_for_another(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    ours, others = (
        commit(store.artifact("seeds", 1, {"seed": seed}), [models(3), models(3)])
        for seed in range(2)
    )
    first, second = (Path(ours.child(f"shard-0000{index}.parquet")) for index in range(2))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(CorruptArtifact, match=r"shard-00000\.parquet is corrupt.*shard-00001"):
        read_population(ours)
    first.write_bytes(Path(others.child(first.name)).read_bytes())
    with pytest.raises(CorruptArtifact, match=f"expected shard .*, got .*{others.fingerprint}"):
        read_population(ours)
    first.write_bytes(whole)
    assert len(read_population(ours)) == 6


def test_a_shard_says_which_node_wrote_it_with_what(tmp_path: Path) -> None:
    artifact = commit(Store(str(tmp_path)).artifact("seeds", 1, {}), [models(3)])
    metadata = pq.read_schema(artifact.child("shard-00000.parquet")).metadata
    maker = json.loads(metadata[b"bend_ray.maker"])
    assert maker == {"node": socket.gethostname(), **installed_versions()}
    assert {"bend_ray", "torch", "numpy"} <= set(maker)


def test_an_artifact_without_shards_is_no_population(tmp_path: Path) -> None:
    artifact = commit(Store(str(tmp_path)).artifact("seeds", 1, {}), [])
    with pytest.raises(StoreError, match="expected a population in"):
        read_population(artifact)


def test_a_population_is_read_after_its_commit_only(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).artifact("seeds", 1, {})
    write_shard(artifact, 0, models(3))
    with pytest.raises(StoreError, match="to be committed"):
        read_population(artifact)
