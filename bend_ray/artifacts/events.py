"""Training curves as TensorBoard event files in the artifacts: ``tensorboard --logdir STORE``.

An artifact's file is written whole, when its stage is done: an object cannot be appended to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bend_ray.artifacts.shards import open_table
from bend_ray.artifacts.store import Artifact
from bend_ray.storage.filesystems import side_by_side

EVENTS = "events.out.tfevents.bend"
"""TensorBoard knows event files by a part of their name."""


Point = tuple[str, float, int, float]
"""Of a curve: its tag, the value, the step, and seconds since 1970."""


def write_events(artifact: Artifact, points: Iterable[Point]) -> str:
    """Write curves into an artifact; the file's name, for the commit."""
    artifact.ensure_uncommitted()
    # Here, and not above: it takes a second to import, of processes that write nothing too.
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory(prefix="bend-events-") as folder:
        with SummaryWriter(folder) as writer:
            for point in points:
                writer.add_scalar(*point)
        (written,) = Path(folder).iterdir()
        with artifact.open_output(EVENTS) as stream:
            stream.write(written.read_bytes())
    return EVENTS


def write_loss(
    artifact: Artifact, curve: Sequence[tuple[int, float]], times: Sequence[float]
) -> str:
    """Write a training's loss by step, as ``write_events``."""
    named = zip(curve, times, strict=True)
    tag = f"{artifact.stage}/loss"
    return write_events(artifact, ((tag, loss, step, time) for (step, loss), time in named))


def population_progress(artifact: Artifact, shards: Iterable[str]) -> list[Point]:
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
    points: list[Point] = []
    models = 0
    for wall_time, accuracy, nll in sorted(found, key=lambda shard: shard[0]):
        models += len(accuracy)
        told: dict[str, Any] = {"models": models}
        told |= {"val_accuracy": np.mean(accuracy), "val_nll": np.mean(nll)}
        points += [(f"{artifact.stage}/{k}", float(v), models, wall_time) for k, v in told.items()]
    return points
