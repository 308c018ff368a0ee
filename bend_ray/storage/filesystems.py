"""One storage call for every cloud: a URI becomes a pyarrow filesystem and a path on it.

Two kinds of store differ in when a file can be seen: a local file is visible before it is
closed, an object only when it is closed, and objects cannot be renamed. ``write_atomically``
hides the difference: what is under the final name is whole.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, TypeVar

from bend_ray.errors import StoreError
from bend_ray.process.lazy import pa
from bend_ray.storage.masking import cause, masked
from bend_ray.storage.uris import canonical, is_local_path

TEMPORARY_SUFFIX = ".tmp"
WHOLE_BYTES = 8 * 2**20
"""Objects up to this are read in one request, even where a part of them is wanted."""
FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 3.2

MOST_REQUESTS = 16
"""Small files asked for at the same time."""

T = TypeVar("T")
U = TypeVar("U")

_OBJECT_STORES = ("s3", "gcs", "abfs")
_PASSING = (
    "AWS Error INTERNAL_FAILURE",
    "AWS Error NETWORK_CONNECTION",
    "AWS Error SLOW_DOWN",
    "AWS Error UNKNOWN (HTTP status 503)",
    "AWS Error SERVICE_UNAVAILABLE",
)
"""What a store says that may be well in a moment; Ray Data asks again after the same."""
_LISTING = "s3:ListBucket on the bucket, without a condition on the prefix"
_ON_S3 = {
    "write": "s3:PutObject on what is below it",
    "read": "s3:GetObject on what is below it",
    "list": _LISTING,
    "look for what is not there in": _LISTING,
    "remove from": "s3:DeleteObject on what is below it",
}
"""What may be asked, and the right of Amazon's that it takes."""


def resolve(uri: str) -> tuple[pa.fs.FileSystem, str]:
    """The filesystem and the path on it that a local path or a URI names.

    Of local paths ``~`` and relative ones are made absolute; URIs are ``file://``, ``s3://``,
    ``gs://`` or ``abfs://``. ``AWS_ENDPOINT_URL`` is honoured.
    """
    place = canonical(uri)
    if is_local_path(place):
        return pa.fs.LocalFileSystem(), place
    try:
        if place.startswith("s3:") and "allow_delayed_open=" not in place:
            # A small object is uploaded in one request; a multipart upload takes three.
            place = f"{place}{'&' if '?' in place else '?'}allow_delayed_open=true"
        filesystem, path = pa.fs.FileSystem.from_uri(place)
    except (OSError, pa.ArrowException) as error:
        # Not "from error": pyarrow quotes the URI, and a traceback would show its password.
        raise StoreError(f"cannot open the store {masked(uri)}: {cause(error)}") from None
    if not path.strip("/"):
        raise StoreError(f"{masked(uri)} names no bucket: expected {filesystem.type_name}://bucket")
    return filesystem, path.strip("/")


@contextmanager
def store_errors(doing: str, path: str) -> Iterator[None]:
    """Turns an ``OSError`` of the block into a ``StoreError`` that says what failed and where."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {doing} {masked(path)}: {cause(error)}") from error


def read_bytes(filesystem: pa.fs.FileSystem, path: str) -> bytes | None:
    """The content of a file, ``None`` where there is none."""

    def read() -> bytes:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())

    with store_errors("read", path):
        try:
            return patiently(filesystem, read)
        except FileNotFoundError:
            return None


def open_file(filesystem: pa.fs.FileSystem, path: str) -> pa.NativeFile:
    """A file to be read at any place; a small object is read whole, in one request.

    OSError where it is not there, or cannot be read.
    """
    if filesystem.type_name == "local":
        return filesystem.open_input_file(path)

    def read() -> pa.NativeFile:
        file = filesystem.open_input_file(path)
        if file.size() > WHOLE_BYTES:
            return file
        with file:
            return pa.BufferReader(file.read_buffer())

    return patiently(filesystem, read)


def side_by_side(work: Callable[[U], T], items: Iterable[U]) -> list[T]:
    """What ``work`` gives of each item, in their order; for many small files of an object store."""
    return list(in_threads(work, items, MOST_REQUESTS))


def in_threads(work: Callable[[U], T], items: Iterable[U], count: int) -> Generator[T]:
    """What ``work`` gives of each item, in their order; by so many threads, one item ahead."""
    with ThreadPoolExecutor(count, thread_name_prefix="store") as threads:
        waiting = (threads.submit(work, item) for item in items)
        flying = deque(islice(waiting, count + 1))
        try:
            while flying:
                done = flying.popleft().result()
                flying.extend(islice(waiting, 1))
                yield done
        finally:
            threads.shutdown(cancel_futures=True)


def patiently(filesystem: pa.fs.FileSystem, ask: Callable[[], T]) -> T:
    """What ``ask`` gives; asks again an object store that is busy, or away for half a minute.

    pyarrow does so itself, but of one that is away for six seconds only, and not where the refusal
    is longer than what was asked for: then it finds no room for it, and calls that an internal
    failure.

    ``ask`` reads, or writes what is the same whoever writes it: another run may have taken over
    meanwhile. What it raises is raised. A store on a disk is not asked again.
    """
    pause = 0.0 if filesystem.type_name == "local" else FIRST_PAUSE_SECONDS
    while True:
        try:
            return ask()
        except (OSError, StoreError) as error:
            if not 0.0 < pause <= LAST_PAUSE_SECONDS or not any(p in str(error) for p in _PASSING):
                raise
        time.sleep(pause)
        pause *= 2


def file_exists(filesystem: pa.fs.FileSystem, path: str) -> bool:
    """Whether there is a file, whole as all that ``write_bytes`` leaves."""
    with store_errors("look for", path):
        info = patiently(filesystem, lambda: filesystem.get_file_info(path))
    return bool(info.is_file)


def write_bytes(filesystem: pa.fs.FileSystem, path: str, content: bytes) -> None:
    """Writes a whole file atomically."""
    with write_atomically(filesystem, path) as stream:
        stream.write(content)


@contextmanager
def write_atomically(filesystem: pa.fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    """An output stream whose content is under ``path`` whole, or not at all.

    Parent directories are made. Locally the bytes go to a temporary sibling that is renamed;
    elsewhere straight to the object, which is deleted if the block fails. Of a local file only
    ``make_durable`` says that it outlives a power failure.
    """
    folder, _, name = path.rpartition("/")
    is_local = filesystem.type_name == "local"
    target = f"{folder}/.{name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}" if is_local else path
    with store_errors("write", path):
        if filesystem.type_name not in _OBJECT_STORES:
            filesystem.create_dir(folder, recursive=True)
        stream = filesystem.open_output_stream(target)
        try:
            yield stream
            stream.close()
            if is_local:
                os.replace(target, path)
        except BaseException:
            # pyarrow cannot abort an upload: closing is the only way to let go of it, and that
            # makes what was written so far visible.
            with suppress(OSError):
                stream.close()
            with suppress(OSError):
                filesystem.delete_file(target)
            raise


def make_durable(filesystem: pa.fs.FileSystem, paths: Sequence[str]) -> None:
    """Have files and their names on the disk before anything that is written later.

    Nothing to do where a file is visible once it is stored. Not for every file: a disk takes up to
    half a second for it (measured), and what is not committed can be made again.
    """
    if filesystem.type_name != "local":
        return
    for path in [*paths, *sorted({path.rpartition("/")[0] for path in paths})]:
        with store_errors("sync", path):
            # pyarrow's streams have no fileno.
            descriptor = os.open(path or "/", os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def refusals(filesystem: pa.fs.FileSystem, folder: str, size: int = 0) -> Iterator[str]:
    """Of what a run asks of a store, what is refused, why, and what would mend it.

    The folder is made where there is none; ``size`` bytes are written and read.
    """
    probe = probe_in(folder)
    every = pa.fs.FileSelector(folder, allow_not_found=True)
    questions: dict[str, Callable[[], Any]] = {
        "write": lambda: write_bytes(filesystem, probe, bytes(size)),
        "read": lambda: read_bytes(filesystem, probe),
        "list": lambda: filesystem.get_file_info(every),
        "look for what is not there in": lambda: read_bytes(filesystem, f"{probe}-none"),
        "remove from": lambda: filesystem.delete_file(probe),
    }
    for what, ask in questions.items():
        try:
            patiently(filesystem, ask)
        except (OSError, StoreError) as error:
            right = f" ({_ON_S3[what]})" if filesystem.type_name == "s3" else ""
            told = error if isinstance(error, StoreError) else f"cannot {what} it: {cause(error)}"
            yield f"{told}; mend its permissions{right}"
            if what in ("write", "read"):  # The others would be refused for the same reason.
                return


def probe_in(folder: str) -> str:
    """The path of a file to be written for a moment."""
    return f"{folder.rstrip('/')}/.probe-{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
