"""What a raylet starts in the place of Ray's ``setup_worker.py``: has the nursery fork the worker.

It lives as long as the worker, ends as that does, and where it is killed that is too.
"""

from __future__ import annotations

import array
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SOCKET = "CHAOS_NURSERY"
"""The variable that says where it listens."""


def ask(path: str, content: Mapping[str, Any], files: Sequence[int]) -> socket.socket:
    """Send a nursery a JSON message, and files for standard input, output and error."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    message = json.dumps(content).encode()
    header = f"{len(message)}\n".encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
    sent = connection.sendmsg([header], rights)
    connection.sendall(header[sent:] + message)
    return connection


def received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The other end of ``ask``."""
    first, files, _, _ = socket.recv_fds(connection, 1, 3)
    length = int(first + line_of(connection).encode())
    message = b""
    while len(message) < length:
        if not (part := connection.recv(length - len(message))):
            raise OSError("the asker is gone")
        message += part
    return json.loads(message), files


def line_of(connection: socket.socket) -> str:
    """The next line of a connection; it waits as long as the connection does."""
    line = b""
    while not line.endswith(b"\n"):
        if not (part := connection.recv(1)):
            raise OSError("the nursery is gone")
        line += part
    return line.decode().strip()


def _worker() -> tuple[list[str], dict[str, Any]]:
    """The worker's command line, and what its runtime environment asks for."""
    command, context = [], {}
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        if name == "--serialized-runtime-env-context":
            context = json.loads(value or "{}")
        elif name != "--language":
            command.append(argument)
    return command, context


def _as_ray_does() -> None:
    """Become Ray's own starter: a job's worker begins with commands, as to go to its folder."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    own = Path(spec.origin).parent / "_private" / "workers" / "setup_worker.py"
    os.execv(sys.executable, [sys.executable, str(own), *sys.argv[1:]])


def main() -> int:
    """Have a worker forked; its exit code."""
    command, context = _worker()
    if context.get("command_prefix"):
        _as_ray_does()
    environment = dict(os.environ) | (context.get("env_vars") or {})
    asked = {"worker": command, "folder": os.getcwd(), "environ": environment}
    connection = ask(os.environ[SOCKET], asked, [0, 1, 2])
    pid = line_of(connection)
    Path(f"{os.environ[SOCKET]}-{pid}").write_text(str(os.getppid()))
    return abs(int(line_of(connection)))


if __name__ == "__main__":
    sys.exit(main())
