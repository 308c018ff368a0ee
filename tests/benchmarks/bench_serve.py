"""Requests a second, latencies and memory of ``bend serve`` beside two plain ways to serve a bag.

    uv run python tests/benchmarks/bench_serve.py                           # 50 MLPs of digits
    uv run python tests/benchmarks/bench_serve.py --kind cnn --members 24   # CNNs of CIFAR's size
    uv run python tests/benchmarks/bench_serve.py --soak 10                 # a kill every minute

Systems: ``ours``; ``naive``, one Ray Serve deployment a member and one that asks them all;
``fastapi``, one FastAPI process with a Python loop over torch modules. All answer the same JSON
with the same members; rounds of them are interleaved. Prints a JSON line a case, and at the end
the ratios of medians. Random weights: what they answer does not change how long it takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

SHAPES = {"mlp": (1, 8, 8), "cnn": (3, 32, 32)}


def make_bag(folder: Path, kind: str, members: int, seed: int = 0) -> None:
    """Export a bag of random members."""
    import torch

    from bend_ray.data.examples import Decoding
    from bend_ray.export.card import Card, Input
    from bend_ray.export.folder import publish_bag
    from bend_ray.networks.architectures import ConvNet, Mlp

    architecture = Mlp() if kind == "mlp" else ConvNet()
    shape = SHAPES[kind]
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    states = [architecture.build(shape, 10).state_dict() for _ in range(members)]
    names = [name for name, tensor in states[0].items() if tensor.is_floating_point()]
    card = Card(
        model_version=f"{kind}-{members}-{seed}",
        created="now",
        bend_ray="benchmark",
        architecture=architecture,
        inputs={
            "images": Input(
                shape=shape, dtype="uint8", mean=(120.0,) * shape[0], std=(60.0,) * shape[0]
            )
        },
        decoding=Decoding(),
        class_names=tuple("0123456789"),
        vote={"kind": "soft"},
        members=tuple(range(members)),
        weights=(1 / members,) * members,
    )
    publish_bag(folder, card, {name: torch.stack([s[name] for s in states]) for name in names})


def load_modules(folder: Path) -> tuple[list[Any], Any]:
    """The members as torch modules, and what normalises their images."""
    import torch
    from safetensors.torch import load_file

    from bend_ray.export.card import read_card

    torch.set_num_threads(1)
    card, state_K = read_card(folder), load_file(folder / "members.safetensors")
    own = card.inputs["images"]
    mean, std = (torch.tensor(each).reshape(-1, 1, 1) for each in (own.mean, own.std))
    modules = []
    for k in range(len(card.members)):
        module = card.architecture.build(card.input_shape, len(card.class_names)).eval()
        module.load_state_dict({name: t[k] for name, t in state_K.items()}, strict=False)
        modules.append(module)
    return modules, lambda pixels: (torch.tensor(pixels, dtype=torch.float32)[None] - mean) / std


def fastapi_main(folder: str, port: int) -> None:
    """System ``fastapi``: one process, a loop over the members."""
    import torch
    import uvicorn
    from fastapi import FastAPI

    modules, normalise = load_modules(Path(folder))
    app = FastAPI()

    @app.post("/predict")
    def predict(body: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            inputs = normalise(body["instances"][0])
            probs = sum(module(inputs).softmax(-1) for module in modules) / len(modules)
        return {"label": str(int(probs.argmax())), "probabilities": probs[0].tolist()}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def naive_application(folder: Path, members: int) -> Any:
    """System ``naive``: one deployment a member, and one that asks them all."""
    from ray import serve

    class Member:
        def __init__(self, index: int) -> None:
            import torch

            self.torch = torch
            modules, self.normalise = load_modules(folder)
            self.module = modules[index]

        def __call__(self, pixels: list[Any]) -> list[float]:
            with self.torch.no_grad():
                return self.module(self.normalise(pixels)).softmax(-1)[0].tolist()

    class Gateway:
        def __init__(self, *handles: Any) -> None:
            self.handles = handles

        async def __call__(self, request: Any) -> dict[str, Any]:
            pixels = (await request.json())["instances"][0]
            probs = await asyncio.gather(*(handle.remote(pixels) for handle in self.handles))
            mean = np.mean(probs, axis=0)
            return {"label": str(int(mean.argmax())), "probabilities": mean.tolist()}

    light = {"num_cpus": 0.01}
    own = [
        serve.deployment(
            Member, name=f"Member{k}", ray_actor_options=light, max_ongoing_requests=256
        ).bind(k)
        for k in range(members)
    ]
    gateway = serve.deployment(
        Gateway, name="Gateway", ray_actor_options=light, max_ongoing_requests=256
    )
    return gateway.bind(*own)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def load(url: str, body: bytes, concurrency: int, seconds: float) -> dict[str, Any]:
    """Ask ``url`` from so many clients for so long."""
    taken: list[float] = []
    statuses: dict[str, int] = {}
    ending = time.perf_counter() + seconds
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client() -> None:
            while (started := time.perf_counter()) < ending:
                try:
                    async with session.post(url, data=body, headers=headers) as response:
                        await response.read()
                        status = str(response.status)
                except aiohttp.ClientError as error:
                    status = type(error).__name__
                statuses[status] = statuses.get(status, 0) + 1
                if status == "200":
                    taken.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(concurrency)))
        wall = time.perf_counter() - started
    cuts = np.percentile(taken, [50, 95, 99]) * 1000 if taken else [float("nan")] * 3
    p50, p95, p99 = (round(float(cut), 2) for cut in cuts)
    rate = round(len(taken) / wall, 1)
    return {"rps": rate, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "statuses": statuses}


def load_in_process(url: str, body: bytes, concurrency: int, seconds: float) -> dict[str, Any]:
    """``load`` in a process of its own, so that it shares no interpreter with what it measures."""
    command = [sys.executable, __file__, "--load", url, str(concurrency), str(seconds)]
    done = subprocess.run(command, input=body, capture_output=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def memory_mib(name: str) -> float:
    """Memory of our descendants of which the command line holds ``name``, shared pages once."""
    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                total += child.memory_full_info().uss
        except psutil.Error:
            continue
    return round(total / 2**20, 1)


def start_ray(port: int) -> Any:
    from bend_ray.process.environment import prepare_environment

    prepare_environment(None)
    from ray import serve

    from bend_ray.runtime import cluster

    cluster.connect(None)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    options = {"host": "127.0.0.1", "port": port}
    serve.start(proxy_location="HeadOnly", http_options=options, logging_config=quiet)
    return serve


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Rounds of every system at every concurrency, interleaved."""
    from bend_ray.serve.deployment import application

    port = free_port()
    on_ray = {"ours", "naive"} & set(arguments.systems)
    serve = start_ray(port) if on_ray else None
    urls, memory = {}, {}
    if "ours" in arguments.systems:
        serve.run(application({"export": str(folder)}), name="ours", route_prefix="/ours")
        urls["ours"] = f"http://127.0.0.1:{port}/ours/predict"
        memory["ours"] = memory_mib("ServeReplica:ours")
    if "naive" in arguments.systems:
        naive = naive_application(folder, arguments.members)
        serve.run(naive, name="naive", route_prefix="/naive")
        urls["naive"] = f"http://127.0.0.1:{port}/naive"
        memory["naive"] = memory_mib("ServeReplica:naive")
    processes = []
    commands = {
        "direct": ["-m", "bend_ray", "serve", "--direct", "--export", str(folder), "--port"],
        "fastapi": [__file__, "--fastapi", str(folder)],
    }
    for system in sorted(set(commands) & set(arguments.systems)):
        own_port = free_port()
        processes.append(subprocess.Popen([sys.executable, *commands[system], str(own_port)]))
        urls[system] = f"http://127.0.0.1:{own_port}/predict"
        wait_for(own_port)
        memory[system] = memory_mib(str(own_port))
    shape = SHAPES[arguments.kind]
    pixels = np.random.default_rng(0).integers(0, 256, shape).tolist()
    body = json.dumps({"instances": [pixels]}).encode()
    rates: dict[tuple[str, int], list[float]] = {}
    try:
        for url in urls.values():
            load_in_process(url, body, 4, 1.0)
        for concurrency in arguments.concurrency:
            for turn in range(arguments.rounds):
                for system, url in urls.items():
                    said = load_in_process(url, body, concurrency, arguments.seconds)
                    rates.setdefault((system, concurrency), []).append(said["rps"])
                    case = {"system": system, "concurrency": concurrency, "round": turn}
                    report(case | said | {"memory_mib": memory[system]}, arguments)
    finally:
        for process in processes:
            process.terminate()
        if serve is not None:
            serve.shutdown()
    for concurrency in arguments.concurrency:
        medians = {system: statistics.median(rates[system, concurrency]) for system in urls}
        ratios = {
            f"{own}_over_{system}": round(medians[own] / medians[system], 2)
            for own in {"ours", "direct"} & set(urls)
            for system in urls
            if system != own and medians[system]
        }
        report({"concurrency": concurrency, "median_rps": medians} | ratios, arguments)


def soak(arguments: argparse.Namespace, folder: Path) -> None:
    """Load on two replicas, with all that may come: kills, hot swaps and slow peers, at once."""
    from bend_ray.serve import door
    from bend_ray.serve.bag import Bag
    from bend_ray.serve.deployment import application
    from bend_ray.serve.listening import Listening
    from bend_ray.serve.settings import ServeSettings

    port = free_port()
    other = folder / "other"
    make_bag(other, arguments.kind, arguments.members, seed=1)
    pixels = np.full((1, *SHAPES[arguments.kind]), 7)
    expected = {}
    for each in (folder, other):
        bag = Bag.load(each)
        expected[bag.card.model_version] = bag.predict_proba(pixels)[0]
    door.put_up(ServeSettings(), Listening("127.0.0.1", port))
    serve = start_ray(port)
    done = dict.fromkeys(("kills", "swaps", "slow_peers"), 0)
    ended = threading.Event()

    def deploy(export: Path) -> None:
        args = {"export": str(export), "min_replicas": 2, "max_replicas": 2, "cpus": 0.5}
        serve.run(application(args), name="ours", route_prefix="/")

    def killer() -> None:
        while not ended.wait(arguments.kill_seconds):
            for child in psutil.Process().children(recursive=True):
                if "ServeReplica:ours" in " ".join(child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)
                    done["kills"] += 1
                    break

    def swapper() -> None:
        while not ended.wait(arguments.kill_seconds * 0.7):
            done["swaps"] += 1
            deploy(other if done["swaps"] % 2 else folder)

    def slow_peer() -> None:
        while not ended.is_set():
            with socket.create_connection(("127.0.0.1", port), 10) as connection:
                done["slow_peers"] += 1
                try:
                    for byte in b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n":
                        connection.send(bytes([byte]))
                        if ended.wait(0.5):
                            break
                except OSError:  # it was told to go
                    continue

    deploy(folder)
    threads = [threading.Thread(target=each) for each in (killer, swapper, *[slow_peer] * 50)]
    for thread in threads:
        thread.start()
    body = json.dumps({"instances": pixels.tolist()}).encode()
    url = f"http://127.0.0.1:{port}/predict"
    try:
        answers = asyncio.run(_ask_steadily(url, body, arguments.soak * 60, expected))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
        serve.shutdown()
    report({"soak_minutes": arguments.soak} | done | answers, arguments)


async def _ask_steadily(
    url: str, body: bytes, seconds: float, expected: dict[str, Any]
) -> dict[str, Any]:
    """Sixteen clients; every answer of 200 is compared with the bag's own, to float32's 1e-5."""
    statuses: dict[str, int] = {}
    versions: dict[str, int] = {}
    wrong = 0
    ending = time.perf_counter() + seconds
    async with aiohttp.ClientSession() as session:

        async def client() -> None:
            nonlocal wrong
            while time.perf_counter() < ending:
                try:
                    headers = {"Content-Type": "application/json"}
                    async with session.post(url, data=body, headers=headers) as response:
                        text, status = await response.read(), str(response.status)
                    if status == "200":
                        (said,) = json.loads(text)["predictions"]
                        version = said["model_version"]
                        versions[version] = versions.get(version, 0) + 1
                        own = list(said["probabilities"].values())
                        wrong += not np.allclose(own, expected[version], rtol=0, atol=1e-5)
                    elif status in ("503", "500"):
                        await asyncio.sleep(0.2)
                except aiohttp.ClientError as error:
                    status = type(error).__name__
                statuses[status] = statuses.get(status, 0) + 1

        await asyncio.gather(*(client() for _ in range(16)))
    return {"statuses": statuses, "by_version": versions, "wrong": wrong}


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("FastAPI did not start")


def report(said: dict[str, Any], arguments: argparse.Namespace) -> None:
    print(json.dumps({"kind": arguments.kind, "members": arguments.members} | said), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--fastapi"]:
        fastapi_main(sys.argv[2], int(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--load"]:
        body = sys.stdin.buffer.read()
        said = asyncio.run(load(sys.argv[2], body, int(sys.argv[3]), float(sys.argv[4])))
        print(json.dumps(said))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kind", choices=sorted(SHAPES), default="mlp")
    parser.add_argument("--members", type=int, default=50)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", default=["ours", "naive", "fastapi"])
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES")
    parser.add_argument("--kill-seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        make_bag(Path(scratch), arguments.kind, arguments.members)
        (soak if arguments.soak else compare)(arguments, Path(scratch))


if __name__ == "__main__":
    main()
