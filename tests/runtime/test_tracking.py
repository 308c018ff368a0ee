"""Tracking without a service; needs no Ray."""

import logging
from pathlib import Path
from typing import Any

import pytest

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import Graph, graph_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import ConfigError
from bend_ray.runtime import tracking as module
from bend_ray.runtime.tracking import require_installed, tracking

TRACKED = PipelineConfig(tracking="mlflow")


class Fake:
    """A service that remembers, and fails when told to."""

    made: list["Fake"]
    broken = False

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        self.name, self.config = name, config
        self.told: list[Any] = []
        Fake.made.append(self)

    def curve(self, name: str, points: list[tuple[int, float]]) -> None:
        self.told.append((name, points))

    def figures(self, values: dict[str, float]) -> None:
        if self.broken:
            raise OSError("no network\nat all")
        self.told.append(values)

    def close(self, succeeded: bool) -> None:
        self.told.append(succeeded)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.made = []
    monkeypatch.setattr(Fake, "broken", False)
    monkeypatch.setitem(module._SERVICES, "mlflow", Fake)
    return Fake


@pytest.fixture
def made(tmp_path: Path) -> Graph:
    artifacts = graph_of(TRACKED, Store(str(tmp_path)))
    metrics = {"loss": [[10, 0.5]], "num_features": 3, "name": "x", "broken": None}
    artifacts.autoencoder.commit(files=[], metrics=metrics, cost=Cost(cpu_seconds=2.0))
    return artifacts


def test_tracking_changes_no_fingerprint(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for ours, theirs in zip(
        graph_of(TRACKED, store), graph_of(PipelineConfig(), store), strict=True
    ):
        assert ours.fingerprint == theirs.fingerprint


def test_a_stage_is_told_with_its_curve_its_figures_and_its_cost(
    service: type[Fake], made: Graph
) -> None:
    with tracking(TRACKED, made.evaluation) as tell:
        tell(made.autoencoder)
    (fake,) = service.made
    assert fake.name == f"{made.evaluation.fingerprint}-seed0"
    assert fake.config["samples"]["count"] == 48
    curve, figures, succeeded = fake.told
    assert curve == ("autoencoder/loss", [(10, 0.5)])
    assert figures == {
        "autoencoder/num_features": 3.0,
        "autoencoder/cost/cpu_seconds": 2.0,
        "autoencoder/cost/gpu_seconds": 0.0,
        "autoencoder/cost/wall_seconds": 0.0,
    }
    assert succeeded is True


def test_a_service_that_fails_is_told_of_and_costs_nothing(
    service: type[Fake], made: Graph, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(logging.getLogger("bend_ray"), "propagate", True)
    monkeypatch.setattr(service, "broken", True)
    with tracking(TRACKED, made.evaluation) as tell:
        tell(made.autoencoder)
    assert "autoencoder was not told: no network" in caplog.text


def test_a_run_that_fails_is_marked_so(service: type[Fake], made: Graph) -> None:
    with pytest.raises(ZeroDivisionError), tracking(TRACKED, made.evaluation):
        raise ZeroDivisionError
    assert service.made[0].told == [False]


def test_a_service_that_does_not_start_is_one_line(
    made: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, config: dict[str, Any]) -> Any:
        raise RuntimeError("no such server\ntrace")

    monkeypatch.setitem(module._SERVICES, "mlflow", refuse)
    with pytest.raises(ConfigError, match=r"^tracking: expected mlflow .*no such server; mend"):
        tracking(TRACKED, made.evaluation).__enter__()


def test_without_tracking_nobody_is_told(service: type[Fake], made: Graph) -> None:
    with tracking(PipelineConfig(), made.evaluation) as tell:
        tell(made.autoencoder)
    assert service.made == []


def test_what_is_not_installed_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'bend-ray\[mlflow\]'"):
        require_installed(TRACKED)
    require_installed(PipelineConfig())
