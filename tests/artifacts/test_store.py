from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bend_ray.artifacts import store as store_module
from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.directory import Directory, to_json
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.errors import CorruptArtifact, StoreError


@pytest.fixture(params=["local", "object"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store on disk, and one that is not of type "local", so written to like a cloud's."""
    if request.param == "object":
        tree = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
        monkeypatch.setattr(store_module, "resolve", lambda uri: (tree, "bucket"))
        return Store("s3://bucket?region=x")
    return Store(str(tmp_path))


def committed(store: Store, **changes: Any) -> Artifact:
    artifact = store.artifact("seeds", 1, {"count": 2})
    artifact.write_json("a.json", [1])
    artifact.write_json("sub/b.json", [2])
    arguments = {
        "files": ["a.json", "sub/b.json"],
        "metrics": {"accuracy": 0.5},
        "cost": Cost(cpu_seconds=1.0),
        "rows": {"a.json": 1},
        **changes,
    }
    return artifact.commit(**arguments)


def overwrite(artifact: Artifact, name: str, content: bytes) -> None:
    # As damage does: an artifact that is committed is not written to.
    with Directory.open_output(artifact, name) as stream:
        stream.write(content)


def test_an_artifact_exists_once_it_is_committed(store: Store) -> None:
    artifact = store.artifact("seeds", 1, {"count": 2})
    assert not artifact.exists()
    with pytest.raises(StoreError, match=r"to be committed, got no manifest\.json"):
        artifact.manifest()
    artifact.write_json("a.json", [1])
    assert not artifact.exists()
    assert artifact.commit(files=["a.json"], metrics={}, cost=Cost()) is artifact
    assert artifact.exists()
    assert store.artifact("seeds", 1, {"count": 2}).exists()


def test_a_manifest_records_what_was_committed(store: Store) -> None:
    seeds = committed(store)
    child = store.artifact("latents", 3, {"size": (1, 2)}, inputs=[seeds])
    child.commit(files=[], metrics={}, cost=Cost())
    manifest = seeds.manifest()
    assert manifest.identity == {"count": 2}
    assert [(f.name, f.bytes, f.rows) for f in manifest.files] == [
        ("a.json", 8, 1),
        ("sub/b.json", 8, None),
    ]
    assert manifest.cost == Cost(cpu_seconds=1.0)
    found = child.manifest()
    assert (found.stage, found.stage_version, found.fingerprint) == (
        "latents",
        3,
        child.fingerprint,
    )
    assert found.identity == {"size": [1, 2]}
    assert [(i.stage, i.fingerprint) for i in found.inputs] == [("seeds", seeds.fingerprint)]
    assert child.exists()


def test_numpy_metrics_are_plain_and_not_a_number_is_null(store: Store) -> None:
    metrics = {
        "nan": float("nan"),
        "nested": [{"inf": np.float32("inf")}, (1, 2)],
        "array": np.array([0.5, np.nan]),
        "count": np.int64(3),
        "flag": np.bool_(True),
    }
    assert committed(store, metrics=metrics).manifest().metrics == {
        "nan": None,
        "nested": [{"inf": None}, [1, 2]],
        "array": [0.5, None],
        "count": 3,
        "flag": True,
    }


def test_fingerprints_depend_on_everything_that_decides_the_content(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    seeds = store.artifact("seeds", 1, {"a": 1, "b": [0.5]})
    assert seeds.fingerprint == store.artifact("seeds", 1, {"b": (0.5,), "a": 1}).fingerprint
    others = [
        store.artifact("seed", 1, {"a": 1, "b": [0.5]}),
        store.artifact("seeds", 2, {"a": 1, "b": [0.5]}),
        store.artifact("seeds", 1, {"a": 2, "b": [0.5]}),
        store.artifact("seeds", 1, {"a": 1, "b": [0.5]}, inputs=[seeds]),
        store.artifact("seeds", 1, {"a": 1, "b": [0.5]}, inputs=[seeds, seeds]),
    ]
    assert len({each.fingerprint for each in [seeds, *others]}) == 6


def test_a_fingerprint_is_pinned(tmp_path: Path) -> None:
    # sha256 of '{"identity":{"a":"é"},"inputs":[],"stage":"seeds","version":1}', "é" as \u00e9:
    # changing how it is computed would make every existing artifact anew.
    assert Store(str(tmp_path)).artifact("seeds", 1, {"a": "é"}).fingerprint == "e300e6760f78"


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3) | st.booleans()))
def test_a_fingerprint_survives_a_round_trip_through_json(identity: dict[str, Any]) -> None:
    store = Store("/nowhere")
    again = json.loads(json.dumps(identity))
    expected = store.artifact("s", 1, identity).fingerprint
    assert store.artifact("s", 1, dict(reversed(again.items()))).fingerprint == expected
    assert len(expected) == 12


def test_an_identity_with_nan_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        Store(str(tmp_path)).artifact("seeds", 1, {"rate": float("nan")})


@pytest.mark.parametrize(
    ("damage", "named", "problem"),
    [
        (lambda a: a.discard("sub/b.json"), "sub/b.json", "expected 8 bytes, got no such file"),
        (lambda a: overwrite(a, "a.json", b"[1"), "a.json", "expected 8 bytes, got 2 bytes"),
        (lambda a: overwrite(a, "manifest.json", b"{"), "manifest.json", "Expecting property"),
        (lambda a: overwrite(a, "manifest.json", b"{}"), "manifest.json", "not what was committed"),
    ],
)
def test_damage_is_named_with_what_to_do(
    store: Store, damage: Callable[[Artifact], None], named: str, problem: str
) -> None:
    artifact = committed(store)
    damage(artifact)
    with pytest.raises(CorruptArtifact) as caught:
        artifact.exists()
    for expected in (f"{named} is corrupt", problem, f"delete {artifact.uri}"):
        assert expected in str(caught.value)


def test_what_is_read_is_what_was_committed(store: Store) -> None:
    artifact = store.artifact("autoencoder", 1, {})
    artifact.write_json("a.json", {"a": 1})
    artifact.commit(files=["a.json"], metrics={}, cost=Cost())
    assert artifact.read_json("a.json") == {"a": 1}
    overwrite(artifact, "a.json", to_json({"a": 2}))
    with pytest.raises(CorruptArtifact, match=r"a\.json is corrupt: .*not what was committed"):
        artifact.read_json("a.json")


def test_files_are_on_the_disk_before_the_manifest_that_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = Store(str(tmp_path)).artifact("seeds", 1, {})
    manifest = Path(artifact.child("manifest.json"))
    synced: list[tuple[str, bool]] = []

    def note(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").resolve().name
        synced.append((name, manifest.exists()))

    monkeypatch.setattr(os, "fsync", note)
    artifact.write_json("a.json", 1)
    assert not synced
    artifact.commit(files=["a.json"], metrics={}, cost=Cost())
    folder = artifact.fingerprint
    assert synced == [("a.json", False), (folder, False), ("manifest.json", True), (folder, True)]


def test_a_manifest_copied_from_elsewhere_is_refused(store: Store) -> None:
    artifact = committed(store)
    other = store.artifact("seeds", 2, {})
    other.write_json("manifest.json", artifact.read_json("manifest.json"))
    with pytest.raises(CorruptArtifact, match=f"expected fingerprint {other.fingerprint}"):
        other.exists()


def test_a_newer_manifest_is_not_called_corrupt(store: Store) -> None:
    artifact = committed(store)
    record = artifact.read_json("manifest.json")
    overwrite(artifact, "manifest.json", to_json({**record, "schema_version": 99}))
    with pytest.raises(StoreError, match="upgrade bend-ray") as caught:
        artifact.exists()
    assert not isinstance(caught.value, CorruptArtifact)


def test_the_first_commit_stays(store: Store) -> None:
    artifact = committed(store)
    late = store.artifact("seeds", 1, {"count": 2})
    with pytest.raises(StoreError, match="another run has committed meanwhile: run again"):
        late.ensure_uncommitted()
    with pytest.raises(StoreError, match="another run has committed meanwhile: run again"):
        late.commit(files=["a.json"], metrics={"accuracy": 0.1}, cost=Cost())
    assert artifact.manifest().metrics == {"accuracy": 0.5}


def test_what_killed_processes_left_half_written_goes_with_the_commit(store: Store) -> None:
    half = store.artifact("seeds", 1, {"count": 2})
    for name in (".a.json.0123.tmp", "sub/.b.json.4567.tmp"):
        half.write_json(name, [])
    committed(store)
    selector = pyarrow.fs.FileSelector(half.path, recursive=True)
    names = [each.base_name for each in half.filesystem.get_file_info(selector)]
    assert sorted(names) == ["a.json", "b.json", "manifest.json", "sub"]


def test_whoever_reads_during_a_commit_sees_all_of_it_or_nothing(tmp_path: Path) -> None:
    """Three writers at once, of what differs by its cost alone, and readers all the while."""
    # Local: the other store of these tests shows what is half written, as no object store does.
    store, ended, seen = Store(str(tmp_path)), threading.Event(), []

    def read() -> None:
        artifact = store.artifact("seeds", 1, {"count": 2})
        while not ended.is_set():
            if artifact.exists():
                seen.append((artifact.read_json("a.json"), artifact.read_json("sub/b.json")))

    def write() -> None:
        with suppress(StoreError):  # Another was first.
            committed(store)

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for writer in [pool.submit(write) for _ in range(3)]:
            writer.result()
        while not seen and not any(reader.done() for reader in readers):
            time.sleep(0.01)
        ended.set()
        for reader in readers:
            reader.result()
    assert set(map(str, seen)) == {"([1], [2])"}


def test_a_missing_file_cannot_be_committed(store: Store) -> None:
    with pytest.raises(StoreError, match=r"expected gone\.json to be there"):
        committed(store, files=["a.json", "gone.json"])
    assert not store.artifact("seeds", 1, {"count": 2}).exists()


def test_rows_of_a_file_that_is_not_committed_are_a_mistake(store: Store) -> None:
    with pytest.raises(ValueError, match=r"rows of \['gone\.json'\]"):
        committed(store, rows={"gone.json": 1})


def test_only_content_is_listed(store: Store) -> None:
    artifact = committed(store)
    artifact.report_progress(1, 2, "models")
    artifact.write_json("lease.json", {})
    artifact.write_json("left.tmp", {})
    assert list(artifact.list_files()) == ["a.json", "sub/b.json"]
    assert artifact.list_files("sub/") == {"sub/b.json": 8}
    assert store.artifact("seeds", 9, {}).list_files() == {}


def test_json_comes_back_and_what_is_not_json_is_corrupt(store: Store) -> None:
    artifact = store.artifact("seeds", 1, {})
    artifact.write_json("value.json", {"a": [1.5, float("nan")]})
    assert artifact.read_json("value.json") == {"a": [1.5, None]}
    overwrite(artifact, "value.json", b"{")
    with pytest.raises(CorruptArtifact, match=r"value\.json is corrupt: expected JSON"):
        artifact.read_json("value.json")
    with pytest.raises(StoreError, match=r"expected gone\.json in .*, got no such file"):
        artifact.read_json("gone.json")


def test_files_and_folders_are_discarded_if_they_are_there(store: Store) -> None:
    artifact = committed(store)
    artifact.discard("sub")
    artifact.discard("a.json")
    artifact.discard("never-was")
    assert artifact.list_files() == {}


@pytest.mark.parametrize("name", ["", "../other", "a/../../b", "/etc/passwd"])
def test_a_name_cannot_leave_the_directory(store: Store, name: str) -> None:
    with pytest.raises(ValueError, match="expected a name inside"):
        store.artifact("seeds", 1, {}).discard(name)


def test_progress_is_told_until_the_commit(store: Store) -> None:
    artifact = store.artifact("seeds", 1, {"count": 2})
    assert artifact.progress() is None
    artifact.report_progress(1, 4, "models")
    artifact.report_progress(2, 4, "models")
    progress = artifact.progress()
    assert progress is not None
    assert (progress.done, progress.total, progress.unit) == (2, 4, "models")
    overwrite(artifact, "progress.json", b"{")
    assert artifact.progress() is None
    committed(store)
    assert artifact.filesystem.get_file_info(artifact.child("progress.json")).is_file is False


def test_a_writable_store_is_created_and_left_empty(tmp_path: Path) -> None:
    Store(str(tmp_path / "new/root")).ensure_writable()
    assert os.listdir(tmp_path / "new/root") == []


def test_an_unwritable_store_says_where_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as caught:
        Store(str(tmp_path / "file")).ensure_writable()
    for expected in (str(tmp_path / "file"), "non-directory entry exists", "--store URI"):
        assert expected in str(caught.value)


def test_uris_lead_to_the_artifact_and_hide_nothing_but_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local = Store("runs").artifact("seeds", 1, {})
    assert local.uri == local.path == str(tmp_path / "runs/seeds" / local.fingerprint)
    cloud = Store("s3://K:SECRET@b/runs?region=x").artifact("seeds", 1, {})
    assert cloud.uri == f"s3://K:SECRET@b/runs/seeds/{cloud.fingerprint}?region=x"
    assert cloud.path == f"b/runs/seeds/{cloud.fingerprint}"
    assert "SECRET" not in repr(cloud) + repr(cloud.store) + str(cloud.corrupt("a", "torn"))


def test_artifacts_travel_between_processes(tmp_path: Path) -> None:
    artifact = committed(Store(str(tmp_path)))
    again = pickle.loads(pickle.dumps(artifact))
    assert again.exists()
    assert again.manifest() == artifact.manifest()


@pytest.mark.slow
def test_reading_a_status_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; import bend_ray.artifacts.shards, bend_ray.artifacts.lease; "
        "sys.exit(', '.join({'torch', 'ray', 'safetensors'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
