"""Running ``bend`` as its user does: a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

TINY = """
seeds:
  recipe: {epochs: 6, optimizer: {learning_rate: 0.003}}
  protocol: {kind: forks, trunks: 2, forks: 8, trunk_fraction: 0.2}
  cohort_size: 4
autoencoder:
  model: {latent_size: 8, hidden: 16}
  training: {steps: 400, batch_size: 8, checkpoint_every: 5}
generator:
  denoiser: {hidden: 16, blocks: 1}
  training: {steps: 400, batch_size: 8, checkpoint_every: 5}
samples: {count: 8, shard_size: 4}
evaluation:
  rivals: [{kind: originals_bag}, {kind: deep_ensemble}, {kind: gaussian}]
"""

COSTS = {"cost", "cost_seconds", "prices", "store"}


class Bend:
    """``bend`` in a folder of its own.

    Args:
        folder: the working directory.
        cluster: what Ray reads to join one; by default each process has its own.
    """

    def __init__(self, folder: Path, cluster: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._cluster = dict(cluster or {})
        self.config = folder / "tiny.yaml"
        self.config.write_text(TINY)
        self.store = folder / "store"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The process, its output captured, in a process group of its own."""
        plain = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return subprocess.Popen(
            [sys.executable, "-m", "bend_ray", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=plain | self._cluster,
            start_new_session=True,
        )

    def __call__(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """The process when it has ended."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run_arguments(self, *more: str) -> list[str]:
        """A tiny run into this folder's store, its result as JSON on stdout."""
        return ["run", str(self.config), "--store", str(self.store), "--json", "-", *more]


@dataclass(frozen=True)
class Finished:
    """A run that ended well: where it ran, what it printed, and its figures."""

    bend: Bend
    stdout: str
    figures: Any


def figures(text: str) -> Any:
    """A result without what may differ between two runs: costs and places."""
    return without_costs(json.loads(text))


def without_costs(value: Any) -> Any:
    """``value`` without its costs, at any depth."""
    if isinstance(value, dict):
        return {k: without_costs(v) for k, v in value.items() if k not in COSTS}
    return value


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What ``condition`` says as soon as it is true."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := condition():
            return found
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    raise AssertionError("waited for two minutes")


def descendants(process: subprocess.Popen[str], name: str = "") -> list[psutil.Process]:
    """Its processes, down to workers, whose command line holds ``name``."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found
