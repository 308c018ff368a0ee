"""Whatever lies in a store is read as it was written, or refused in one line."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import damaged, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from test_shards import assert_same, commit, models

from bend_ray.artifacts.manifest import parse_manifest
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import complete_shards, read_population, verify_table
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.artifacts.weights import load_weights, save_weights
from bend_ray.errors import BendError, CorruptArtifact
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.populations.members import LAYOUT, read_layout

SHARD = "shard-00000.parquet"


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Store(str(tmp_path)).artifact("seeds", 1, {})


def committed(folder: Path, members: int) -> tuple[Artifact, Population]:
    """A population in a store of its own: what is committed is not written again."""
    artifact = Store(str(folder / uuid.uuid4().hex)).artifact("seeds", 1, {})
    written = models(members)
    commit(artifact, [written])
    return artifact, written


def refused(read: Callable[[], Any]) -> Any:
    """What is read, or None where it is refused; anything but one line of ours is raised."""
    try:
        return read()
    except BendError as error:
        told = str(error)
    assert len(told.splitlines()) == 1
    return None


def put(artifact: Artifact, name: str, content: bytes) -> None:
    Path(artifact.child(name)).write_bytes(content)


@pytest.mark.slow
@given(data=st.data())
@fuzzed(40)
def test_any_shard(tmp_path: Path, data: st.DataObject) -> None:
    artifact, written = committed(tmp_path, 3)
    whole = Path(artifact.child(SHARD)).read_bytes()
    put(artifact, SHARD, data.draw(damaged(whole)))
    found = refused(lambda: read_population(artifact))
    if found is not None:
        # What is damaged and read all the same is a part that is nobody's: metadata of Arrow.
        assert_same(found, written)
    refused(lambda: verify_table(artifact, SHARD))
    assert complete_shards(artifact, {0: 3}) <= {0}


@given(data=st.data())
@fuzzed(20)
def test_any_weights(artifact: Artifact, data: st.DataObject) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1, dtype=torch.int64)}
    save_weights(artifact, "w.safetensors", tensors)
    whole = Path(artifact.child("w.safetensors")).read_bytes()
    put(artifact, "w.safetensors", data.draw(damaged(whole)))
    refused(lambda: load_weights(artifact, "w.safetensors"))
    put(artifact, "w.safetensors", data.draw(st.binary(max_size=40)))
    assert refused(lambda: load_weights(artifact, "w.safetensors")) is None


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=6), below),
    max_leaves=12,
)
rows = st.tuples(
    st.text(max_size=4) | any_json,
    st.lists(st.integers(-2, 2**70), max_size=3) | any_json,
    st.booleans() | any_json,
)


@given(told=st.lists(rows, max_size=3) | any_json)
@fuzzed(40)
def test_any_layout(artifact: Artifact, told: Any) -> None:
    artifact.write_json(LAYOUT, told)
    layout = refused(lambda: read_layout(artifact))
    if layout is not None:
        assert ParameterLayout.from_json(layout.to_json()) == layout
        assert 0 <= layout.size < 2**63


@pytest.mark.slow
@given(data=st.data())
@fuzzed(40)
def test_any_manifest(tmp_path: Path, data: st.DataObject) -> None:
    artifact, _ = committed(tmp_path, 2)
    whole = Path(artifact.child("manifest.json")).read_bytes()
    put(artifact, "manifest.json", data.draw(damaged(whole) | st.binary(max_size=20)))
    if refused(artifact.exists):
        refused(lambda: read_population(artifact))


@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"a":' * 10**5, b"1" * 5000, b"\xff", b""])
def test_json_without_end(artifact: Artifact, content: bytes) -> None:
    artifact.write_json(LAYOUT, [])
    for name in (LAYOUT, "manifest.json"):
        put(artifact, name, content)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_manifest(content)
    with pytest.raises(CorruptArtifact):
        artifact.exists()


@given(name=st.text(max_size=12) | st.sampled_from(["..", "../x", "/etc/passwd", "a/../../b", "."]))
@fuzzed(40)
def test_any_name_stays_inside(artifact: Artifact, name: str) -> None:
    try:
        path = artifact.child(name)
    except ValueError:
        return
    inside = Path(artifact.path).resolve()
    assert Path(path).resolve().is_relative_to(inside)


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    artifact, _ = committed(tmp_path, 2)
    path = Path(artifact.child("manifest.json"))
    stolen = tmp_path / SHARD
    stolen.write_bytes(Path(artifact.child(SHARD)).read_bytes())
    path.write_text(path.read_text().replace(SHARD, f"../../{SHARD}"))
    with pytest.raises(BendError, match=r"^[^\n]+$"):
        artifact.exists()
    np.testing.assert_array_equal(stolen.exists(), True)
