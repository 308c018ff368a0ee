"""Tensors as safetensors files, no pickle, readable by any tool; and checkpoints of trainings.

A checkpoint is left in its training's artifact now and then, until the end. It saves time and
decides no result: one that cannot be read, or is of something else, is told in one line, and its
training begins again.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Mapping
from functools import partial

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from bend_ray.artifacts.cost import Cost, Stopwatch
from bend_ray.artifacts.directory import SCRATCH, Directory
from bend_ray.artifacts.store import Artifact
from bend_ray.errors import CorruptArtifact
from bend_ray.storage.filesystems import patiently, write_bytes
from bend_ray.storage.masking import cause

DIRECTORY = f"{SCRATCH}/training"
"""What trainings leave in an artifact until its commit."""

logger = logging.getLogger(__name__)


def save_weights(artifact: Directory, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors, from any device and sharing memory or not, as one file."""
    # safetensors refuses tied weights and views that are not contiguous: each gets its own copy.
    copies = {
        key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in tensors.items()
    }
    content = safetensors.torch.save(copies)
    write = partial(write_bytes, artifact.filesystem, artifact.child(name), content)
    patiently(artifact.filesystem, write)


def load_weights(artifact: Directory, name: str) -> dict[str, Tensor]:
    """Reads what ``save_weights`` wrote, on the CPU."""
    content = artifact.read_bytes(name)
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        problem = f"expected a safetensors file, got: {cause(error)}"
        raise artifact.corrupt(name, problem) from error


def last_left(artifact: Artifact, name: str, piece: int) -> dict[str, int | None]:
    """When a piece's checkpoints were left, in ns since 1970; ``name`` has a ``{}`` for it."""
    start = f"{DIRECTORY}/{name.format(piece)}"
    return {n: info.mtime_ns for n, info in artifact.everything().items() if n.startswith(start)}


class Checkpoint:
    """Where one training, by its name in an artifact being made, leaves its state and finds it.

    There are so many seconds between two checkpoints. ``spent`` is what processes before have,
    since the last shard was written, ``watch`` is of what this one has since that was counted.
    """

    def __init__(self, artifact: Artifact, name: str, seconds: float, watch: Stopwatch) -> None:
        self._artifact, self._file = artifact, f"{DIRECTORY}/{name}.safetensors"
        self._seconds, self._saved = seconds, time.monotonic()
        self._place = f"{artifact.stage}/{artifact.fingerprint}/{self._file}"
        self.watch = watch
        self.spent = Cost()

    @property
    def is_there(self) -> bool:
        """Whether one was left."""
        return self._file in self._artifact.list_files(self._file)

    @property
    def is_due(self) -> bool:
        """Whether it is time for another."""
        return time.monotonic() - self._saved >= self._seconds

    def load(self, like: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """What was left; None where nothing was, or nothing that has tensors as these."""
        if not self.is_there:
            return None
        try:
            tensors = load_weights(self._artifact, self._file)
            marks = [tensors.pop(name) for name in ("spent", "mark")]
            fits = torch.equal(self._mark(tensors), marks[1]) and all(
                name in tensors and tensors[name].shape == each.shape for name, each in like.items()
            )
        except (CorruptArtifact, KeyError):
            fits = False
        if not fits:
            logger.warning(
                "%-12s expected %s to be a checkpoint of this training, got a damaged one or "
                "another's; it begins again",
                *(self._artifact.stage, self._file),
            )
            return None
        cpu, gpu, wall = marks[0].tolist()
        self.spent = Cost(cpu_seconds=cpu, gpu_seconds=gpu, wall_seconds=wall)
        return tensors

    def _mark(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """A checksum of where they are and what they hold."""
        checksum = zlib.crc32(self._place.encode())
        for name in sorted(tensors):
            checksum = zlib.crc32(tensors[name].contiguous().numpy().reshape(-1).data, checksum)
        return torch.tensor(checksum)

    def save(self, tensors: Mapping[str, Tensor], whole: Cost | None = None) -> None:
        """Leave a state, in the place of the one before, with its whole cost, of all processes."""
        spent = (whole or self.spent + self.watch.cost).model_dump()
        here = {name: each.detach().cpu() for name, each in tensors.items()}
        marks = {
            "mark": self._mark(here),
            "spent": torch.tensor(list(spent.values()), dtype=torch.float64),
        }
        save_weights(self._artifact, self._file, here | marks)
        self._saved = time.monotonic()
