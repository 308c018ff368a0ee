"""Shards on disk and through Ray Data, beside other layouts of the same vectors.

    uv run python tests/benchmarks/bench_shards.py [--models 1000] [--parameters 100000]
    uv run python tests/benchmarks/bench_shards.py stream [--shards 16]

``files``: write and read in GB/s of ``artifacts.shards`` (with a checksum a page, which is
verified; the others have none), of Parquet with lists and with fixed-size lists of floats (plain,
uncompressed, without statistics), and of ``torch.save``. ``stream``: seconds to the first batch,
and GB/s, of the shards through Ray Data to batches of tensors, beside a plain pyarrow loop that
makes the same batches with the same checks, and the growth of memory from 4 shards to as many as
are asked for.

Rounds are interleaved, medians told. Files are in the page cache and nothing waits for the disk:
what is measured is the layout. A JSON line a case.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import torch

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import listed_shards, read_population, shard_name, write_shard
from bend_ray.artifacts.store import Artifact, Store


def population(models: int, parameters: int, first: int = 0) -> Population:
    """Random vectors."""
    rows = np.arange(first, first + models)
    zeros = np.zeros(models)
    return Population(
        model_id=rows,
        trunk=zeros,
        fork=rows,
        step=zeros,
        seed=rows,
        held_out=zeros.astype(bool),
        val_accuracy=zeros,
        val_nll=zeros,
        fit_seconds=zeros,
        origin="trained",
        theta_KP=np.random.default_rng(first).standard_normal(
            (models, parameters), dtype=np.float32
        ),
        layout_digest="benchmrk",
    )


def committed(store: Store, shards: int, rows: int, parameters: int) -> Artifact:
    """A population of so many shards."""
    artifact = store.artifact("seeds", 1, {"shards": shards})
    for index in range(shards):
        write_shard(artifact, index, population(rows, parameters, index * rows))
    names = [shard_name(index) for index in range(shards)]
    return artifact.commit(files=names, metrics={}, cost=Cost(), rows=dict.fromkeys(names, rows))


def parquet(kind: str, theta_KP: np.ndarray, path: Path) -> None:
    """The vectors as Arrow lists."""
    flat = pa.array(theta_KP.reshape(-1))
    if kind == "lists":
        offsets = np.arange(len(theta_KP) + 1, dtype=np.int32) * theta_KP.shape[1]
        column = pa.ListArray.from_arrays(pa.array(offsets), flat)
    else:
        column = pa.FixedSizeListArray.from_arrays(flat, theta_KP.shape[1])
    pq.write_table(
        pa.table({"theta": column}),
        path,
        compression="NONE",
        use_dictionary=False,
        write_statistics=False,
        row_group_size=max(1, 2**24 // theta_KP.shape[1]),
    )


def from_parquet(path: Path) -> np.ndarray:
    """Back as ``(K, P)``."""
    column = pq.read_table(path, use_threads=False).column("theta").combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def compare_files(models: int, parameters: int, rounds: int) -> dict[str, object]:
    """GB/s of each layout, written and read."""
    given = population(models, parameters)
    theta_KP = given.theta_KP
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)

        artifact = committed(Store(folder), 1, models, parameters)

        def write_ours() -> None:
            write_shard(artifact, 0, given)

        def read_ours() -> np.ndarray:
            return read_population(artifact).theta_KP

        systems: dict[str, tuple[Callable[[], None], Callable[[], np.ndarray]]] = {
            "ours": (write_ours, read_ours),
            "lists": (
                lambda: parquet("lists", theta_KP, root / "lists"),
                lambda: from_parquet(root / "lists"),
            ),
            "fixed_size_lists": (
                lambda: parquet("fixed", theta_KP, root / "fixed"),
                lambda: from_parquet(root / "fixed"),
            ),
            "torch.save": (
                lambda: torch.save(torch.from_numpy(theta_KP), root / "torch"),
                lambda: torch.load(root / "torch", weights_only=True).numpy(),
            ),
        }
        taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in systems}
        for round_ in range(rounds + 1):
            for name, (write, read) in systems.items():
                started = time.perf_counter()
                write()
                written = time.perf_counter()
                found = read()
                ended = time.perf_counter()
                assert np.array_equal(found, theta_KP), name
                if round_:
                    taken[name][0].append(written - started)
                    taken[name][1].append(ended - written)
    gigabytes = theta_KP.nbytes / 1e9
    speeds = {
        name: [round(gigabytes / statistics.median(each), 2) for each in both]
        for name, both in taken.items()
    }
    ratios = {
        f"{how} ours/{name}": round(speeds["ours"][which] / speeds[name][which], 2)
        for which, how in enumerate(("write", "read"))
        for name in speeds
        if name != "ours"
    }
    return {"write_read_gb_s": speeds, "ratios": ratios}


def compare_streams(shards: int, models: int, parameters: int, rounds: int) -> dict[str, object]:
    """Ray Data beside a plain loop, over the same shards."""
    from bend_ray.process.environment import prepare_environment

    prepare_environment(None)
    import psutil
    import ray

    from bend_ray.config.resources import Resources
    from bend_ray.runtime import cluster
    from bend_ray.runtime.interface import from_vectors, vectors
    from bend_ray.runtime.nodes import Nodes
    from bend_ray.runtime.on_ray import dataset_of
    from bend_ray.stages.representations import _parts

    nodes = Nodes(cluster.connect(None))
    rows = max(1, models // shards)

    def through_ray(artifact: Artifact) -> tuple[float, float]:
        started = time.perf_counter()
        first = 0.0
        parts = _parts(artifact, lambda members: pa.table({"theta": vectors(members.theta_KP)}))
        batches = dataset_of(parts, Resources(), nodes).iter_batches(
            batch_size=rows, batch_format="pyarrow"
        )
        for batch in batches:
            torch.from_numpy(np.array(from_vectors(batch.column("theta"))))
            first = first or time.perf_counter() - started
        return first, time.perf_counter() - started

    def plain(artifact: Artifact) -> tuple[float, float]:
        started = time.perf_counter()
        first = 0.0
        paths = [artifact.child(shard.name) for shard in listed_shards(artifact)]
        checked = pa.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
        files = pa.dataset.dataset(
            paths, format=pa.dataset.ParquetFileFormat(default_fragment_scan_options=checked)
        )
        for batch in files.to_batches(batch_size=rows):
            cells = batch.column("theta_000")  # of at most 2**20 parameters
            start, size = (4 * parameters * each for each in (cells.offset, len(cells)))
            flat = np.frombuffer(cells.buffers()[1], "<f4", size // 4, start)
            torch.from_numpy(flat.reshape(-1, parameters).copy())
            first = first or time.perf_counter() - started
        return first, time.perf_counter() - started

    with tempfile.TemporaryDirectory() as folder:
        few, many = (committed(Store(folder), n, rows, parameters) for n in (4, shards))
        through_ray(few)  # workers start
        taken: dict[str, list[tuple[float, float]]] = {"ray_data": [], "pyarrow": []}
        for _ in range(rounds):
            for name, system in (("ray_data", through_ray), ("pyarrow", plain)):
                system(many)  # memory and caches are as the other left them
                taken[name].append(system(many))
        process = psutil.Process()
        grown = []
        for artifact in (few, many):
            before = process.memory_info().rss
            through_ray(artifact)
            grown.append(round((process.memory_info().rss - before) / 2**20, 1))
    ray.shutdown()
    gigabytes = shards * rows * parameters * 4 / 1e9
    medians = {
        name: [statistics.median(each) for each in zip(*both, strict=True)]
        for name, both in taken.items()
    }
    return {
        "shards": shards,
        "first_batch_s": {name: round(both[0], 3) for name, both in medians.items()},
        "gb_s": {name: round(gigabytes / both[1], 2) for name, both in medians.items()},
        "ratios": {"ray_data/pyarrow": round(medians["pyarrow"][1] / medians["ray_data"][1], 2)},
        "grown_mb_4_and_all_shards": grown,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("files", "stream"), default="files")
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    case = {"case": f"shards_{a.what}", "models": a.models, "parameters": a.parameters}
    if a.what == "files":
        found = compare_files(a.models, a.parameters, a.rounds)
    else:
        found = compare_streams(a.shards, a.models, a.parameters, a.rounds)
    print(json.dumps(case | found))


if __name__ == "__main__":
    main()
