"""The files of an exported bag, on a disk or in an object store; ``config.json`` comes last."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs

from bend_ray.errors import ConfigError, DataError
from bend_ray.export.card import CARD, Card, read_card
from bend_ray.storage.filesystems import resolve, store_errors, write_atomically
from bend_ray.storage.masking import masked

MEMBERS, GUIDE, ONNX = "members.safetensors", "README.md", "bag.onnx"
MEMBER_ONNX = "member.onnx"
"""One member, without its parameters."""
OURS = frozenset({CARD, MEMBERS, GUIDE, ONNX, f"{ONNX}.data", MEMBER_ONNX})
"""All that an export may hold."""


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(folder: Path, card: Card) -> None:
    """Refuse, as DataError, a bag of which a file is not what was exported."""
    for name, expected in card.files.items():
        path = folder / name
        if (path.exists() or name in (MEMBERS, MEMBER_ONNX)) and digest(path) != expected:
            raise DataError(
                f"{path}: expected the file that was exported, got another; copy it again, or "
                "export it again"
            )


@contextmanager
def fetched(uri: str, wanted: Set[str] = frozenset({MEMBERS, MEMBER_ONNX})) -> Iterator[Path]:
    """Within, a local folder with the card and what is wanted: ``uri`` itself, or a copy of it.

    StoreError where it cannot be read, DataError where it is no bag.
    """
    filesystem, path = resolve(uri)
    if filesystem.type_name == "local":
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as scratch:

        def fetch(name: str) -> None:
            with store_errors("copy", f"{path}/{name}"):
                pyarrow.fs.copy_files(f"{path}/{name}", f"{scratch}/{name}", filesystem)

        fetch(CARD)
        # Each by its own name: those that a bucket lists may lead out of the folder.
        for name in wanted & {GUIDE, *read_card(Path(scratch)).files}:
            fetch(name)
        yield Path(scratch)


def publish(folder: Path, output: str) -> None:
    """Copy a bag to where it shall be, and leave nothing of an earlier export beside it.

    Its card goes first, so that what is left by a failure is no export.
    """
    filesystem, path = resolve(output)
    for earlier in (f"{path}/{name}" for name in (CARD, *sorted(OURS - {CARD}))):
        with store_errors("replace", earlier):
            if filesystem.get_file_info(earlier).type != pyarrow.fs.FileType.NotFound:
                filesystem.delete_file(earlier)
    own = [file for file in folder.iterdir() if file.name in OURS]
    for file in sorted(own, key=lambda file: file.name == CARD):
        with write_atomically(filesystem, f"{path}/{file.name}") as target, file.open("rb") as read:
            shutil.copyfileobj(read, target, 2**22)


def refuse_strangers(output: str, ours: frozenset[str] = OURS) -> None:
    """Refuse, as ConfigError, a folder with anything but an earlier export in it."""
    filesystem, path = resolve(output)
    with store_errors("list", path):
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
    if strangers := sorted({entry.base_name for entry in found} - ours):
        earlier = ", or an earlier export" if ours else ""
        raise ConfigError(
            f"{masked(output)}: expected a new or empty folder{earlier}, got one with "
            f"{', '.join(strangers[:3])}; name another"
        )
