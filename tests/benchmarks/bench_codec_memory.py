"""Memory of the two autoencoders' codecs, from small networks to ViT-B/16.

    uv run python tests/benchmarks/bench_codec_memory.py published    # against the papers' Conv1d
    uv run python tests/benchmarks/bench_codec_memory.py large        # ResNet-18, ViT-B/16 on Ray

``published``: peak memory of a process that fits the codec, the papers' 1-D convolutions and ours,
each in a process of its own. ``large``: synthetic checkpoints are written as a population, the
codec is fitted on it by Ray Data and 16 models are decoded into shards as the samples stage does;
peak memory of every process on the way, and how exactly training models come back. A JSON line a
case.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from bend_ray.process.environment import prepare_environment

prepare_environment(None)  # before ray is imported
import ray

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import read_columns, write_shard
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.generation.models import Conv1d, PrincipalMlp
from bend_ray.generation.training import Reconstruction
from bend_ray.networks.architectures import TorchvisionModel
from bend_ray.parameters.features import PrincipalBasis, gram, gram_sums
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.populations.members import LAYOUT
from bend_ray.process.matrix import BLOCK_BYTES
from bend_ray.runtime import cluster
from bend_ray.runtime.interface import split
from bend_ray.runtime.on_ray import RayRuntime
from bend_ray.stages.representations import Principal
from bend_ray.stages.samples import SHARD_BYTES

MODELS, BATCH, DRAWN = 48, 8, 16
SIZES = (2_000, 30_000, 100_000, 300_000)
CASES = {"resnet18": (TorchvisionModel(name="resnet18", small_images=True), (3, 32, 32), 48),
         "vit_b_16": (TorchvisionModel(name="vit_b_16"), (3, 224, 224), 16)}  # fmt: skip


def _train_step(module: torch.nn.Module, features_BF: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = {"features": features_BF, "condition": torch.zeros(len(features_BF)).long()}
    module(batch | module.draw(features_BF.shape, generator)).backward()


def fit_published(size: int) -> None:
    """One training step of the papers' autoencoder on a batch of vectors."""
    spec = Conv1d()
    features = torch.randn(BATCH, size)
    module = Reconstruction(spec.build(size), spec.latent_size, spec.input_noise, spec.latent_noise)
    _train_step(module, features)


def fit_ours(size: int) -> None:
    """The Gram matrix, the coefficients, and a training step on all of them."""
    theta_KP = torch.randn(MODELS, size)
    layout = ParameterLayout.from_json([("all", [size], True)])
    train_K = torch.ones(MODELS, dtype=torch.bool)
    sums = gram_sums(layout, train_K, [theta_KP])
    _, coefficients_KR = PrincipalBasis.fit(gram([sums], layout, train_K), train_K)
    spec = PrincipalMlp(latent_size=MODELS - 8)
    module = Reconstruction(
        spec.build(coefficients_KR.shape[1]), spec.latent_size, spec.input_noise, spec.latent_noise
    )
    _train_step(module, coefficients_KR)


def _peak_of(work: Callable[[int], None], size: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    work(size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send({"extra_mb": (peak - before) / 2**10, "cpu_s": time.process_time() - started})


def published() -> None:
    """Both codecs at each size, in turn."""
    context = multiprocessing.get_context("spawn")
    for size in SIZES:
        case: dict[str, Any] = {"case": "published", "parameters": size, "batch": BATCH}
        for name, work in (("conv1d", fit_published), ("principal", fit_ours)):
            here, there = context.Pipe()
            process = context.Process(target=_peak_of, args=(work, size, there))
            process.start()
            there.close()
            try:
                case[name] = here.recv()
            except EOFError:
                case[name] = "out of memory"
            process.join()
        print(json.dumps(case | _machine()))


class PeakMemory:
    """The largest resident memory of this process and of every descendant, while it runs."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            me = psutil.Process()
            for process in [me, *me.children(recursive=True)]:
                try:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    name = f"{process.name()[:24]} {process.pid}"
                except (OSError, psutil.Error):
                    continue
                lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
                if "VmHWM" in lines:
                    self.peaks[name] = int(lines["VmHWM"].split()[0]) / 2**20


def synthetic_population(store: Store, layout: ParameterLayout, count: int) -> Artifact:
    """Checkpoints around a common mean, one shard each two, committed as seeds."""
    artifact = store.artifact("seeds", 1, {"synthetic": layout.digest, "models": count})
    mean_P = 0.05 * np.random.default_rng(0).standard_normal(layout.size, dtype=np.float32)
    shards = split(range(count), 2)
    rows = {}
    for index, ids in enumerate(shards):
        theta = np.stack([
            mean_P + 0.01 * np.random.default_rng(1 + i).standard_normal(layout.size, np.float32)
            for i in ids
        ])  # fmt: skip
        rows[write_shard(artifact, index, _population(list(ids), theta, layout))] = len(ids)
    artifact.write_json(LAYOUT, layout.to_json())
    artifact.commit(files=[LAYOUT, *rows], rows=rows, metrics={}, cost=Cost())
    return artifact


def _population(ids: list[int], theta_KP: np.ndarray, layout: ParameterLayout) -> Population:
    zeros = np.zeros(len(ids))
    return Population(
        model_id=np.array(ids), trunk=zeros, fork=np.array(ids), step=zeros, seed=zeros,
        held_out=zeros.astype(bool), val_accuracy=zeros, val_nll=zeros, fit_seconds=zeros,
        origin="trained", theta_KP=theta_KP, layout_digest=layout.digest,
    )  # fmt: skip


def decode_shard(
    representation: Principal, seeds: Artifact, into: Artifact, index: int, ids: list[int]
) -> str:
    """A task: the training models ``ids`` from their coefficients, written as a shard."""
    theta_NP = representation.decoder(seeds)(representation.coefficients_KF[ids])
    layout = ParameterLayout.from_json(seeds.read_json(LAYOUT))
    return write_shard(into, index, _population(ids, theta_NP.numpy(), layout))


def _relative_error(seeds: Artifact, decoded: Artifact, layout: ParameterLayout) -> float:
    """Largest over the models: norm of what is lost over norm of the model."""
    width = 2**18
    lost, norm = np.zeros(DRAWN), np.zeros(DRAWN)
    for start in range(0, layout.size, width):
        stop = min(start + width, layout.size)
        original = read_columns(seeds, start, stop)[:DRAWN].astype(np.float64)
        back = read_columns(decoded, start, stop)
        lost += np.square(back - original).sum(axis=1)
        norm += np.square(original).sum(axis=1)
    return float(np.sqrt(lost / norm).max())


def large(names: list[str]) -> None:
    """Fit and decode on Ray, for each network."""
    with PeakMemory() as memory:
        runtime = RayRuntime(cluster.connect(None))
        for name in names:
            architecture, input_shape, count = CASES[name]
            layout = ParameterLayout.of(architecture.build(input_shape, 10))
            folder = tempfile.mkdtemp(prefix="codec")
            store = Store(folder)
            try:
                seeds = synthetic_population(store, layout, count)
                memory.peaks.clear()
                started = time.perf_counter()
                state, cost = Principal.fit(seeds, runtime)
                representation = Principal(state)
                fitted = time.perf_counter()
                decoded = store.artifact("samples", 1, {}, [seeds])
                shards = split(range(DRAWN), max(1, SHARD_BYTES // (4 * layout.size)))
                decode = ray.remote(num_cpus=1)(decode_shard)
                shared = ray.put(representation)
                tasks = [decode.remote(shared, seeds, decoded, i, list(ids))
                         for i, ids in enumerate(shards)]  # fmt: skip
                rows = {n: len(s) for n, s in zip(ray.get(tasks), shards, strict=True)}
                decoded.commit(files=[*rows], rows=rows, metrics={}, cost=Cost())
                case = {
                    "case": name,
                    "parameters": layout.size,
                    "models": count,
                    "shards_gb": 4 * layout.size * count / 1e9,
                    "block_mb": BLOCK_BYTES / 2**20,
                    "fit_s": fitted - started,
                    "fit_cpu_s": cost.cpu_seconds,
                    "decode_16_s": time.perf_counter() - fitted,
                    "peak_gb": max(memory.peaks.values()),
                    "peaks_gb": dict(sorted(memory.peaks.items(), key=lambda p: -p[1])[:5]),
                    "relative_error": _relative_error(seeds, decoded, layout),
                }
                print(json.dumps(case | _machine()))
            finally:
                shutil.rmtree(folder)
        ray.shutdown()


def _machine() -> dict[str, Any]:
    return {
        "cores": psutil.cpu_count(),
        "torch": torch.__version__,
        "ray": ray.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["published", "large"])
    parser.add_argument("--networks", nargs="+", choices=list(CASES), default=list(CASES))
    arguments = parser.parse_args()
    if arguments.what == "published":
        published()
    else:
        large(arguments.networks)
