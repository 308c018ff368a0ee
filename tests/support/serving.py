"""``bend serve`` as a process, and clients that keep asking it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

READY_SECONDS = 240.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Serving:
    """A ``bend serve`` in a folder of its own."""

    def __init__(self, folder: Path, export: Path, *arguments: str, grpc: bool = False) -> None:
        self.port, self.grpc_port = free_port(), free_port()
        arguments += ("--grpc-port", str(self.grpc_port)) if grpc else ()
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.log = folder / "serve.log"
        command = ["serve", "--export", str(export), "--port", str(self.port), *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bend_ray", *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.log.read_text()

    def wait_ready(self) -> str:
        """What it says when it is up: the URL, and a curl."""
        deadline = time.monotonic() + READY_SECONDS
        while "curl" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.2)
        return self.said()

    def stop(self) -> int:
        """Ask it to end as a container's runtime does; its exit code."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
        try:
            return self.process.wait(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise


class Load:
    """Clients that ask one question again and again, and count what comes back."""

    def __init__(self, url: str, clients: int = 3) -> None:
        self.url = url
        self.answers: Counter[str] = Counter()
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        body = b'{"instances":[' + str([[3] * 8] * 8).encode() + b"]}"
        while not self._ending.is_set():
            request = urllib.request.Request(
                f"{self.url}/predict", body, {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    said = response.read().decode()
                    found = re.search(r'"model_version":"([^"]+)"', said)
                    assert found is not None
                    self.answers[found.group(1)] += 1
            except (urllib.error.URLError, OSError, AssertionError) as error:
                self.answers[f"failed: {error}"] += 1

    def failures(self) -> list[str]:
        return [answer for answer in self.answers if answer.startswith("failed")]
