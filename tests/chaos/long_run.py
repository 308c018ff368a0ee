"""Pipelines in a row on one cluster, and what they leave behind: it should be nothing.

    uv run python tests/chaos/long_run.py own --pipelines 24 --hours 1.5
    uv run python tests/chaos/long_run.py joined --pipelines 6 --hours 0.5

``own``: one process runs them all, as ``bend run --repeats`` does, with a cluster of its own. What
it leaks would show in this process. ``joined``: commands that join a cluster one after another, and
Ray's workers train. Writes a JSON line after each pipeline, and prints some of them as a table.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

CONFIG = """
seeds:
  recipe: {epochs: 3, optimizer: {learning_rate: 0.003}}
  protocol: {kind: forks, trunks: 2, forks: 4, trunk_fraction: 0.2}
  cohort_size: 4
autoencoder:
  model: {latent_size: 4, hidden: 16}
  training: {steps: 60, batch_size: 8, checkpoint_every: 30}
generator:
  denoiser: {hidden: 16, blocks: 1}
  training: {steps: 60, batch_size: 8, checkpoint_every: 30}
samples: {count: 4, shard_size: 2}
evaluation:
  rivals: [{kind: originals_bag}, {kind: deep_ensemble}, {kind: gaussian}]
"""
KINDS = ("gcs_server", "raylet/raylet", "dashboard.py", "DashboardAgent", "RuntimeEnvAgent",
         "log_monitor", "monitor.py")  # fmt: skip
SETTLE_SECONDS = 8.0
"""Ray keeps idle workers for a while, and hears late of the end of a job."""
MIB = 2**20


def _folder() -> Path:
    """Where everything of the run is; temporary files of all its processes too."""
    # Short: the paths of Ray's sockets below it may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="bl"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@contextmanager
def own(folder: Path) -> Iterator[tuple[str, Any]]:
    """A cluster of this process, which runs pipelines itself."""
    from bend_ray.process.environment import prepare_environment

    prepare_environment(None)
    import ray

    from bend_ray import pipeline
    from bend_ray.config.reading import load_config
    from bend_ray.runtime.cluster import connect

    connect(None)

    def run(seed: int) -> None:
        config = load_config(folder / "config.yaml", [f"seed={seed}"])
        pipeline.run(config, str(folder / "store"))

    yield ray.get_runtime_context().gcs_address, run
    ray.shutdown()


@contextmanager
def joined(folder: Path) -> Iterator[tuple[str, Any]]:
    """A cluster of two nodes that commands join."""
    from nodes import Nodes

    with Nodes(count=1) as nodes:
        command = [sys.executable, "-m", "bend_ray", "run", str(folder / "config.yaml")]
        command += ["--store", str(folder / "store"), "--address", nodes.address]

        def run(seed: int) -> None:
            done = subprocess.run(
                [*command, "--set", f"seed={seed}"], capture_output=True, text=True
            )
            if done.returncode != 0:
                raise SystemExit(f"seed {seed} ended with {done.returncode}: {done.stderr[-2000:]}")

        yield nodes.address, run


def measured(address: str, folder: Path) -> dict[str, Any]:
    """What cluster, processes, folder and store hold."""
    from nodes import living_actors, object_stores, placement_groups

    me = psutil.Process()
    told: dict[str, Any] = {
        "actors": len(living_actors(address)),
        "placement groups": placement_groups(address),
        **object_stores(address),
        "handles of this process": me.num_fds(),
        "threads of this process": me.num_threads(),
        "MiB of this process": me.memory_info().rss // MIB,
    }
    told |= _of_processes(me.children(recursive=True))
    files = [path for path in folder.rglob("*") if path.is_file()]
    logs = [path for path in files if "logs" in path.parts]
    store = [path for path in files if (folder / "store") in path.parents]
    unfinished = [
        p for p in store if p.suffix == ".tmp" or p.name in ("lease.json", "progress.json")
    ]
    told["temporary files"] = len(files) - len(logs) - len(store)
    told["log files"] = len(logs)
    told["unfinished files in the store"] = len(unfinished)
    told["files in shared memory"] = sum(1 for _ in Path("/dev/shm").iterdir())
    return told


def _of_processes(processes: list[psutil.Process]) -> dict[str, Any]:
    handles: dict[str, int] = defaultdict(int)
    mib: dict[str, int] = defaultdict(int)
    zombies = 0
    for process in processes:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                zombies += 1
                continue
            line = " ".join(process.cmdline())
            kind = next((kind for kind in KINDS if kind in line), "workers and others")
            handles[kind] += process.num_fds()
            mib[kind] += process.memory_info().rss // MIB
        except psutil.Error:
            continue
    told = {f"handles of {kind}": count for kind, count in sorted(handles.items())}
    told |= {f"MiB of {kind}": count for kind, count in sorted(mib.items())}
    return {"processes": len(processes), "zombies": zombies} | told


def summary(records: list[dict[str, Any]]) -> str:
    """A line a figure: before any pipeline, after the first, in the middle and at the end."""
    shown = [records[0], records[1], records[len(records) // 2], records[-1]]
    lines = [f"{'pipelines':<34}" + "".join(f"{each['pipelines']:>14}" for each in shown)]
    names = [name for name in records[-1] if name != "pipelines"]
    rows = ((name, [str(each.get(name, "-")) for each in shown]) for name in names)
    lines += [f"{name:<34}" + "".join(f"{value:>14}" for value in row) for name, row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["own", "joined"])
    parser.add_argument("--pipelines", type=int, default=24)
    parser.add_argument("--hours", type=float, default=0.0, help="that the whole is spread over")
    parser.add_argument("--output", type=Path, default=Path("long-run.jsonl"))
    said = parser.parse_args()
    folder, started, records = _folder(), time.monotonic(), []
    with (
        {"own": own, "joined": joined}[said.mode](folder) as (address, run),
        said.output.open("w") as stream,
    ):
        for count in range(said.pipelines + 1):
            due = (count - 1) * said.hours * 3600 / said.pipelines
            time.sleep(max(0.0, due - (time.monotonic() - started)))
            if count:
                run(1000 + count)
                # Ray Data's results are cycles: what waits for Python to collect it is no leak.
                gc.collect()
                time.sleep(SETTLE_SECONDS)
            minutes = round((time.monotonic() - started) / 60, 1)
            record = {"pipelines": count, "minutes": minutes} | measured(address, folder)
            records.append(record)
            print(json.dumps(record), file=stream, flush=True)
    print(summary(records))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
