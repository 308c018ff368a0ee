"""Images a second of a stream, against torch's DataLoader and WebDataset, on the same files.

    uv run --group bench python tests/benchmarks/bench_stream.py --folder /tmp/jpegs

makes JPEGs of 224 x 224 pixels where there are none, and the same files as tar shards. Each way
shuffles, decodes with as many processes as there are cores, and gives batches of 64 as uint8 in
memory. Ways take turns, for ``--rounds`` rounds of ``--read`` images, ours in windows of 512. A
rate is that between the arrivals of the second window and of the last, for all ways: what was
decoded before counts for none. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import ray
import torch
import torchvision
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from bend_ray.artifacts.manifest import installed_versions
from bend_ray.data.datasets import ImageFolder
from bend_ray.data.streaming import Room, by_threads, fetched_ahead
from bend_ray.process.computing import usable_cores
from bend_ray.runtime.cluster import connect
from bend_ray.runtime.on_ray import by_tasks

SIZE, BATCH, WINDOW, DISTINCT, A_SHARD = 224, 64, 512, 500, 500


def make_images(root: Path, count: int) -> None:
    """Few distinct pictures, of coarse colours and noise, in folders of ten classes, and shards."""
    generator = np.random.default_rng(0)
    pictures = []
    for _ in range(DISTINCT):
        coarse = generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE)), dtype=np.int16)
        noisy = smooth + generator.integers(-12, 13, smooth.shape)
        stream = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=80)
        pictures.append(stream.getvalue())
    for part, images in (("train", count), ("validation", 2000), ("test", 2000)):
        for index in range(images):
            path = root / part / str(index % 10) / f"{index:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures[index % DISTINCT])


def make_shards(root: Path) -> list[str]:
    """The training images as tar files, in the order in which a shuffle has put them."""
    files = sorted((root / "train").rglob("*.jpg"))
    order = np.random.default_rng(1).permutation(len(files))
    shards = []
    for start in range(0, len(files), A_SHARD):
        shard = root / f"{start // A_SHARD:04}.tar"
        shards.append(str(shard))
        if shard.exists():
            continue
        with tarfile.open(shard, "w") as archive:
            for index in order[start : start + A_SHARD]:
                archive.add(files[index], f"{index:06}.jpg")
    return shards


def ours(root: Path, read: int, ahead: Callable[..., Iterator[np.ndarray]]) -> Iterator[Tensor]:
    spec = ImageFolder(root=str(root), memory=1.0, window=WINDOW)
    train = spec.load(Room(0.0, ahead)).train  # type: ignore[arg-type]
    windows = torch.split(train.windows.order(0, len(train))[:read], train.windows.images)
    return (batch for each in fetched_ahead(train.stream(windows)) for batch in each.split(BATCH))


def loader(root: Path, read: int, cores: int) -> Iterator[Tensor]:
    images = torchvision.datasets.ImageFolder(
        str(root / "train"), transform=torchvision.transforms.PILToTensor()
    )
    chosen = Subset(images, torch.randperm(len(images))[:read].tolist())
    return (x for x, _ in DataLoader(chosen, BATCH, shuffle=True, num_workers=cores))


def web(shards: list[str], read: int, cores: int) -> Iterator[Tensor]:
    some = shards[: max(cores, read // A_SHARD)]
    images = webdataset.WebDataset(some, shardshuffle=len(some), empty_check=False)
    images = images.shuffle(1000).decode("pil").to_tuple("jpg")
    images = images.map_tuple(torchvision.transforms.PILToTensor()).batched(BATCH)
    return (x for (x,) in webdataset.WebLoader(images, batch_size=None, num_workers=cores))


def rate(batches: Iterator[Tensor]) -> tuple[float, float]:
    """Images a second between two windows' first batches, and seconds until the first batch."""
    started = time.perf_counter()
    arrivals = [time.perf_counter() - started for batch in batches if len(batch) == BATCH]
    first, last = WINDOW // BATCH, (len(arrivals) - 1) // (WINDOW // BATCH) * (WINDOW // BATCH)
    return (last - first) * BATCH / (arrivals[last] - arrivals[first]), arrivals[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--read", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if not (asked.folder / "train").exists():
        make_images(asked.folder, asked.images)
    shards, cores = make_shards(asked.folder), usable_cores()
    connect(None)
    torch.set_num_threads(1)
    ways: dict[str, Callable[[], Iterator[Tensor]]] = {
        "Ray Data tasks": lambda: ours(asked.folder, asked.read, by_tasks),
        "threads": lambda: ours(asked.folder, asked.read, by_threads),
        "DataLoader": lambda: loader(asked.folder, asked.read, cores),
        "WebDataset": lambda: web(shards, asked.read, cores),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(asked.rounds):
        for name in list(ways)[turn % len(ways) :] + list(ways)[: turn % len(ways)]:
            found, first = rate(iter(ways[name]()))
            rates[name].append(found)
            print(f"{name:<15} {found:7.0f} images/s, first batch after {first:.1f} s", flush=True)
    print(installed_versions(), f"webdataset {webdataset.__version__}, {cores} cores")
    medians = {name: statistics.median(found) for name, found in rates.items()}
    for name, median in medians.items():
        against = ", ".join(
            f"{median / medians[o]:.2f} x {o}" for o in ("DataLoader", "WebDataset")
        )
        print(f"{name:<15} {median:7.0f} images/s: {against}")
    ray.shutdown()


if __name__ == "__main__":
    main()
