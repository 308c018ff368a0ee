"""Answers: what models say of a named set of inputs, stored in pieces and read in blocks.

A piece is some models' answers on all inputs, a Parquet file: a row is a block of consecutive
inputs, its cell the logits ``(E, n, C)`` as little-endian float32, alone in a row group whose pages
have checksums. The schema's metadata says E and C.

Shape letters: E members, N inputs, n of a block, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter
from torch import Tensor

from bend_ray.artifacts.shards import open_table, read_group, table_writer
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import load_weights
from bend_ray.ensemble.predictions import Predictions
from bend_ray.tasks import Task

LABELS = "labels.safetensors"
"""The file of the inputs' ``labels (N,)``."""
_SHAPE = b"bend_ray.shape"
_TASK: TypeAdapter[Task] = TypeAdapter(Task)


def piece_name(index: int) -> str:
    """The file of piece ``index``."""
    return f"piece-{index:05d}.parquet"


def write_piece(
    artifact: Artifact, index: int, num_models: int, num_classes: int, blocks: Iterator[Tensor]
) -> None:
    """Write some models' logits ``(E, n, C)``, block by block; a file is whole or not there."""
    shape = f"{num_models} {num_classes}".encode()
    schema = pa.schema([pa.field("logits", pa.large_binary(), nullable=False)], {_SHAPE: shape})
    with table_writer(artifact, piece_name(index), schema) as writer:
        for logits_EnC in blocks:
            cell = np.ascontiguousarray(logits_EnC.numpy(), dtype="<f4").tobytes()
            writer.write_table(pa.table([[cell]], schema=schema))


def shape_of(artifact: Artifact, name: str) -> tuple[int, int]:
    """Models and classes of a piece."""
    with open_table(artifact, name) as file:
        models, classes = file.schema_arrow.metadata[_SHAPE].split()
        return int(models), int(classes)


class Answers(Predictions):
    """Committed answers; of all members, or of some by their places among all."""

    def __init__(self, artifact: Artifact, members: ArrayLike | None = None) -> None:
        self.artifact = artifact
        self.task = _TASK.validate_python(artifact.manifest().metrics["task"])
        self.labels_N = load_weights(artifact, LABELS)["labels"]
        held = [file for file in artifact.manifest().files if file.rows is not None]
        ends = list(accumulate((file.rows or 0 for file in held), initial=0))
        names = (file.name for file in held)
        self._pieces = dict(zip(names, map(range, ends, ends[1:]), strict=True))
        self._members = np.arange(ends[-1]) if members is None else np.asarray(members, np.intp)
        self._num_classes = shape_of(artifact, held[0].name)[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, N and C."""
        return len(self._members), len(self.labels_N), self._num_classes

    def select(self, members: ArrayLike) -> Answers:
        """Those of some members, in the order given."""
        return Answers(self.artifact, self._members[np.asarray(members, np.intp)])

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits ``(E, n, C)`` and labels of consecutive examples."""
        read = {name: own for name, own in self._pieces.items() if len(self._places(own))}
        with ExitStack() as stack:
            files = {n: stack.enter_context(open_table(self.artifact, n)) for n in read}
            start = 0
            for group in range(next(iter(files.values())).num_row_groups if files else 0):
                parts = [self._cell(name, file, group, read[name]) for name, file in files.items()]
                logits_EnC = np.empty((len(self._members), *parts[0].shape[1:]), np.float32)
                for own, said_EnC in zip(read.values(), parts, strict=True):
                    places = self._places(own)
                    logits_EnC[places] = said_EnC[self._members[places] - own.start]
                labels = self.labels_N[start : start + logits_EnC.shape[1]]
                start += len(labels)
                yield torch.from_numpy(logits_EnC), labels

    def _places(self, own: range) -> NDArray[np.intp]:
        """Which of the members are in a piece."""
        return np.flatnonzero((self._members >= own.start) & (self._members < own.stop))

    def _cell(self, name: str, file: pq.ParquetFile, group: int, own: range) -> NDArray[np.float32]:
        table = read_group(self.artifact, name, file, group)
        cell = np.frombuffer(table["logits"][0].as_buffer(), "<f4")
        return cell.reshape(len(own), -1, self._num_classes)
