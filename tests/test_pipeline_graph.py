"""What a run decides to make, without making it."""

from pathlib import Path

import pytest

from bend_ray import pipeline
from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.lease import lease
from bend_ray.artifacts.shards import write_shard
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import STAGES, graph_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.forecast.calibration import blank_population


@pytest.mark.parametrize("deleted", ["seeds", "latents", "ordinary", "evaluation"])
def test_an_artifact_that_was_deleted_is_made_again_even_below_committed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: str
) -> None:
    config, store = PipelineConfig(), Store(str(tmp_path))
    made = graph_of(config, store)
    for step in made.steps("evaluation"):
        if step != deleted:
            made[step].commit(files=[], metrics={}, cost=Cost())
    wanted: list[str] = []

    class WouldStartRayError(Exception):
        pass

    class Ray:
        def preflight(self, config: object, missing: list[str]) -> None:
            wanted.extend(missing)
            raise WouldStartRayError

    monkeypatch.setattr(pipeline, "connect", lambda address, config: Ray())
    with pytest.raises(WouldStartRayError):
        pipeline.run(config, store.uri)
    assert wanted == [deleted]


def test_with_nothing_missing_nothing_is_started(tmp_path: Path) -> None:
    config, store = PipelineConfig(), Store(str(tmp_path))
    planned = graph_of(config, store)
    for step in planned.steps("evaluation"):
        planned[step].commit(files=[], metrics={}, cost=Cost())
    made = pipeline.run(config, store.uri)
    assert [artifact.stage for artifact in made] == list(STAGES)


def test_status_tells_what_is_running_from_what_was_left(tmp_path: Path) -> None:
    config, store = PipelineConfig(), Store(str(tmp_path))
    made = graph_of(config, store)
    made.seeds.commit(files=[], metrics={}, cost=Cost(cpu_seconds=7.0, wall_seconds=5.0))
    made.autoencoder.report_progress(300, 1000, "steps")
    made.generator.write_json("training/notes.json", {})
    assert made.ordinary is not None
    write_shard(made.ordinary, 0, blank_population(3, 1))
    with lease(made.autoencoder, pytest.fail):
        running = list(pipeline.status(config, store.uri))
    left = list(pipeline.status(config, store.uri))
    assert [line.state for line in running[:3]] == ["committed", "running", "missing"]
    assert running[0].detail == "5.0s (CPU 7.0s)"
    assert running[1].detail.startswith("300 of 1000 steps, pid ")
    assert (left[1].state, left[1].detail) == ("partial", "300 of 1000 steps")
    assert (left[3].state, left[3].detail) == ("partial", "files kept: 1")
    assert (left[5].stage, left[5].state, left[5].detail) == (
        "ordinary",
        "partial",
        "3 of 48 models",
    )
