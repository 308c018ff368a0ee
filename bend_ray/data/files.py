"""Which files are a part of a data set, and what tells the same files from others.

A part is a file, a folder, a pattern (``data/train-*.parquet``) or a list of these, on any file
system. What begins with ``_`` or ``.`` below a folder never counts: tools leave it behind.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from bend_ray.errors import DataError, StoreError
from bend_ray.process.lazy import pa
from bend_ray.storage.filesystems import patiently, resolve, side_by_side
from bend_ray.storage.masking import cause, masked, printable

Part = Literal["train", "validation", "test"]

SPELLINGS: dict[Part, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""How a part is called in names of files and folders, as Hugging Face's ``datasets`` reads them."""

READ_WHOLE_BYTES = 2**30
"""Parts up to this size are told apart by their content, larger ones by what a listing says."""
READ_WHOLE_FILES = 20_000
MOST_ETAGS = 1_000


@dataclass(frozen=True, slots=True)
class File:
    """A file of a part: its name is below the folder that was asked for.

    ``size`` is in bytes, ``modified`` in nanoseconds since 1970.
    """

    path: str
    name: str
    size: int
    modified: int


@dataclass(frozen=True)
class Files:
    """The files of a part, one at least, in order; ``notes`` tell how they were chosen.

    ``named``: their names mean something too.
    """

    filesystem: pa.fs.FileSystem
    files: tuple[File, ...]
    notes: tuple[str, ...] = ()
    named: bool = False

    def __iter__(self) -> Iterator[File]:
        return iter(self.files)

    @property
    def num_bytes(self) -> int:
        """Of all together."""
        return sum(file.size for file in self.files)

    def digest(self) -> str:
        """What tells these files from any others, in 16 hex digits.

        The content of a local part of at most 1 GiB and 20,000 files; else sizes, and ETags or
        times of change. DataError where a file cannot be read.
        """
        whole = hashlib.sha256()
        for file, version in zip(self.files, self._versions(), strict=True):
            name = file.name if self.named else ""
            whole.update(f"{name}\0{file.size}\0{version}\n".encode("utf-8", "surrogateescape"))
        return whole.hexdigest()[:16]

    def expect(self, meant: str | None, key: str) -> None:
        """DataError, of what ``key`` names, where the digest is another than was meant, if any."""
        if meant is not None and (found := self.digest()) != meant:
            raise DataError(
                f"{key}: expected files of digest {meant}, got {found}: they have changed since "
                "they were first read; run again to begin anew with them"
            )

    def _versions(self) -> Sequence[str]:
        if self.filesystem.type_name == "local":
            if self.num_bytes <= READ_WHOLE_BYTES and len(self.files) <= READ_WHOLE_FILES:
                return side_by_side(_content_digest, self.files)
        elif len(self.files) <= MOST_ETAGS:
            return side_by_side(self._etag, self.files)
        return [str(file.modified) for file in self.files]

    def _etag(self, file: File) -> str:
        def ask() -> str:
            with self.filesystem.open_input_stream(file.path) as stream:
                return str((stream.metadata() or {}).get("ETag") or file.modified)

        with reading(file.path):
            return patiently(self.filesystem, ask)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever a file system or a parser raises in the block, as a DataError that says of what."""
    try:
        yield
    except (OSError, pa.ArrowException, StoreError, UnicodeDecodeError) as error:
        raise DataError(f"dataset: cannot read {what}: {cause(error)}") from None


@lru_cache(maxsize=READ_WHOLE_FILES)
def _content_digest(file: File) -> str:
    with reading(file.path), open(file.path, "rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.blake2b, digest_size=16)).hexdigest()


def find_files(
    uris: str | Sequence[str], part: Part | None, endings: Sequence[str], key: str
) -> Files:
    """The files of a part.

    Args:
        uris: files, folders, or patterns with ``*``, ``?``, ``[]`` and ``**``; in this order.
        part: whose files alone are taken below a folder, where names say whose they are; or None.
        endings: that names must have below a folder, in lower case.
        key: of the config, for messages: DataError where nothing is there, it cannot be read, or it
            is of other parts.
    """
    uris = [uris] if isinstance(uris, str) else uris
    found: list[File] = []
    notes: list[str] = []
    filesystems: list[pa.fs.FileSystem] = []
    for uri in uris:
        with reading(masked(uri)):
            filesystem, path = resolve(uri)
            below, pattern = patiently(filesystem, partial(_below, filesystem, path))
        chosen, where = below, f"{key}={masked(uri)}"
        if pattern:
            chosen = [file for file in below if _matches(file.name.split("/"), pattern)]
            # A pattern may be one of folders.
            inside = [f for f in below if _matches(f.name.split("/")[:-1], pattern)]
            chosen = chosen or _counted(inside, endings, where, notes)
        elif pattern is None:
            chosen = _of_part(_counted(below, endings, where, notes), part, where, notes)
        if not chosen:
            raise DataError(
                f"{where}: expected a file, a pattern, or a folder of files that end in "
                f"{', '.join(endings)}, got none; check the path"
            )
        found += chosen
        filesystems.append(filesystem)
        if not filesystem.equals(filesystems[0]):
            raise DataError(
                f"{key}: expected all files of a part in one place, got {masked(uris[0])} and "
                f"{masked(uri)}"
            )
    if twice := [path for path, n in Counter(file.path for file in found).items() if n > 1]:
        raise DataError(f"{key}: expected each file once, got {printable(twice[0])} twice")
    return Files(filesystems[0], tuple(found), tuple(notes))


def _below(filesystem: pa.fs.FileSystem, path: str) -> tuple[list[File], list[str] | None]:
    """The files below a path, and its pattern's components; None of a folder, [] of a file."""
    info = filesystem.get_file_info(path)
    root, pattern = (path, None) if info.type != pa.fs.FileType.NotFound else _split(path)
    if info.is_file:
        infos, root, pattern = [info], path.rpartition("/")[0], []
    else:
        infos = filesystem.get_file_info(
            pa.fs.FileSelector(root, allow_not_found=True, recursive=True)
        )
    files = [
        File(i.path, i.path.removeprefix(root).lstrip("/"), i.size or 0, i.mtime_ns or 0)
        for i in infos
        if i.is_file
    ]
    return sorted(files, key=lambda file: file.name), pattern


def _split(path: str) -> tuple[str, list[str] | None]:
    """A path that has a pattern in it: the folder before, and the pattern's components."""
    components = path.split("/")
    for index, component in enumerate(components):
        if re.search(r"[*?\[]", component):
            return "/".join(components[:index]) or "/", components[index:]
    return path, None


def _matches(name: list[str], pattern: list[str]) -> bool:
    """Whether components of a name match those of a pattern; ``**`` stands for any number.

    >>> _matches(["a", "b.png"], ["**", "*.png"]), _matches(["a", "b.png"], ["*.png"])
    (True, False)
    """
    if not pattern or not name:
        return not name and all(component == "**" for component in pattern)
    if pattern[0] == "**":
        here = not is_left_over(name[0]) and _matches(name[1:], pattern)
        return here or _matches(name, pattern[1:])
    hidden = is_left_over(name[0]) and not is_left_over(pattern[0])
    return not hidden and fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def is_left_over(component: str) -> bool:
    """Whether tools leave files or folders of such a name behind."""
    return component.startswith(("_", ".")) or component.lower() in ("thumbs.db", "desktop.ini")


def _counted(
    files: Sequence[File], endings: Sequence[str], where: str, notes: list[str]
) -> list[File]:
    """Those that count; what else is there is noted, but for what nobody would miss."""
    visible = [f for f in files if not any(map(is_left_over, f.name.split("/")))]
    counted = [f for f in visible if f.name.lower().endswith(tuple(endings))]
    rest = [Path(f.name).suffix.lower() or "no ending" for f in visible if f not in counted]
    if others := Counter(rest):
        numbers = ", ".join(f"{count} of {ending}" for ending, count in others.most_common(5))
        notes.append(
            f"left out of {where}: files that do not end in {', '.join(endings)}: {numbers}"
        )
    return counted


def _of_part(files: list[File], part: Part | None, where: str, notes: list[str]) -> list[File]:
    parts = {file: part_named(file.name) for file in files}
    if part is None or not any(parts.values()):
        return files
    chosen = [file for file in files if parts[file] == part]
    if not chosen:
        others = sorted({str(named) for named in parts.values() if named})
        raise DataError(
            f"dataset: expected files of the {part} part at {where}, got files named for "
            f"{' and '.join(others)}; name them by a pattern, such as {part}-*"
        )
    if len(chosen) < len(files):
        notes.append(
            f"{len(chosen)} of {len(files)} files at {where} are named for the {part} part"
        )
    return chosen


def part_named(name: str) -> Part | None:
    """The one part that a name speaks of.

    >>> [part_named(n) for n in ("train-00000-of-2.parquet", "data/val/1.png", "train_test.csv")]
    ['train', 'validation', None]
    """
    words = set(re.split(r"[^a-z]+", name.lower()))
    parts = [part for part, spellings in SPELLINGS.items() if words.intersection(spellings)]
    return parts[0] if len(parts) == 1 else None
