"""Event files as TensorBoard reads them; needs no Ray."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from bend_ray.artifacts.events import EVENTS, population_progress, write_loss
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import write_shard
from bend_ray.artifacts.store import Artifact, Store


def read_scalars(content: bytes) -> list[tuple[str, int, float, float]]:
    """(tag, step, value, wall time) of an event file: records of length, payload, checksums."""
    scalars = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        payload = content[12 : 12 + length]
        (checksum,) = struct.unpack("<I", content[12 + length : 16 + length])
        crc = crc32c(payload)
        assert checksum == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
        event = Event.FromString(payload)
        scalars += [
            (value.tag, event.step, value.simple_value, event.wall_time)
            for value in event.summary.value
        ]
        content = content[16 + length :]
    return scalars


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Store(str(tmp_path)).artifact("seeds", 1, {})


def test_a_loss_curve_reads_back(artifact: Artifact) -> None:
    curve, times = [(10, 0.5), (20, 0.25)], [1.7e9, 1.7e9 + 2]
    name = write_loss(artifact, curve, times)
    assert name == EVENTS
    assert "tfevents" in name
    assert read_scalars(artifact.read_bytes(name)) == [
        ("seeds/loss", 10, 0.5, 1.7e9),
        ("seeds/loss", 20, 0.25, 1.7e9 + 2),
    ]


def shard(artifact: Artifact, index: int, accuracy: list[float], written: float) -> str:
    count = len(accuracy)
    none = np.zeros(count)
    columns = dict.fromkeys(("trunk", "fork", "step", "seed", "held_out", "fit_seconds"), none)
    population = Population(
        **columns,
        model_id=np.arange(count),
        val_accuracy=np.array(accuracy),
        val_nll=1 - np.array(accuracy),
        origin="trained",
        theta_KP=np.ones((count, 3)),
        layout_digest="0123",
    )
    name = write_shard(artifact, index, population)
    os.utime(artifact.child(name), (written, written))
    return name


def test_a_population_grows_in_the_order_in_which_its_shards_were_written(
    artifact: Artifact,
) -> None:
    names = [
        shard(artifact, 0, [0.5, 1.0], 1.7e9 + 60),
        shard(artifact, 1, [0.25], 1.7e9),
    ]
    told = population_progress(artifact, names)
    assert [(tag, step, value, time) for tag, value, step, time in told] == [
        ("seeds/models", 1, 1.0, 1.7e9),
        ("seeds/val_accuracy", 1, 0.25, 1.7e9),
        ("seeds/val_nll", 1, 0.75, 1.7e9),
        ("seeds/models", 3, 3.0, 1.7e9 + 60),
        ("seeds/val_accuracy", 3, 0.75, 1.7e9 + 60),
        ("seeds/val_nll", 3, 0.25, 1.7e9 + 60),
    ]
