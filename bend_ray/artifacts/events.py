"""Training curves as TensorBoard event files in the artifacts: ``tensorboard --logdir STORE``.

An artifact's file is written whole, when its stage is done: an object cannot be appended to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bend_ray.artifacts.shards import open_table
from bend_ray.artifacts.store import Artifact
from bend_ray.storage.filesystems import side_by_side

EVENTS = "events.out.tfevents.bend"
"""TensorBoard knows event files by a part of their name."""


class Scalar(NamedTuple):
    """A point of a curve."""

    tag: str
    step: int
    value: float
    wall_time: float
    """Seconds since 1970."""


def write_events(artifact: Artifact, scalars: Iterable[Scalar]) -> str:
    """Write curves into an artifact; the file's name, for the commit."""
    artifact.ensure_uncommitted()
    # Here, and not above: it takes a second to import, of processes that write nothing too.
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory(prefix="bend-events-") as folder:
        with SummaryWriter(folder) as writer:
            for scalar in scalars:
                writer.add_scalar(scalar.tag, scalar.value, scalar.step, walltime=scalar.wall_time)
        (written,) = Path(folder).iterdir()
        with artifact.open_output(EVENTS) as stream:
            stream.write(written.read_bytes())
    return EVENTS


def loss_curve(
    stage: str, curve: Sequence[tuple[int, float]], times: Sequence[float]
) -> list[Scalar]:
    """A training's loss by step."""
    return [
        Scalar(f"{stage}/loss", step, loss, wall_time)
        for (step, loss), wall_time in zip(curve, times, strict=True)
    ]


def population_progress(artifact: Artifact, shards: Iterable[str]) -> list[Scalar]:
    """How a population grew: models by time, and how well each shard's do on validation images.

    A shard's time is that of its file, so that the curve of a resumed stage is whole.
    """

    def read(name: str) -> tuple[float, NDArray[np.float32], NDArray[np.float32]]:
        written = artifact.filesystem.get_file_info(artifact.child(name)).mtime.timestamp()
        with open_table(artifact, name) as file:
            table = file.read(columns=["val_accuracy", "val_nll"])
        accuracy_K, nll_K = (column.to_numpy() for column in table.columns)
        return written, accuracy_K, nll_K

    found = side_by_side(read, shards)
    scalars, models = [], 0
    for wall_time, accuracy, nll in sorted(found, key=lambda shard: shard[0]):
        models += len(accuracy)
        told: dict[str, float] = {"models": models}
        told |= {"val_accuracy": float(np.mean(accuracy)), "val_nll": float(np.mean(nll))}
        scalars += [
            Scalar(f"{artifact.stage}/{tag}", models, value, wall_time)
            for tag, value in told.items()
        ]
    return scalars
