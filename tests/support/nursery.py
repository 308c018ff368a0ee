"""A process that has imported everything already, and forks: ``bend`` and Ray's workers.

    python nursery.py SOCKET

To import torch, Ray and scikit-learn takes a core five seconds, and a cell of the matrix starts ten
processes that do. Forked ones are there in a tenth of a second, and from then on are what started
ones are: each a process of its own, with its own environment, files, title and connection.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import start_worker

START_SECONDS = 120.0
MODULES = (
    "bend_ray.cli.main",
    "bend_ray.pipeline",
    "fsspec",
    "google.protobuf.json_format",
    "jsonschema",
    "numpy",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.fs",
    "pyarrow.parquet",
    "requests",
    "safetensors",
    "scipy.optimize",
    "sklearn.datasets",
    "torch.distributed",
    "torchvision",
    "tqdm",
)
"""Not Ray: it reads the environment of a worker when it is loaded."""
FIRST = "CHAOS_FIRST"
"""A variable that stays in front of all others: from there Ray finds the place for a title."""


class Forked:
    """A process of the nursery's, as ``subprocess.Popen`` shows its own."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = int(start_worker.line_of(connection))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; of one that a signal killed, minus the signal."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(start_worker.line_of(self._connection))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0) from None
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL it."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The nursery, from outside.

    Args:
        folder: for its socket; the path may have 90 characters.
        environment: in which it imports what it imports.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.socket = folder / "nursery"
        self._environment = {FIRST: "1", **environment}

    def __enter__(self) -> Nursery:
        command = [sys.executable, __file__, str(self.socket)]
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_SECONDS)
        if not ready or not self._process.stdout.readline():
            raise RuntimeError(f"the nursery does not start, in {START_SECONDS:.0f} s or at all")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        for file in self.socket.parent.glob(f"{self.socket.name}*"):
            file.unlink()

    def raylet_of(self, pid: int) -> int:
        """That of a worker, which is this process's child and not the raylet's.

        Raises:
            LookupError: the process is no worker.
        """
        try:
            return int(Path(f"{self.socket}-{pid}").read_text())
        except FileNotFoundError:
            raise LookupError(f"process {pid} is no worker") from None

    def bend(self, arguments: Sequence[str], folder: Path, out: Any, err: Any) -> Forked:
        """``bend`` with arguments, in a folder, with this process's environment."""
        with open(os.devnull) as nothing:
            files = [nothing.fileno(), out.fileno(), err.fileno()]
            asked = {"bend": list(arguments), "folder": str(folder), "environ": dict(os.environ)}
            return Forked(start_worker.ask(str(self.socket), asked, files))


def _become(asked: dict[str, Any], files: Sequence[int]) -> Callable[[], None]:
    """Turn this process, just forked, into what was asked for; returns what it then does."""
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(asked["folder"])
    _set_environment(asked["environ"])
    tempfile.tempdir = None  # read from the environment once
    if "bend" in asked:
        sys.argv = ["bend", *asked["bend"]]
        # As `python -m` does.
        sys.path[0] = asked["folder"]
        return lambda: runpy.run_module("bend_ray", run_name="__main__", alter_sys=True) and None
    sys.argv = asked["worker"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    return lambda: runpy.run_path(sys.argv[0], run_name="__main__") and None


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in set(os.environ) - {*wanted, FIRST}:
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


class _Server:
    """The loop of the nursery; ``run`` returns in each child what that shall do."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(64)
        self._children: dict[int, socket.socket] = {}
        self._woken, wake = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._wake = wake

    def run(self) -> Callable[[], None]:
        while True:
            askers = {connection: pid for pid, connection in self._children.items()}
            ready, _, _ = select.select([self._listener, self._woken, *askers], [], [])
            for each in ready:
                if each is self._listener:
                    connection, _ = self._listener.accept()
                    if (child := self._fork(connection)) is not None:
                        return child
                elif each is self._woken:
                    self._woken.recv(4096)
                elif self._children.get(askers[each]) is each:
                    # Whoever asked is gone: as a worker's raylet would, end what it stood for.
                    os.kill(askers[each], signal.SIGKILL)
            self._reap()

    def _fork(self, connection: socket.socket) -> Callable[[], None] | None:
        try:
            content, files = start_worker.received(connection)
        except (OSError, ValueError):
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for each in (self._listener, self._woken, self._wake, connection):
                each.close()
            for other in self._children.values():
                other.close()
            return _become(content, files)
        for file in files:
            os.close(file)
        self._children[pid] = connection
        _tell(connection, pid)
        return None

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self._children.pop(pid)
            _tell(connection, os.waitstatus_to_exitcode(status))
            connection.close()


def _tell(connection: socket.socket, number: int) -> None:
    try:
        connection.sendall(f"{number}\n".encode())
    except OSError:
        return


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> Callable[[], None]:
    """Import, say so, and fork for whoever asks."""
    _die_with_parent()
    for module in MODULES:
        __import__(module)
    threads = [(each / "comm").read_text().strip() for each in Path("/proc/self/task").iterdir()]
    # pyarrow's allocator starts its own again after a fork; others would be missing there.
    lost = [name for name in threads if name != "jemalloc_bg_thd"]
    assert len(lost) == 1, f"expected no thread but this one, got {threads}"
    server = _Server(sys.argv[1])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    return server.run()


if __name__ == "__main__":
    # Here and not deeper: what a child does ends as a program does, with all that it cleans up.
    main()()
