"""Lease: two runs on one store make an artifact once.

Whoever works on an artifact keeps ``lease.json`` in its directory and renews it every few
seconds from a thread; a second run waits until the artifact is committed or the lease is free.

A lease is dead, and may be taken over, when either of these holds:

- its holder was a process of this host (and of this container) that is gone: at once;
- its file has not changed for ``stale_seconds`` of the *waiter's* monotonic clock, which no
  difference between the clocks of two hosts can fake.

A free local lease is created exclusively, which is atomic. Object stores offer no such thing
through pyarrow, and neither does a takeover: there the taker writes, pauses and reads back, and
the last writer wins. A holder that finds another's lease warns and renews no more.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydantic import ValidationError

from bend_ray.artifacts.directory import LEASE_NAME, Directory
from bend_ray.artifacts.store import Artifact
from bend_ray.errors import StoreError
from bend_ray.spec import Record
from bend_ray.storage.filesystems import read_bytes, store_errors, write_bytes

logger = logging.getLogger(__name__)

_REMIND_SECONDS = 10.0
_RENEW_SECONDS = 5.0


class Holder(Record):
    """Who holds a lease; ``renewed`` is in seconds since the epoch, by the holder's clock."""

    owner: str
    host: str
    pid: int
    # Machines and containers may share a host name: then process ids mean nothing to each other.
    pid_namespace: str
    renewed: float

    def __str__(self) -> str:
        return f"pid {self.pid} on host {self.host}"

    def is_gone(self) -> bool:
        """Whether it was a process that this one could see, and is no more."""
        if (self.host, self.pid_namespace) != (socket.gethostname(), _pid_namespace()):
            return False
        try:
            os.kill(self.pid, 0)
        except OSError as error:  # It may be somebody else's.
            return isinstance(error, ProcessLookupError)
        return False


@contextmanager
def lease(
    artifact: Artifact,
    waiting: Callable[[str], None],
    *,
    renew_seconds: float = _RENEW_SECONDS,
    stale_seconds: float = 30.0,
    poll_seconds: float = 0.5,
    settle_seconds: float = 0.5,
) -> Iterator[bool]:
    """Holds the right to make an artifact, after waiting for it if need be.

    ``waiting`` is called with a line that says for whom we wait, at first and every 10 s;
    ``poll_seconds`` are between looks at another's lease, ``settle_seconds`` between writing and
    reading back where another may write at the same time. Gives True: make it; or False: another
    run committed it meanwhile, there is nothing to do.
    """
    claim, reminded = _Claim(artifact, stale_seconds, settle_seconds), -_REMIND_SECONDS
    while not claim.take(found := claim.read()):
        if found is not None:
            if artifact.exists():
                yield False
                return
            if time.monotonic() - reminded >= _REMIND_SECONDS:
                made = f"{artifact.stage} {artifact.fingerprint} is being made"
                waiting(f"{made} by {_parse(found) or 'another run'}; waiting")
                reminded = time.monotonic()
        time.sleep(poll_seconds)
    stop = threading.Event()
    renewal, name = (stop, renew_seconds), f"lease-{artifact.stage}"
    renewer = threading.Thread(target=claim.renew, args=renewal, name=name, daemon=True)
    renewer.start()
    try:
        # The one we waited for may have committed and left between two looks.
        yield not artifact.exists()
    finally:
        stop.set()
        renewer.join(stale_seconds)
        claim.release()


@dataclass
class _Claim:
    """One run's attempt to hold the lease, and what it has seen of another's."""

    artifact: Artifact
    stale_seconds: float
    settle_seconds: float
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)
    _seen: bytes | None = None
    _seen_since: float = 0.0

    def read(self) -> bytes | None:
        return read_bytes(self.artifact.filesystem, self.artifact.child(LEASE_NAME))

    def content(self) -> bytes:
        me = Holder(
            owner=self.owner,
            host=socket.gethostname(),
            pid=os.getpid(),
            pid_namespace=_pid_namespace(),
            renewed=time.time(),
        )
        return me.model_dump_json().encode()

    def write(self) -> None:
        write_bytes(self.artifact.filesystem, self.artifact.child(LEASE_NAME), self.content())

    def take(self, found: bytes | None) -> bool:
        """Takes a lease that nobody holds, or whose holder is dead; False if it is another's."""
        if found is not None and not self.is_dead(found):
            return False
        path = self.artifact.child(LEASE_NAME)
        if found is None and self.artifact.filesystem.type_name == "local":
            with store_errors("write", path):
                os.makedirs(self.artifact.path, exist_ok=True)
                try:
                    with open(path, "xb") as file:
                        file.write(self.content())
                except FileExistsError:
                    return False
            return True
        # Over whatever is there, and confirmed that nobody wrote over us.
        self.write()
        time.sleep(self.settle_seconds)
        return self.is_mine()

    def is_dead(self, found: bytes) -> bool:
        """Whether the lease just read may be taken over; see the module for the rule."""
        now = time.monotonic()
        if found != self._seen:
            self._seen, self._seen_since = found, now
        holder = _parse(found)
        gone = holder is not None and holder.is_gone()
        return gone or now - self._seen_since >= self.stale_seconds

    def is_mine(self) -> bool:
        holder = _parse(self.read())
        return holder is not None and holder.owner == self.owner

    def renew(self, stop: threading.Event, seconds: float) -> None:
        """Writes it anew every few seconds, until it is another's."""
        while not stop.wait(seconds):
            try:
                holder = _parse(self.read())
                if holder is not None and holder.owner != self.owner:
                    logger.warning(
                        "%s took over %r, which this run still works on: it was not renewed in "
                        "time",
                        *(holder, self.artifact),
                    )
                    return
                self.write()
            except StoreError as error:
                logger.warning("could not renew a lease, trying again: %s", error)

    def release(self) -> None:
        """Removes the lease if it is still ours; a failure must not hide the block's own."""
        try:
            if self.is_mine():
                self.artifact.discard(LEASE_NAME)
        except StoreError as error:
            logger.warning("could not give back a lease, others will wait for it: %s", error)


def maker(
    artifact: Directory, *, fresh_seconds: float = 60.0, renew_seconds: float = _RENEW_SECONDS
) -> str | None:
    """Who is making an artifact, in words; None where nobody is.

    Where the lease is not fresh by the clocks of its holder and of this host, it is looked at
    again after a renewal, as they may be wrong.
    """
    path = artifact.child(LEASE_NAME)
    holder = _parse(read_bytes(artifact.filesystem, path))
    if holder is None or holder.is_gone():
        return None
    if abs(time.time() - holder.renewed) > fresh_seconds:
        time.sleep(1.5 * renew_seconds)
        if _parse(read_bytes(artifact.filesystem, path)) in (holder, None):
            return None
    return str(holder)


def _parse(content: bytes | None) -> Holder | None:
    """The holder; None where there is no lease or it is only half written."""
    try:
        return None if content is None else Holder.model_validate_json(content)
    except ValidationError:
        return None


def _pid_namespace() -> str:
    """Of which running kernel, and of which of its namespaces: all kernels number them alike."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
