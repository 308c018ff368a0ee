"""What an operator watches, and the board of it."""

from __future__ import annotations

import io
import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Store
from bend_ray.config.resources import ActorResources
from bend_ray.process.log import ProgressLine
from bend_ray.runtime.on_ray import RayRuntime

BOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"


def told() -> dict[str, list[str]]:
    """What Ray's agent of the node says, by metric: its labels and value."""
    (node,) = ray.nodes()
    host, port = node["NodeManagerAddress"], node["MetricsExportPort"]
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as said:
        found = re.findall(r"^(ray_\w+)(.*)$", said.read().decode(), re.MULTILINE)
    return {name: [rest for each, rest in found if each == name] for name, _ in found}


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_the_board_asks_for_metrics_that_a_run_tells(tmp_path: Path) -> None:
    class Dies:
        def first(self, _: int) -> None:
            if not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                raise SystemExit(1)

    runtime = RayRuntime(own=True)
    runtime.nodes.leave_out("ab", "dies")
    with runtime.workers(Dies, resources=ActorResources(cpus=0.1)) as workers:
        assert len(list(workers.run("first", range(2)))) == 2
    line = ProgressLine("a stage", 40, "models", io.StringIO())
    for done in (2, 12, 7):  # what was lost is done again
        line.update(done)
    artifact = Store(str(tmp_path)).artifact("seeds", 1, {})
    artifact.write_json("layout.json", {})
    artifact.commit(files=["layout.json"], metrics={}, cost=Cost(cpu_seconds=7.0))
    runtime.made("a stage", artifact.manifest())

    asked = set(re.findall(r"ray_\w+", json.dumps(json.loads(BOARD.read_text())["panels"])))
    began, found = time.monotonic(), told()
    while not asked <= set(found):
        assert time.monotonic() - began < 60, asked - set(found)
        time.sleep(0.5)
        found = told()

    def value(name: str, *labels: str) -> float:
        (line,) = [each for each in found[name] if all(label in each for label in labels)]
        return float(line.rpartition(" ")[2])

    assert value("ray_bend_done_total", 'stage="a stage"') == 12
    assert value("ray_bend_asked_total", 'stage="a stage"') == 40
    assert value("ray_bend_seconds_total", 'stage="a stage"', 'of="cpu"') == 7
    assert value("ray_bend_bytes_total", 'stage="a stage"') == 3
    assert value("ray_bend_lost_total", 'work="Dies"', 'to="itself"') == 1
    assert value("ray_bend_pieces_total", 'work="Dies.first"') == 2
