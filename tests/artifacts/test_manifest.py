from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from typing import Any

import pytest

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.manifest import (
    SCHEMA_VERSION,
    Manifest,
    ManifestFile,
    installed_versions,
    parse_manifest,
    sealed,
)
from bend_ray.errors import StoreError

KERNELS = {"kernels", "threads"}


def manifest() -> Manifest:
    return Manifest(
        stage="seeds",
        stage_version=1,
        fingerprint="0123456789ab",
        identity={"count": 3},
        inputs=[],
        files=[ManifestFile(name="shard-00000.parquet", bytes=10, rows=3)],
        metrics={"accuracy": 0.5},
        cost=Cost(cpu_seconds=1.0),
    )


def record(**changes: Any) -> bytes:
    return json.dumps(sealed({**manifest().model_dump(), **changes})).encode()


def test_a_manifest_comes_back() -> None:
    assert parse_manifest(record()).files == manifest().files
    with pytest.raises(ValueError, match="not what was committed"):
        parse_manifest(record().replace(b"0.5", b"0.6"))


def test_it_is_dated_in_utc() -> None:
    assert datetime.fromisoformat(manifest().created).utcoffset() == timedelta(0)


def test_versions_are_those_of_the_imported_libraries() -> None:
    import numpy
    import pyarrow

    versions = installed_versions()
    assert set(versions) - KERNELS == {"python", "bend_ray", "torch", "ray", "pyarrow", "numpy"}
    assert versions["numpy"] == numpy.__version__
    assert versions["pyarrow"] == pyarrow.__version__


def test_kernels_are_noted_where_torch_is_loaded_and_never_load_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    versions = installed_versions()
    assert versions["kernels"] == torch.backends.cpu.get_cpu_capability()
    assert versions["threads"] == str(torch.get_num_threads())
    monkeypatch.delitem(sys.modules, "torch")
    assert not KERNELS & set(installed_versions())
    assert "torch" not in sys.modules


def test_a_newer_manifest_asks_for_an_upgrade() -> None:
    with pytest.raises(StoreError, match="upgrade bend-ray"):
        parse_manifest(record(schema_version=SCHEMA_VERSION + 1, something_new=1))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "Expecting value"),
        (b"\xff{", "codec"),
        (b"[]", "valid dictionary or instance of Manifest"),
        (json.dumps(sealed({"schema_version": 1})).encode(), "stage: Field required"),
        (record(extra=1), "extra: Extra inputs"),
        (record(files=[{"name": "a", "bytes": -1}]), "files.0.bytes"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(content: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        parse_manifest(content)
    assert "\n" not in str(caught.value)
