"""The manifest: what a committed artifact is, what it was made from and what it cost.

``manifest.json`` is written last, so its presence is the commit. JSON has no NaN and no
infinity: in the metrics both are written as null and read back as ``None``.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, ValidationError

import bend_ray
from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.directory import inside
from bend_ray.errors import StoreError
from bend_ray.spec import Record, first_problem

SCHEMA_VERSION = 2

_CHECKSUM = "sha256"
"""Key of a manifest's own checksum, over everything else in it."""


@cache
def code_digest() -> str:
    """Names the code of this bend_ray: 8 hex digits of the SHA-256 over its files."""
    root = Path(bend_ray.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def installed_versions() -> dict[str, str]:
    """What decides results beside an artifact's identity; imports nothing.

    Versions of Python and of libraries, and where torch is loaded its kernels and threads in this
    process: other kernels round otherwise, and a training makes digits of that.
    """
    versions = {
        "python": platform.python_version(),
        "bend_ray": f"{bend_ray.__version__} ({code_digest()})",
    }
    for distribution in ("torch", "ray", "pyarrow", "numpy"):
        versions[distribution] = importlib.metadata.version(distribution)
    # Who only reads an artifact, or writes a table, has no torch, and needs none.
    if (torch := sys.modules.get("torch")) is not None:
        versions["kernels"] = torch.backends.cpu.get_cpu_capability()
        versions["threads"] = str(torch.get_num_threads())
    return versions


# A manifest may be anybody's, and its files and inputs are opened by their names.
_Name = Annotated[str, AfterValidator(inside)]


class ManifestInput(Record):
    """An artifact that another was made from."""

    stage: _Name
    fingerprint: _Name


class ManifestFile(Record):
    """A file of a committed artifact, named relative to its directory."""

    name: _Name
    bytes: NonNegativeInt
    rows: NonNegativeInt | None = None
    sha256: str | None = None
    """Of the content; None where the file holds its own checksums, as shards do."""


class Manifest(Record):
    """Everything a committed artifact says about itself."""

    schema_version: int = SCHEMA_VERSION
    stage: str
    stage_version: int
    fingerprint: str
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(" ", "seconds"))
    identity: dict[str, Any]
    given: dict[str, Any] = Field(default_factory=dict)
    """What decides nothing: the config as it was asked for, with where the data set was found."""
    inputs: list[ManifestInput]
    files: list[ManifestFile]
    metrics: dict[str, Any]
    cost: Cost
    versions: dict[str, str] = Field(default_factory=installed_versions)
    """Of the process that committed it; on a cluster of unlike machines others may have helped."""


def sealed(record: Any) -> dict[str, Any]:
    """A manifest as plain JSON with a checksum, which ``parse_manifest`` verifies."""
    return {**record, _CHECKSUM: digest(record)}


def digest(record: Any) -> str:
    """Hexadecimal SHA-256 of plain JSON, however its keys are ordered."""
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse_manifest(content: bytes) -> Manifest:
    """Reads a manifest; StoreError where a newer bend-ray wrote it.

    ValueError, in one line, where it is not JSON, no manifest, or not what was written.
    """
    try:
        record = json.loads(content)
    except RecursionError as error:
        raise ValueError(f"expected a manifest, got: {error}") from error
    version = record.get("schema_version") if isinstance(record, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise StoreError(
            f"expected a manifest of schema version {SCHEMA_VERSION} or older, got {version}, "
            "which a newer bend-ray wrote: upgrade bend-ray"
        )
    if isinstance(record, dict) and record.pop(_CHECKSUM, None) != digest(record):
        raise ValueError("its content is not what was committed")
    try:
        return Manifest.model_validate(record)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
