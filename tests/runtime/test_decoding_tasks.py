"""Images decoded by tasks: the same as by threads, on a cluster whose CPUs are all taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from image_files import write_folder
from tiny import MakeConfig, make

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import identified
from bend_ray.data.datasets import ImageFolder
from bend_ray.data.streaming import Room, Streamed
from bend_ray.errors import DataError
from bend_ray.populations.members import ROOTS
from bend_ray.runtime.cluster import object_store_bytes
from bend_ray.runtime.interface import from_vectors, vectors
from bend_ray.runtime.on_ray import RayRuntime, by_tasks

WINDOW, BYTES = 8, 3 * 6 * 6


@pytest.mark.parametrize(
    ("memory", "shared", "expected"),
    [(64e9, 64e9, 19.2e9), (64e9, 8e9, 7.2e9), (24e9, float("inf"), 7.2e9), (1e9, 64e6, 104857600)],
)
def test_the_object_store_is_of_the_machine(memory: float, shared: float, expected: float) -> None:
    assert object_store_bytes(memory, shared) == int(expected)


def test_pixels_travel_as_their_bytes() -> None:
    pixels = np.arange(5 * 12, dtype=np.uint8).reshape(5, 3, 2, 2)
    column = vectors(pixels.reshape(5, -1))
    for sent in (pa.chunked_array([column]), pa.chunked_array([column[:2], column[2:]])):
        np.testing.assert_array_equal(from_vectors(sent).reshape(5, 3, 2, 2), pixels)
    cut = from_vectors(pa.chunked_array([column[1:3]]))
    np.testing.assert_array_equal(cut.reshape(2, 3, 2, 2), pixels[1:3])


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_tasks_decode_in_order_though_all_cpus_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "train", range(40))
    write_folder(tmp_path / "test", range(100, 105))
    spec = ImageFolder(root=str(tmp_path), num_validation=6, window=WINDOW)
    spec = spec.model_copy(update={"memory": 2 * WINDOW * BYTES / 1e9})
    parts = spec.load(Room(0.0, by_tasks))
    assert isinstance(parts.train, Streamed)
    monkeypatch.setattr("bend_ray.data.streaming.BLOCK_BYTES", 3 * BYTES)
    assert parts.train.block == 3
    windows = torch.arange(34).split(WINDOW)

    class Holder:
        """Takes CPUs, as trainers do, and streams."""

        def stream(self) -> torch.Tensor:
            return torch.cat([*parts.train.stream(windows)])

    cpus = ray.cluster_resources()["CPU"]
    holder = ray.remote(num_cpus=cpus)(Holder).remote()
    try:
        assert torch.equal(ray.get(holder.stream.remote()), parts.train.take(slice(None)))
        gone = sorted((tmp_path / "train").rglob("*.png"))[3]
        gone.unlink()
        with pytest.raises(DataError, match=rf"^dataset: cannot read .*{gone.name}"):
            [*parts.train.stream(windows), *parts.validation.stream([torch.arange(6)])]
    finally:
        ray.kill(holder)


@pytest.mark.ray
@pytest.mark.trains
@pytest.mark.usefixtures("cluster")
def test_who_is_trained_on_a_stream_is_who_is_trained_on_resident_images(
    tiny: MakeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_folder(tmp_path / "train", range(40))
    write_folder(tmp_path / "test", range(100, 105))
    dataset = f"{{kind: image_folder, root: {tmp_path}, num_validation: 6, window: {WINDOW}"
    streamed = f"{dataset}, memory: {2 * WINDOW * BYTES / 1e9}}}"
    found = {}
    # On one machine threads decode, on a cluster tasks.
    for way, given, own in (
        ("resident", f"{dataset}}}", True),
        ("threads", streamed, True),
        ("tasks", streamed, False),
    ):
        store = Store(str(tmp_path / way))
        config = identified(tiny(f"dataset={given}", "seeds.recipe.batch_size=4"))
        seeds = make(config, store, "seeds", RayRuntime(own)).seeds
        kept = read_population(seeds)
        found[way] = seeds.read_bytes(ROOTS), kept.theta_KP.tobytes(), kept.val_nll.tobytes()
    assert caplog.text.count("streamed, in windows of 8 images") == 2
    assert found["threads"] == found["resident"]
    assert found["tasks"] == found["resident"]
