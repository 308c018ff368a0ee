"""What befalls a stage: each fault is real, or says what of it is not.

A fault is done in the middle of the stage's work (``strike``), and what must be mended by somebody
before ``bend`` can go on is mended after it has ended (``mend``).
"""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from scenes import EVERY_STAGE, Attempt, Scene, titled

if TYPE_CHECKING:
    from matrix import Laboratory

STOPPED_SECONDS = 30.0
AWAY_SECONDS = 20.0
FULL_SECONDS = 120.0
PRESSURE_SECONDS = 1.5


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: on the command line.
        cluster: the kind of cluster it needs.
        store: ``folder``, ``disk`` (small) or ``s3``.
        from_start: it holds before the stage starts.
        middle: files of the store that show when to strike; none: those of the stage's cast.
    """

    name: str
    cluster: str = "plain"
    store: str = "folder"
    from_start: bool = False
    middle: str = ""

    def impossible(self, stage: str) -> str | None:
        """Why a stage cannot meet it."""
        return None

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        """Do it; returns what was hit, and ``""`` where nothing was."""
        raise NotImplementedError

    def mend(self, laboratory: Laboratory) -> None:
        """Undo what lasts."""


class KillWorker(Fault):
    """SIGKILL of a process that computes a piece of the stage."""

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        return _kill((scene.wait_for(lambda: titled(scene.cast.worker), attempt) or [])[:1])


class KillTrainer(KillWorker):
    """SIGKILL of a trainer that has left a checkpoint of what it trains, and not yet its end."""

    def impossible(self, stage: str) -> str | None:
        return None if stage == "seeds" else "only base classifiers are trained by pieces"


class KillActor(Fault):
    """SIGKILL of every actor that the stage needs beside that: of the seeds, all at once."""

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        name = scene.cast.actors
        assert name is not None
        return _kill(scene.wait_for(lambda: titled(name), attempt) or [])


class KillController(Fault):
    """SIGKILL of Ray Train's controller, or Ray Serve's."""

    def impossible(self, stage: str) -> str | None:
        if stage in ("seeds", "latents", "samples", "evaluation"):
            return "the driver itself shares out the pieces"
        return None

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        name = scene.cast.controller
        assert name is not None
        return _kill(scene.wait_for(lambda: titled(name), attempt) or [])


class KillDriver(Fault):
    """SIGKILL of ``bend`` itself."""

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        attempt.process.kill()
        return f"bend ({attempt.process.pid})"


class RemoveNode(Fault):
    """SIGKILL of the raylet and all processes of the node that a worker is on; another comes.

    Of a worker that is on the head, as those of a search may be, of another process's node.
    """

    def impossible(self, stage: str) -> str | None:
        return "bend serve is one node: see sigkill-driver" if stage == "serve" else None

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        nodes = laboratory.nodes("plain")
        workers = scene.wait_for(lambda: titled(scene.cast.worker), attempt) or []
        for process in [*workers, *titled("")] if workers else []:
            try:
                hit = nodes.remove_node_of(process.pid, scene.nursery.raylet_of(process.pid))
            except (psutil.Error, LookupError):
                continue
            nodes.add()
            return hit
        return ""


class FillObjectStore(Fault):
    """Every node's object store is full before the stage starts, and is read all the while.

    Ray must spill, its own objects and the stage's.
    """

    def impossible(self, stage: str) -> str | None:
        if stage == "serve":
            return "a bag is read from files, and requests are no objects"
        return None

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        if laboratory.hog is None:
            script = Path(__file__).with_name("hog.py")
            address = laboratory.nodes(self.cluster).address
            laboratory.hog = subprocess.Popen(
                [sys.executable, str(script), address], stdout=subprocess.PIPE, text=True
            )
            assert laboratory.hog.stdout is not None
            laboratory.hog.stdout.readline()
        spilled = laboratory.nodes(self.cluster).spilled_bytes()
        return f"{spilled // 2**20} MiB spilled" if spilled else ""


class FillDisk(Fault):
    """The disk that the store is on is full until ``bend`` has ended, two minutes at most."""

    def impossible(self, stage: str) -> str | None:
        return None if os.geteuid() == 0 else "only root can mount a small disk"

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        ballast = laboratory.disk / "ballast"
        written = 0
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    written += file.write(b"x" * 4096)
            except OSError:
                pass
        deadline = time.monotonic() + FULL_SECONDS
        while time.monotonic() < deadline and attempt.process.poll() is None:
            time.sleep(0.1)
        ballast.unlink()
        return f"{written // 1024} KiB that were free"


class StoreAway(Fault):
    """The object store refuses connections for 20 s."""

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        laboratory.server.stop()
        time.sleep(AWAY_SECONDS)
        laboratory.server.start_again()
        return f"{AWAY_SECONDS:.0f} s"


class StoreSlow(Fault):
    """Every answer of the object store is late by a quarter of a second."""

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        laboratory.server.delay = 0.25
        return "0.25 s a request"

    def mend(self, laboratory: Laboratory) -> None:
        laboratory.server.delay = 0.0


class StoreFailing(Fault):
    """The object store answers a fifth of all requests with 503."""

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        laboratory.server.failing = 0.2
        return "a fifth"

    def mend(self, laboratory: Laboratory) -> None:
        laboratory.server.failing = 0.0


class Stop(Fault):
    """SIGSTOP of the driver and all of the stage's workers, SIGCONT 30 s later."""

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        hit = [psutil.Process(attempt.process.pid), *titled(scene.cast.worker)]
        for process in hit:
            process.suspend()
        time.sleep(STOPPED_SECONDS)
        for process in hit:
            if process.is_running():
                process.resume()
        return f"bend and {len(hit) - 1} workers"


class ClockJump(Fault):
    """The clock of all Python processes goes an hour ahead, and 3 s later two hours back.

    Not that of Ray's C++ processes, nor the kernel's, which belongs to everybody on the machine.
    """

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        for offset in (3600.0, -3600.0):
            laboratory.set_clock(offset)
            time.sleep(3.0)
        return "+1 h, then -1 h"

    def mend(self, laboratory: Laboratory) -> None:
        laboratory.set_clock(0.0)


class OutOfMemory(Fault):
    """Ray's memory monitor kills a worker: the file that it reads says that memory is short."""

    def impossible(self, stage: str) -> str | None:
        return None if os.geteuid() == 0 else "only root can stand in for the file it reads"

    def strike(self, scene: Scene, attempt: Attempt, laboratory: Laboratory) -> str:
        before = {p.pid for p in titled("") if "IDLE" not in " ".join(p.cmdline())}
        laboratory.press_memory(True)
        deadline = time.monotonic() + 10
        gone: set[int] = set()
        while time.monotonic() < deadline and not gone:
            time.sleep(0.1)
            gone = {pid for pid in before if not psutil.pid_exists(pid)}
        time.sleep(0.2)
        laboratory.press_memory(False)
        return f"{len(gone)} processes" if gone else ""

    def mend(self, laboratory: Laboratory) -> None:
        laboratory.press_memory(False)


def _kill(processes: list[psutil.Process] | None) -> str:
    hit = []
    for process in processes or []:
        try:
            title = process.cmdline()[0]
            process.kill()
            hit.append(f"{title} ({process.pid})")
        except (psutil.Error, IndexError):
            continue
    return ", ".join(hit)


class Clock:
    """The file that ``clock/sitecustomize.py`` reads."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(struct.pack("d", 0.0))
        self.path = path
        with path.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)

    def set(self, offset: float) -> None:
        self._offset[:8] = struct.pack("d", offset)


FAULTS = {
    fault.name: fault
    for fault in (
        KillWorker("sigkill-worker"),
        KillTrainer("sigkill-mid-root", middle="seeds/*/making/training/roots-*-0.safetensors"),
        KillTrainer("sigkill-mid-run", middle="seeds/*/making/training/*/0.safetensors"),
        KillActor("sigkill-actor"),
        KillController("sigkill-controller"),
        KillDriver("sigkill-driver"),
        RemoveNode("node-removed"),
        FillObjectStore("object-store-full", cluster="small", from_start=True),
        FillDisk("disk-full", store="disk"),
        StoreAway("store-unreachable", store="s3"),
        StoreSlow("store-slow", store="s3", from_start=True),
        StoreFailing("store-failing", store="s3", from_start=True),
        Stop("sigstop"),
        ClockJump("clock-jump", cluster="clock"),
        OutOfMemory("out-of-memory"),
    )
}

OWN_CLUSTER = {
    ("autoencoder", name)
    for name in (
        "sigkill-driver",
        "disk-full",
        "store-unreachable",
        "store-slow",
        "store-failing",
        "sigstop",
        "clock-jump",
    )
} | {("serve", name) for name in FAULTS}
"""Cells in which ``bend`` starts Ray itself; an autoencoder is then trained in its own process."""

NOT_APPLICABLE = {
    (stage, name): why
    for stage in EVERY_STAGE
    for name, fault in FAULTS.items()
    if (why := fault.impossible(stage)) is not None
}
