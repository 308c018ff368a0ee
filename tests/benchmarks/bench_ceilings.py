"""What the hardware and its kernels allow: the largest ratios that any program could reach here.

    uv run --group bench python tests/benchmarks/bench_ceilings.py training [--network lenet]
    uv run --group bench python tests/benchmarks/bench_ceilings.py asking [--batch 1 32]
    uv run --group bench python tests/benchmarks/bench_ceilings.py shards [--models 1000]

``training``: GFLOP/s of one by one and of ours (``bench_fitting``), as shares of the fastest
product of two matrices, and beside them the same networks' layers alone, each forward and
backward, again and again on inputs of its shape in the order of ``networks.stacking``: of the
convolutions and dense layers, and of all layers. Neither has an optimizer, a loss, batches or
Python in it. ``largest_ratio``: one by one over them. ``asking``: the bag's ONNX graph, and the
time that its own profile gives to convolutions and products, beside a loop over torch modules.
``shards``: our shards and Parquet lists beside ``write`` of the same bytes, its ``fsync``, a copy
in memory and a checksum. ``largest_ratio``: lists over a plain write.

CPU time, one thread, systems interleaved, medians (``fsync``: wall time). A JSON line a case.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from bench_asking import bag_of, onnx_systems
from bench_fitting import BATCH, NETWORKS, Task, normalise, one_by_one, ours
from bench_shards import committed, parquet, population
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bend_ray.artifacts.shards import write_shard
from bend_ray.artifacts.store import Store
from bend_ray.export.graphs import bag_program
from bend_ray.networks.dense import leaves
from bend_ray.networks.stacking import by_pixel

PRODUCTS = (nn.Conv2d, nn.Linear)


def race(systems: dict[str, Callable[[], object]], rounds: int, burst: float) -> dict[str, float]:
    """Median CPU seconds a call of each, in interleaved bursts of at least so many seconds."""
    taken: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, system in systems.items():
            system()  # the caches are full of the system before
            calls, started = 0, time.process_time()
            while calls == 0 or time.process_time() - started < burst:
                system()
                calls += 1
            taken[name].append((time.process_time() - started) / calls)
    return {name: statistics.median(each) for name, each in taken.items()}


def product() -> Callable[[], object]:
    """Of two matrices, the shape with the most FLOPs a second that a CPU gives."""
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return lambda: left @ right


def layers_alone(
    task: Task, batch: int, backward: bool
) -> tuple[dict[str, Callable[[], object]], set[str]]:
    """Every layer of a network, run on an input of its shape; those that are products."""
    values = by_pixel(task.inputs[:batch])
    steps: dict[str, Callable[[], object]] = {}
    products = set()
    for index, (path, layer) in enumerate(leaves(task.build().train(backward))):
        given = values.detach().requires_grad_(backward and index > 0)
        values = layer(given)
        wanted = [given] if given.requires_grad else []
        wanted += layer.parameters()
        gradient = torch.randn_like(values)

        def step(
            layer: nn.Module = layer,
            given: Tensor = given,
            wanted: list[Tensor] = wanted,
            gradient: Tensor = gradient,
        ) -> None:
            answer = layer(given)
            if backward and wanted:
                torch.autograd.grad(answer, wanted, gradient)

        steps[path] = step
        if isinstance(layer, PRODUCTS):
            products.add(path)
    return steps, products


def training(network: str, rounds: int) -> dict[str, object]:
    """Seconds a model's step, and what they are of the peak."""
    task = Task(network)
    module = task.build()
    with FlopCounterMode(display=False) as counter:
        module(task.inputs[:BATCH]).sum().backward()
    flops = counter.get_total_flops()
    steps, products = layers_alone(task, BATCH, backward=True)
    whole = {
        "one_by_one": lambda: one_by_one(task, 1),
        "ours": lambda: ours(task, 1),
    }
    took = race({"matrices": product(), **whole, **steps}, rounds, 0.05)
    peak = 2 * 1024**3 / took["matrices"]
    seconds = {name: took[name] / task.num_steps for name in whole}
    seconds["products_alone"] = sum(took[path] for path in products)
    seconds["layers_alone"] = sum(took[path] for path in steps)
    return {
        "network": network,
        "gflop_a_step": round(flops / 1e9, 3),
        "gflop_s": {
            "matrices": round(peak / 1e9, 1),
            **{name: round(flops / each / 1e9, 1) for name, each in seconds.items()},
        },
        "share_of_matrices": {
            name: round(flops / each / peak, 2) for name, each in seconds.items()
        },
        "cpu_ms_a_step": {name: round(1e3 * each, 2) for name, each in seconds.items()},
        "ours_over_one_by_one": round(seconds["one_by_one"] / seconds["ours"], 2),
        "largest_ratio": {
            name: round(seconds["one_by_one"] / seconds[name], 2)
            for name in ("products_alone", "layers_alone")
        },
    }


def share_of_products(modules: list[nn.Module], network: str, pixels: np.ndarray) -> float:
    """Of the time that ONNX Runtime's own profile gives to the operators of a bag's graph."""
    given, member, state_K = bag_of(modules, network)
    program = bag_program(given, member, state_K, "unrolled")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(program.SerializeToString(), options)
        for _ in range(30):
            session.run(None, {session.get_inputs()[0].name: pixels})
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[bool] = Counter()
    for event in events:
        if event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            spent[operator in ("Conv", "FusedConv", "Gemm", "FusedGemm")] += event["dur"]
    return spent[True] / spent.total()


def asking(network: str, members: int, batch: int, rounds: int) -> dict[str, object]:
    """Milliseconds a call of the loop, of the bag and of its products."""
    build, (_, *shape), _ = NETWORKS[network]
    modules = [build().eval() for _ in range(members)]
    pixels = np.random.default_rng(0).integers(256, size=(batch, *shape), dtype=np.uint8)
    graphs, _ = onnx_systems(modules, network)
    share = share_of_products(modules, network, pixels)
    steps, products = layers_alone(Task(network), batch, backward=False)

    def loop() -> Tensor:
        inputs = normalise(torch.from_numpy(pixels))
        return torch.stack([module(inputs) for module in modules]).softmax(dim=-1).mean(dim=0)

    with torch.inference_mode():
        took = race(
            {
                "loop": loop,
                "graph": lambda: graphs["onnx_unrolled"](pixels),
                "auto": lambda: graphs["auto"](pixels),
            }
            | {path: steps[path] for path in products},
            rounds,
            0.02,
        )
    seconds = {name: took[name] for name in ("loop", "auto", "graph")}
    seconds["graph_products"] = share * took["graph"]
    seconds["torch_products_alone"] = members * sum(took[path] for path in products)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        modules[0](normalise(torch.from_numpy(pixels)))
    flops = members * counter.get_total_flops()
    return {
        "network": network,
        "members": members,
        "batch": batch,
        "cpu_ms": {name: round(1e3 * each, 3) for name, each in seconds.items()},
        "gflop_s": {name: round(flops / each / 1e9, 1) for name, each in seconds.items()},
        "products_share_of_graph": round(share, 2),
        "loop_over_auto": round(seconds["loop"] / seconds["auto"], 2),
        "largest_ratio": {
            name: round(seconds["loop"] / seconds[name], 2)
            for name in ("graph_products", "torch_products_alone")
        },
    }


def shards(models: int, parameters: int, rounds: int) -> dict[str, object]:
    """GB/s of what a shard's writing is made of."""
    given = population(models, parameters)
    theta_KP = given.theta_KP
    content, target = memoryview(theta_KP).cast("B"), np.empty_like(theta_KP)
    with tempfile.TemporaryDirectory() as folder:
        artifact = committed(Store(folder), 1, models, parameters)

        def plain() -> None:
            with Path(folder, "plain").open("wb", buffering=0) as file:
                for start in range(0, len(content), 2**18):
                    file.write(content[start : start + 2**18])

        took = race(
            {
                "copy": lambda: np.copyto(target, theta_KP),
                "checksum": lambda: zlib.crc32(content),
                "write": plain,
                "ours": lambda: write_shard(artifact, 0, given),
                "lists": lambda: parquet("lists", theta_KP, Path(folder, "lists")),
            },
            rounds,
            0.05,
        )
        synced = []
        for _ in range(rounds):
            started = time.perf_counter()
            plain()
            with Path(folder, "plain").open("rb") as file:
                os.fsync(file.fileno())
            synced.append(time.perf_counter() - started)
    took["write_and_fsync"] = statistics.median(synced)
    return {
        "models": models,
        "parameters": parameters,
        "gb_s": {name: round(theta_KP.nbytes / 1e9 / each, 2) for name, each in took.items()},
        "ours_over_lists": round(took["lists"] / took["ours"], 2),
        "largest_ratio": {
            "write": round(took["lists"] / took["write"], 2),
            "write_and_checksum": round(took["lists"] / (took["write"] + took["checksum"]), 2),
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("training", "asking", "shards"))
    parser.add_argument("--network", nargs="+", choices=NETWORKS)
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines: Iterator[dict[str, object]]
    if a.what == "training":
        networks = a.network or ["lenet", "cnn8_batch", "cnn8_group"]
        lines = (training(network, a.rounds) for network in networks)
    elif a.what == "asking":
        cells = [(network, batch) for network in a.network or ["lenet"] for batch in a.batch]
        lines = (asking(network, a.members, batch, a.rounds) for network, batch in cells)
    else:
        lines = iter([shards(a.models, a.parameters, a.rounds)])
    for line in lines:
        print(json.dumps({"case": f"ceilings_{a.what}"} | line), flush=True)


if __name__ == "__main__":
    main()
