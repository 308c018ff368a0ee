"""What a run asks of a store, each once, and how quickly the store answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow.fs

from bend_ray.errors import StoreError
from bend_ray.storage.filesystems import (
    TEMPORARY_SUFFIX,
    patiently,
    read_bytes,
    resolve,
    write_bytes,
)
from bend_ray.storage.masking import cause

MEASURED_BYTES = 16 * 2**20
_LISTING = "s3:ListBucket on the bucket, without a condition on the prefix"
_ON_S3 = {
    "write": "s3:PutObject on what is below it",
    "read": "s3:GetObject on what is below it",
    "list": _LISTING,
    "look for what is not there in": _LISTING,
    "remove from": "s3:DeleteObject on what is below it",
}
"""What may be asked, and the right of Amazon's that it takes."""


def refusals(filesystem: pyarrow.fs.FileSystem, folder: str, size: int = 0) -> Iterator[str]:
    """Of what a run asks of a store, what is refused, why, and what would mend it.

    The folder is made where there is none; ``size`` bytes are written and read.
    """
    probe = _probe(folder)
    every = pyarrow.fs.FileSelector(folder, allow_not_found=True)
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


def _probe(folder: str) -> str:
    return f"{folder.rstrip('/')}/.probe-{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"


class Answers(NamedTuple):
    """How a store answers one machine."""

    refused: list[str]
    seconds: float
    """That it took, with ``MEASURED_BYTES`` there and back."""
    ahead: float
    """Seconds of the store's clock before this machine's, 0 where it may be right."""


def ask_store(uri: str) -> Answers:
    """Ask a store for all that a run asks it for; StoreError where it cannot be reached."""
    filesystem, folder = resolve(uri)
    started, ahead = time.monotonic(), 0.0
    refused = list(refusals(filesystem, folder, MEASURED_BYTES))
    seconds = time.monotonic() - started
    if not refused:
        name, began = _probe(folder), time.time()
        write_bytes(filesystem, name, b"")
        ended = time.time()
        ahead = outside(filesystem.get_file_info(name).mtime.timestamp(), began, ended)
        filesystem.delete_file(name)
    return Answers(refused, seconds, ahead)


def outside(moment: float, began: float, ended: float) -> float:
    """Seconds by which a moment lies after a span of time, or before: then negative."""
    return max(0.0, moment - ended) + min(0.0, moment - began)
