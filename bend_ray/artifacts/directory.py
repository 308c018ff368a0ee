"""Directory: the files of an artifact, each there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.fs

from bend_ray.errors import CorruptArtifact, StoreError
from bend_ray.storage.filesystems import (
    TEMPORARY_SUFFIX,
    patiently,
    read_bytes,
    store_errors,
    write_atomically,
    write_bytes,
)
from bend_ray.storage.masking import cause, masked

MANIFEST_NAME = "manifest.json"
PROGRESS_NAME = "progress.json"
LEASE_NAME = "lease.json"

_BOOKKEEPING = (MANIFEST_NAME, PROGRESS_NAME, LEASE_NAME)

SCRATCH = "making"
"""Folder of what is kept while an artifact is being made; its commit removes it."""


def inside(name: str) -> str:
    """A name of something inside a directory, at any depth; ValueError where it leads out of it."""
    leads_out = name.startswith("/") or {"..", "."} & set(name.split("/"))
    if not name or "\0" in name or leads_out:
        raise ValueError(f"expected a name inside a directory, got {name!r}")
    return name


class Directory:
    """A directory of a store, by its path on a filesystem, and the files in it.

    Its path or URI may hold credentials, so mask it in messages.
    """

    def __init__(self, filesystem: pyarrow.fs.FileSystem, path: str, uri: str) -> None:
        self.filesystem = filesystem
        self.path = path
        self.uri = uri

    def __repr__(self) -> str:
        return f"{type(self).__name__}({masked(self.uri)!r})"

    def child(self, name: str) -> str:
        """The path on ``filesystem`` of a file inside."""
        return f"{self.path}/{inside(name)}"

    def corrupt(self, name: str, problem: str) -> CorruptArtifact:
        """The error that says which file is broken, how, and what to do about it."""
        directory = masked(self.uri)
        return CorruptArtifact(
            f"{directory}: {name} is corrupt: {problem}; "
            f"delete {directory} and run again, the stage will be made anew"
        )

    def open_output(self, name: str) -> AbstractContextManager[pa.NativeFile]:
        """An output stream to a file inside that is there whole, or not at all."""
        return write_atomically(self.filesystem, self.child(name))

    def write_json(self, name: str, value: Any) -> None:
        """Writes JSON; NaN and infinities become null."""
        write_bytes(self.filesystem, self.child(name), to_json(value))

    def write_note(self, name: str, value: Any) -> None:
        """Writes JSON that no commit knows of, or that is the same whoever makes the artifact."""
        patiently(self.filesystem, partial(self.write_json, name, value))

    def read_json(self, name: str, *, is_note: bool = False) -> Any:
        """Reads JSON; a note, that no commit knows of, in one request, unverified."""
        content = Directory.read_bytes(self, name) if is_note else self.read_bytes(name)
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self.corrupt(name, f"expected JSON, got: {cause(error)}") from error

    def read_bytes(self, name: str) -> bytes:
        """The content of a file inside."""
        content = read_bytes(self.filesystem, self.child(name))
        if content is None:
            raise StoreError(f"expected {name} in {masked(self.uri)}, got no such file")
        return content

    def list_files(self, prefix: str = "") -> dict[str, int]:
        """Bytes of the files inside whose name begins with ``prefix``, sorted, at any depth.

        Leaves out what is not content: the manifest, the lease, the progress and ``*.tmp``.
        """
        return {
            name: info.size
            for name, info in sorted(self.everything().items())
            if name.startswith(prefix)
            and name not in _BOOKKEEPING
            and not name.endswith(TEMPORARY_SUFFIX)
        }

    def everything(self) -> dict[str, pyarrow.fs.FileInfo]:
        """Every file inside, content or not, by its name."""
        selector = pyarrow.fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        with store_errors("list", self.path):
            infos = patiently(self.filesystem, partial(self.filesystem.get_file_info, selector))
        return {i.path.removeprefix(f"{self.path}/"): i for i in infos if i.is_file}

    def discard(self, name: str) -> None:
        """Removes a file or folder inside, if it is there."""
        path = self.child(name)
        with store_errors("remove", path):
            kind = self.filesystem.get_file_info(path).type
            if kind == pyarrow.fs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind != pyarrow.fs.FileType.NotFound:
                self.filesystem.delete_file(path)


def to_json(value: Any) -> bytes:
    """Indented JSON; numpy scalars and arrays become plain, NaN and infinities null."""
    text = json.dumps(value, default=lambda v: dict(v) if isinstance(v, Mapping) else v.tolist())
    return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2).encode() + b"\n"
