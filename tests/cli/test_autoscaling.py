"""``bend run`` on a cluster whose nodes come when they are needed, and are taken away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from autoscaling import AutoscalingCluster
from bend_process import Bend, figures
from object_store import BUCKET, object_store

from bend_ray.config.graph import STAGES

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(900)]

NODE_TYPES = {
    "seeds": {"resources": {"CPU": 1, "GPU": 1}, "labels": {"pool": "seeds"}, "max_workers": 3},
    "others": {"resources": {"CPU": 2}, "labels": {"pool": "others"}, "max_workers": 1},
}
# More and longer than TINY: nodes take seconds to come.
LONGER = {"epochs": 40, "forks": 16, "cohort_size": 2}
# A node that is gone refuses to answer at once; one that is busy may take its time.
ENVIRONMENT = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "15000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "0",
}


def config(placed: bool) -> dict[str, Any]:
    """The same run, on this machine or with each stage on nodes of its own."""
    from process import TINY

    said: dict[str, Any] = yaml.safe_load(TINY)
    said["seeds"]["recipe"]["epochs"] = LONGER["epochs"]
    said["seeds"]["protocol"]["forks"] = LONGER["forks"]
    said["seeds"]["cohort_size"] = LONGER["cohort_size"]
    if placed:
        for stage in STAGES:
            said.setdefault(stage, {})["resources"] = {"labels": {"pool": "others"}}
        said["seeds"]["resources"] = {"gpus": 1, "labels": {"pool": "seeds"}}
    return said


class Watch:
    """How many nodes of each pool there were, by time; ends nodes when it is told."""

    def __init__(self, cluster: AutoscalingCluster) -> None:
        self.cluster = cluster
        self.seen: list[tuple[float, str, Counter[str]]] = []
        self.stage = ""
        self.kill_in: set[str] = set()
        self.killed: list[str] = []
        self._ready: Callable[[str], bool] = lambda stage: False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def during(self, ready: Callable[[str], bool]) -> None:
        """Start; a node of a stage in ``kill_in`` is ended as soon as ``ready`` says so."""
        self._ready = ready
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        started = time.monotonic()
        while not self._stop.wait(0.25):
            nodes = [node for node in ray.nodes() if node["Alive"]]
            pools = Counter(node["Labels"].get("pool", "head") for node in nodes)
            self.seen.append((time.monotonic() - started, self.stage, pools))
            pool = "seeds" if self.stage == "seeds" else "others"
            mine = [node for node in nodes if node["Labels"].get("pool") == pool]
            if self.stage in self.kill_in and mine and self._ready(self.stage):
                self.kill_in.discard(self.stage)
                self.killed.append(self.stage)
                self.cluster.kill_node(mine[0]["RayletSocketName"])

    def most(self, pool: str, stages: set[str]) -> int:
        return max((pools[pool] for _, stage, pools in self.seen if stage in stages), default=0)

    def least(self, pool: str, stages: set[str]) -> int:
        return min((pools[pool] for _, stage, pools in self.seen if stage in stages), default=0)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[AutoscalingCluster]:
    with object_store(monkeypatch):
        aws = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
        with AutoscalingCluster(NODE_TYPES, environment=ENVIRONMENT | aws) as made:
            ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
            yield made
            ray.shutdown()


def start(
    bend: Bend, cluster: AutoscalingCluster, said: Mapping[str, Any], log: Path, *more: str
) -> subprocess.Popen[str]:
    """``bend run`` as another process, on the cluster and a store that is no folder."""
    file = bend.folder / "placed.yaml"
    file.write_text(yaml.safe_dump(dict(said)))
    command = ["run", str(file), "--address", cluster.address, "--json", "-", *more]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") or "AUTH" in k}
    # Files, not pipes, which nobody reads while a node is ended.
    with log.open("w") as stream, log.with_suffix(".json").open("w") as result:
        return subprocess.Popen(
            [sys.executable, "-m", "bend_ray", *command, "--store", f"s3://{BUCKET}/runs"],
            stdout=result,
            stderr=stream,
            text=True,
            cwd=bend.folder,
            env=environment,
        )


def shards(stage: str) -> int:
    import pyarrow.fs

    filesystem, path = pyarrow.fs.FileSystem.from_uri(f"s3://{BUCKET}/runs/{stage}")
    selector = pyarrow.fs.FileSelector(path, recursive=True, allow_not_found=True)
    return sum(info.path.endswith(".parquet") for info in filesystem.get_file_info(selector))


def test_nodes_come_and_go_and_change_nothing(
    bend: Bend, cluster: AutoscalingCluster, tmp_path: Path
) -> None:
    log, watch = tmp_path / "log", Watch(cluster)
    impossible = config(placed=True)
    impossible["generator"]["resources"] = {"gpus": 8}
    refused = start(bend, cluster, impossible, log)
    refused.wait(timeout=60)
    assert refused.returncode == 2
    lines = log.read_text().splitlines()
    assert "no node type it can add fits" in lines[-1]
    table = [line.split() for line in lines]
    assert ["generator", "never"] in [[words[0], words[-1]] for words in table if words]
    assert ["seeds", "yes"] in [[words[0], words[-1]] for words in table if words]

    watch.kill_in = set(STAGES)
    run = start(bend, cluster, config(placed=True), log)
    # In the middle of their work, as far as that shows.
    watch.during(lambda stage: stage != "seeds" or shards("seeds") >= 3)
    while run.poll() is None:
        for line in log.read_text().splitlines():
            if line.endswith("is being made"):
                watch.stage = line.split()[0]
        time.sleep(0.1)
    watch.stop()
    assert run.returncode == 0, log.read_text()
    (tmp_path / "seen.json").write_text(json.dumps(watch.seen))
    assert "waiting for 1 x (1 CPU, 0 GPU, pool=others)" in log.read_text()
    assert set(watch.killed) == set(STAGES), watch.killed
    assert watch.most("seeds", {"seeds"}) >= 2
    assert watch.least("seeds", set(STAGES[1:-1])) == 0
    assert watch.most("others", {"generator"}) == 1

    (bend.folder / "here.yaml").write_text(yaml.safe_dump(config(placed=False)))
    here = bend("run", "here.yaml", "--store", "here", "--json", "-")
    assert here.returncode == 0, here.stderr
    assert figures(log.with_suffix(".json").read_text()) == figures(here.stdout)
