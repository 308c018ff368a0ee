"""A run that was stopped until another took over its stage."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import MakeConfig

from bend_ray import pipeline
from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import Graph, graph_of
from bend_ray.errors import StoreError
from bend_ray.runtime.interface import Runtime
from bend_ray.stages import seeds


@pytest.mark.parametrize("other_commits", [True, False])
def test_a_stage_that_another_run_committed_is_gone_on_with(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_commits: bool
) -> None:
    config = tiny()
    made = graph_of(config, Store(str(tmp_path)))

    def make(artifacts: Graph, runtime: Runtime) -> None:
        if other_commits:
            artifacts.seeds.commit(files=[], metrics={"by": "another"}, cost=Cost())
            artifacts.seeds.ensure_uncommitted()
        raise StoreError("expected a file, got none")

    monkeypatch.setattr(seeds, "make", make)
    if other_commits:
        pipeline.make_stage("seeds", config, made, Runtime())
        assert made.seeds.manifest().metrics == {"by": "another"}
    else:
        with pytest.raises(StoreError, match="expected a file"):
            pipeline.make_stage("seeds", config, made, Runtime())
