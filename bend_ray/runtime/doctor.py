"""Whether a cluster's machines and a store are fit for a run: each asked once, from inside."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bend_ray.errors import BendError
from bend_ray.runtime.causes import told
from bend_ray.runtime.nodes import Node, Nodes, computes_with, differs, unlike, versions
from bend_ray.storage.filesystems import probe_in, refusals, resolve, write_bytes

MOST_SKEW_SECONDS = 60.0
LEAST_DISK = 0.1
"""Of a disk that must be free: above 95 % used, Ray starts nothing there."""
_GB = 1e9
MEASURED_BYTES = 16 * 2**20


class Finding(NamedTuple):
    """What was found on a node, and what of it must be mended."""

    node: str
    words: str
    mend: list[str]


def examine(nodes: Nodes, store_uri: str | None) -> Iterator[Finding]:
    """Ask every node of a cluster what it is, and what the store refuses it."""
    began = time.time()
    answers = nodes.ask(_of_a_node, lambda node: (store_uri, node.resources.get("GPU", 0.0)))
    there = {node.id: node for node in nodes.usable()}
    for key, answer in answers.items():
        if isinstance(answer, Exception):
            yield Finding(nodes.address(key), "no process starts there", [told(answer)])
        elif key in there:
            skew = outside(answer["now"], began, time.time())
            mend = list(_to_mend(there[key], answer, skew))
            yield Finding(there[key].address, _in_words(answer), mend)


def _of_a_node(store_uri: str | None, gpus: float) -> dict[str, Any]:
    try:
        store: Any = ask_store(store_uri) if store_uri else None
    except BendError as error:
        store = str(error)
    return {
        "versions": computes_with(gpus),
        "shared": shutil.disk_usage("/dev/shm").total,  # noqa: S108 - where Ray's object store is
        "disk": shutil.disk_usage(tempfile.gettempdir()),
        "store": store,
        "now": time.time(),
    }


def ask_store(uri: str) -> dict[str, Any]:
    """Ask a store for all that a run asks it for; StoreError where it cannot be reached.

    Gives what it has ``refused``, the ``seconds`` that it took, with ``MEASURED_BYTES`` there and
    back, and those by which its clock is ``ahead`` of this machine's, 0 where it may be right.
    """
    filesystem, folder = resolve(uri)
    started, ahead = time.monotonic(), 0.0
    refused = list(refusals(filesystem, folder, MEASURED_BYTES))
    seconds = time.monotonic() - started
    if not refused:
        name, began = probe_in(folder), time.time()
        write_bytes(filesystem, name, b"")
        ended = time.time()
        ahead = outside(filesystem.get_file_info(name).mtime.timestamp(), began, ended)
        filesystem.delete_file(name)
    return {"refused": refused, "seconds": seconds, "ahead": ahead}


def outside(moment: float, began: float, ended: float) -> float:
    """Seconds by which a moment lies after a span of time, or before: then negative."""
    return max(0.0, moment - ended) + min(0.0, moment - began)


def _to_mend(node: Node, answer: Mapping[str, Any], skew: float) -> Iterator[str]:
    wanted, found = versions(), answer["versions"]
    if unlike(wanted, found):
        yield differs(wanted, {node.address: found})
    if found["problem"]:
        yield found["problem"]
    objects = node.resources.get("object_store_memory", 0.0)
    if objects > answer["shared"]:
        yield (
            f"the object store of {objects / _GB:.1f} GB is on disk, as /dev/shm has "
            f"{answer['shared'] / _GB:.1f} GB: make it larger, or start Ray with less "
            "--object-store-memory"
        )
    disk = answer["disk"]
    if disk.free < LEAST_DISK * disk.total:
        yield (
            f"the disk of {tempfile.gettempdir()} has {disk.free / _GB:.1f} of "
            f"{disk.total / _GB:.1f} GB free: Ray starts nothing where it is 95 % full"
        )
    if abs(skew) > MOST_SKEW_SECONDS:
        yield f"its clock is {skew:+.0f} s off this machine's: let it follow a time server"
    store = answer["store"]
    if isinstance(store, str):
        yield store
    elif store is not None:
        yield from (f"the store: {each}" for each in store["refused"])
        if abs(store["ahead"]) > MOST_SKEW_SECONDS:
            yield f"the store's clock is {store['ahead']:+.0f} s off its own: S3 refuses 900 s"


def _in_words(answer: Mapping[str, Any]) -> str:
    found, store = answer["versions"], answer["store"]
    words = [
        f"bend_ray {found['bend_ray']}, torch {found['torch']}, {found['kernels']}",
        f"shared memory {answer['shared'] / _GB:.1f} GB",
        f"disk {answer['disk'].free / _GB:.0f} GB free",
    ]
    if isinstance(store, dict) and not store["refused"]:
        rate = 2 * MEASURED_BYTES / 2**20 / store["seconds"]
        words.append(f"store {rate:.0f} MiB/s there and back")
    return ", ".join(words)
