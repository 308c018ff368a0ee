"""Code of a user's own, on its way to processes that do not share his folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray.cloudpickle

from bend_ray.config.graph import identified
from bend_ray.config.resources import ActorResources
from bend_ray.config.schema import PipelineConfig, SeedsSection
from bend_ray.networks.architectures import ImportedArchitecture
from bend_ray.runtime import cluster as joining
from bend_ray.runtime.cluster import importable
from bend_ray.runtime.on_ray import RayRuntime

TARGET = "shop_sent.nets:make_net"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PipelineConfig]:
    package = tmp_path / "shop_sent"
    package.mkdir()
    (package / "nets.py").write_text(
        "from shop_sent.layers import Head\ndef make_net(width):\n    return Head(width)\n"
    )
    (package / "layers.py").write_text("class Head(int): ...\n")
    (package / "secrets.env").write_text("not code\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    architecture = ImportedArchitecture(target=TARGET, arguments={"width": 64})
    yield identified(PipelineConfig(seeds=SeedsSection(architecture=architecture)))
    for name in [each for each in sys.modules if each.startswith("shop_sent")]:
        del sys.modules[name]


def test_workers_get_the_files_that_decide_what_it_is(config: PipelineConfig) -> None:
    with importable(config) as given:
        (package,) = given["runtime_env"]["py_modules"]
        assert sorted(os.listdir(package)) == ["layers.py", "nets.py"]
        question = (
            f"from bend_ray.imported import Imported; i = Imported(target={TARGET!r}).identified();"
            "print(i.source, i.resolve()(64))"
        )
        elsewhere = [str(Path(package).parent), *filter(os.path.isdir, sys.path)]
        answer = subprocess.run(
            [sys.executable, "-c", question],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(elsewhere)},
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
    assert isinstance(config.seeds.architecture, ImportedArchitecture)
    assert answer.stdout == f"{config.seeds.architecture.source} 64\n"


def test_a_config_without_any_needs_no_environment() -> None:
    with importable(PipelineConfig()) as given:
        assert given == {}


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_where_ray_runs_already_it_travels_with_the_config(config: PipelineConfig) -> None:
    def make(config: PipelineConfig) -> str:
        assert isinstance(config.seeds.architecture, ImportedArchitecture)
        made = config.seeds.architecture.make()
        return f"{type(made).__module__} {made} {'shop_sent' in sys.modules}"

    own = joining.connect(None, config)
    try:
        made = RayRuntime(own).run(make, config, resources=ActorResources())
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules["shop_sent"])
    assert made == "shop_sent.layers 64 False"
