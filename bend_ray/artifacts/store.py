"""Store and Artifact: where a stage's result lives, and when it counts as made.

An artifact is the directory ``{store}/{stage}/{fingerprint}/``. Its fingerprint is a hash of
everything that decides its content, so the same question finds the same directory, and its
``manifest.json`` is written last, so that its presence is the commit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow.fs
from pydantic import ValidationError

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.directory import MANIFEST_NAME, PROGRESS_NAME, SCRATCH, Directory, to_json
from bend_ray.artifacts.manifest import (
    Manifest,
    ManifestFile,
    ManifestInput,
    digest,
    parse_manifest,
    sealed,
)
from bend_ray.errors import StoreError
from bend_ray.spec import Record
from bend_ray.storage.filesystems import (
    TEMPORARY_SUFFIX,
    make_durable,
    read_bytes,
    refusals,
    resolve,
    store_errors,
)
from bend_ray.storage.masking import cause, masked
from bend_ray.storage.uris import canonical, joined


class Progress(Record):
    """How far an artifact that is being made has come."""

    done: int
    total: int
    unit: str


class Store:
    """A directory or bucket prefix that holds artifacts; see ``filesystems.resolve``."""

    def __init__(self, uri: str) -> None:
        self.filesystem, self.path = resolve(uri)
        self.uri = canonical(uri)

    def __repr__(self) -> str:
        return f"Store({masked(self.uri)!r})"

    # pyarrow's own way forgets how often a filesystem made from a URI asks a busy store again.
    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.uri,)

    def artifact(
        self,
        stage: str,
        version: int,
        identity: Mapping[str, Any],
        inputs: Sequence[Artifact] = (),
        given: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """The artifact, made or not, of a stage asked with ``identity`` about ``inputs``.

        The identity is JSON, without NaN, of everything that decides the content beside the stage's
        version; ``given``, which the manifest notes, decides nothing.
        """
        before = [each.fingerprint for each in inputs]
        question = {"stage": stage, "version": version, "identity": identity, "inputs": before}
        asked = (stage, version, identity, tuple(inputs), digest(question)[:12])
        return Artifact(self, *asked, given or {})

    def directory(self, stage: str, name: str) -> Directory:
        """The directory ``{store}/{stage}/{name}``, there or not."""
        path = f"{self.path.rstrip('/')}/{stage}/{name}"
        return Directory(self.filesystem, path, joined(self.uri, stage, name))

    def manifest(self, stage: str, fingerprint: str) -> Manifest | None:
        """What an artifact says about itself, ``None`` where it is not committed."""
        where = self.directory(stage, fingerprint)
        content = read_bytes(self.filesystem, where.child(MANIFEST_NAME))
        if content is None:
            return None
        try:
            manifest = parse_manifest(content)
        except ValueError as error:
            raise where.corrupt(MANIFEST_NAME, cause(error)) from error
        except StoreError as error:
            raise StoreError(f"{masked(where.uri)}: {error}") from error
        if manifest.fingerprint != fingerprint:
            came = f"expected fingerprint {fingerprint}, got {manifest.fingerprint}"
            raise where.corrupt(MANIFEST_NAME, came)
        return manifest

    def fingerprints(self, stage: str) -> list[str]:
        """Of every artifact of a stage, committed or not, sorted."""
        folder = f"{self.path.rstrip('/')}/{stage}"
        selector = pyarrow.fs.FileSelector(folder, allow_not_found=True)
        with store_errors("list", folder):
            found = self.filesystem.get_file_info(selector)
        return sorted(entry.base_name for entry in found if not entry.is_file)

    def manifests(self, stage: str) -> list[Manifest]:
        """Those of every committed artifact of a stage, oldest first."""
        names = self.fingerprints(stage)
        found = [each for name in names if (each := self.manifest(stage, name)) is not None]
        return sorted(found, key=lambda manifest: (manifest.created, manifest.fingerprint))

    def stored(self, manifest: Manifest) -> Artifact:
        """The committed artifact that a manifest is of, to be read: it names no inputs."""
        asked = (manifest.stage, manifest.stage_version, manifest.identity)
        return Artifact(self, *asked, (), manifest.fingerprint)

    def ensure_writable(self) -> None:
        """Creates the root and asks, once, for all that a run will ask for."""
        for refused in refusals(self.filesystem, self.path):
            raise StoreError(
                f"the store {masked(self.uri)} is not writable: {refused} or name another with "
                "--store URI"
            )


@dataclass(eq=False, repr=False)
class Artifact(Directory):
    """One result of one stage; made by ``Store.artifact``, immutable once committed."""

    store: Store
    stage: str
    version: int
    identity: Mapping[str, Any]
    inputs: tuple[Artifact, ...]
    fingerprint: str
    given: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = self.store.directory(self.stage, self.fingerprint)
        super().__init__(where.filesystem, where.path, where.uri)

    def __reduce__(self) -> tuple[Any, ...]:
        return Artifact, tuple(getattr(self, each.name) for each in fields(self))

    def exists(self) -> bool:
        """Whether it is committed: the manifest reads, every file it lists is there, whole."""
        manifest = self.store.manifest(self.stage, self.fingerprint)
        if manifest is None:
            return False
        sizes = self.list_files() if manifest.files else {}
        for file in manifest.files:
            if sizes.get(file.name) != file.bytes:
                found = f"{sizes[file.name]} bytes" if file.name in sizes else "no such file"
                raise self.corrupt(file.name, f"expected {file.bytes} bytes, got {found}")
        return True

    def manifest(self) -> Manifest:
        """What was committed."""
        manifest = self.store.manifest(self.stage, self.fingerprint)
        if manifest is None:
            raise StoreError(
                f"expected {masked(self.uri)} to be committed, got no {MANIFEST_NAME}; run "
                "`bend run` with the same config and --store first"
            )
        return manifest

    def ensure_uncommitted(self) -> None:
        """Refuse to write what differs from run to run into an artifact that is another's by now.

        A run that was stopped for long may find that. Between this look and the end of what is
        then written another may still commit; such a file is not what its manifest says, which
        whoever reads it is told.
        """
        if read_bytes(self.filesystem, self.child(MANIFEST_NAME)) is not None:
            raise StoreError(
                f"expected {masked(self.uri)} to be this run's to make, got one that another run "
                "has committed meanwhile: run again"
            )

    def commit(
        self,
        *,
        files: Sequence[str],
        metrics: Mapping[str, Any],
        cost: Cost,
        rows: Mapping[str, int] | None = None,
    ) -> Artifact:
        """Writes the manifest: from now on the artifact exists, and is not written to any more.

        All ``files`` must be there; ``rows`` says how many those of them have that have any. NaN
        and infinities of the metrics are recorded as null.
        """
        manifest = Manifest(
            stage=self.stage,
            stage_version=self.version,
            fingerprint=self.fingerprint,
            identity=dict(self.identity),
            given=dict(self.given),
            inputs=[ManifestInput(stage=a.stage, fingerprint=a.fingerprint) for a in self.inputs],
            files=self._measured(files, rows or {}),
            metrics=dict(metrics),
            cost=cost,
        )
        self.ensure_uncommitted()
        self.discard(PROGRESS_NAME)
        make_durable(self.filesystem, [self.child(name) for name in files])
        # The metrics may hold numpy values, which pydantic's own JSON refuses.
        self.write_json(MANIFEST_NAME, sealed(json.loads(to_json(manifest.model_dump()))))
        make_durable(self.filesystem, [self.child(MANIFEST_NAME)])
        with suppress(StoreError):
            self.discard(SCRATCH)
            # What killed processes had not finished writing.
            for name in self.everything():
                if name.endswith(TEMPORARY_SUFFIX):
                    self.discard(name)
        return self

    def _measured(self, files: Sequence[str], rows: Mapping[str, int]) -> list[ManifestFile]:
        if strangers := sorted(set(rows) - set(files)):
            raise ValueError(f"expected rows of the committed files only, got rows of {strangers}")
        sizes = self.list_files()
        if missing := sorted(set(files) - set(sizes)):
            raise StoreError(
                f"cannot commit {masked(self.uri)}: expected {', '.join(missing)} to be there, "
                "got no such file; something removed it while the stage ran: run again"
            )
        return [
            ManifestFile(
                name=name,
                bytes=sizes[name],
                rows=rows.get(name),
                # Files with rows are large, and have a checksum a page.
                sha256=None if name in rows else _digest(Directory.read_bytes(self, name)),
            )
            for name in files
        ]

    def read_bytes(self, name: str) -> bytes:
        """The content of a file inside; of a committed one, exactly what was committed."""
        content = super().read_bytes(name)
        manifest = self.store.manifest(self.stage, self.fingerprint)
        for file in manifest.files if manifest else ():
            if file.name == name and file.sha256 not in (None, _digest(content)):
                raise self.corrupt(name, "its content is not what was committed")
        return content

    def report_progress(self, done: int, total: int, unit: str) -> None:
        """Says how far the work has come, for anyone who asks; ``commit`` removes it."""
        self.write_note(PROGRESS_NAME, Progress(done=done, total=total, unit=unit).model_dump())

    def progress(self) -> Progress | None:
        """The last progress reported, ``None`` if there is none that reads."""
        content = read_bytes(self.filesystem, self.child(PROGRESS_NAME))
        try:
            return None if content is None else Progress.model_validate_json(content)
        except ValidationError:
            return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
