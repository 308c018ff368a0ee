"""Where nobody says how many GPUs: those that work, a fraction each for small networks."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from bend_ray.config.reading import load_config
from bend_ray.config.resources import Resources
from bend_ray.config.schema import PipelineConfig, identity
from bend_ray.runtime.interface import SMALL_NETWORK, Runtime, share_of_gpu

FOUR = [{"CPU": 32.0, "GPU": 4.0, "memory": 1e11}, {"CPU": 8.0}]


def chosen(
    *overrides: str, nodes: Any = FOUR, problem: str = "", size: int = 1000
) -> dict[str, Any]:
    config = load_config(None, list(overrides))
    runtime = Runtime()
    runtime.network_size = lambda _: size  # type: ignore[method-assign]
    found = runtime.equipped(config, nodes, lambda: problem)
    assert identity(found) == identity(config)
    stages = ("seeds", "autoencoder", "latents", "generator", "samples", "evaluation")
    return {stage: getattr(found, stage).resources.gpus for stage in stages}


@pytest.mark.parametrize(
    ("size", "cpus", "node", "share"),
    [
        (1000, 1.0, {"CPU": 8, "GPU": 1}, 0.25),
        (1000, 2.0, {"CPU": 8, "GPU": 1}, 0.25),
        (1000, 4.0, {"CPU": 8, "GPU": 1}, 0.5),
        (1000, 1.0, {"CPU": 8, "GPU": 4}, 0.5),
        (1000, 4.0, {"CPU": 8, "GPU": 4}, 1.0),
        (1000, 16.0, {"CPU": 8, "GPU": 1}, 1.0),
        (SMALL_NETWORK + 1, 1.0, {"CPU": 8, "GPU": 1}, 1.0),
    ],
)
def test_small_networks_share_a_gpu_as_far_as_cpus_go(
    size: int, cpus: float, node: dict[str, float], share: float
) -> None:
    assert share_of_gpu(size, cpus, [node]) == share


def test_classifiers_are_computed_on_gpus_and_a_line_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        found = chosen()
    assert [*found.values()] == [0.25, 0.0, 0.0, 0.0, 0.25, 0.25]
    assert caplog.messages == [
        "gpus         4 there: 0.25 a process of seeds, samples, evaluation, for networks of 1000 "
        "parameters"
    ]


def test_what_is_given_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = chosen("seeds.resources.gpus=0", "generator.resources.gpus=1")
    assert [*found.values()] == [0, 0.0, 0.0, 1, 0.25, 0.25]
    assert "process of samples, evaluation," in caplog.text


def test_without_a_gpu_nothing_is_asked_for_nor_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert set(chosen(nodes=[{"CPU": 8.0}]).values()) == {0.0}
    assert not caplog.messages


def test_gpus_that_do_not_work_leave_all_on_cpus_and_a_line_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        assert set(chosen(problem="node n: no driver").values()) == {0.0}
    assert caplog.messages == ["gpus         all on CPUs: node n: no driver"]


def test_nobody_looks_at_gpus_or_networks_that_are_not_asked_for() -> None:
    def never(*_: object) -> Any:
        raise AssertionError

    stages = ("seeds", "autoencoder", "latents", "generator", "samples", "evaluation")
    config = load_config(None, [f"{stage}.resources.gpus=0" for stage in stages])
    runtime = Runtime()
    runtime.network_size = never  # type: ignore[method-assign]
    assert runtime.equipped(config, FOUR, never) == config


def test_until_somebody_looks_auto_is_none() -> None:
    assert (Resources().gpus, Resources().num_gpus) == ("auto", 0.0)
    assert Resources(gpus=0.5).num_gpus == 0.5


def test_a_network_has_the_size_it_has_on_the_data() -> None:
    config = load_config(None, ["seeds.architecture={kind: mlp, hidden: [3]}"])
    assert Runtime().network_size(config) == 64 * 3 + 3 + 3 * 10 + 10


FAKE = """
import logging, sys
import ray
from bend_ray.config.schema import PipelineConfig
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
for noisy in ("ray", "ray.data"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
ray.init(address="local", num_cpus=8, num_gpus=2, object_store_memory=100 * 2**20)
from bend_ray.runtime.on_ray import RayRuntime
runtime = RayRuntime(own=True)
print("broken", runtime.preflight(PipelineConfig(), ["seeds"]).seeds.resources.gpus)
runtime.nodes.gpu_problem = lambda: ""
runtime.nodes.check = lambda gpus=False: False
found = runtime.preflight(PipelineConfig(), ["seeds"])
print("working", found.seeds.resources.gpus, found.generator.resources.gpus)
print("actors", runtime.nodes.num_actors(found.seeds.resources, 100))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_on_a_cluster_that_says_it_has_gpus() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAKE], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "all on CPUs: node " in done.stdout
    assert "broken 0.0" in done.stdout
    assert "2 there: 0.25 a process of seeds, samples, evaluation" in done.stdout
    assert "working 0.25 0.0" in done.stdout
    assert "actors 6" in done.stdout


def test_a_default_config_asks_for_no_gpu_by_itself() -> None:
    assert PipelineConfig().seeds.resources.num_gpus == 0.0
