from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bend_ray.artifacts.store import Store
from bend_ray.config import graph as plan_module
from bend_ray.config.graph import STAGES, graph_of
from bend_ray.config.reading import Knob, knobs, load_config
from bend_ray.config.schema import PipelineConfig

VALUES_OF_NO_RESULT = {
    "memory": "2.5",
    "cpus": 2.5,
    "gpus": 0.5,
    "accelerator": "A100",
    "labels": "{market: spot}",
    "workers": 3,
    "placement": "spread",
    "count": 3,
    "at": 0.7,
    "floor": 0.4,
}
FIRST_TO_CHANGE = {
    "seed=1": "seeds",
    "dataset.split_seed=1": "seeds",
    "seeds.recipe.epochs=21": "seeds",
    "seeds.held_out=0.1": "seeds",
    "seeds.cohort_size=8": "seeds",
    "autoencoder.model.hidden=16": "autoencoder",
    "autoencoder.training.optimizer.betas=[0.8, 0.9]": "autoencoder",
    "generator.process.prediction=eps": "generator",
    "generator.conditional=false": "generator",
    "generator.training.seed=1": "generator",
    "samples.count=96": "samples",
    "samples.sampler.kind=ancestral": "samples",
    "samples.temperature=0.9": "samples",
    "evaluation.vote.kind=majority": "evaluation",
    "evaluation.rivals=[]": "evaluation",
}


@pytest.fixture(name="store")
def make_store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def fingerprints(store: Store, *overrides: str) -> dict[str, str]:
    made = graph_of(load_config(None, overrides), store)
    return {artifact.stage: artifact.fingerprint for artifact in made}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [stage for stage in STAGES if before[stage] != after[stage]]


def test_a_plan_is_its_stages_in_order(store: Store) -> None:
    made = graph_of(PipelineConfig(), store)
    assert [artifact.stage for artifact in made] == list(STAGES)
    assert all(made[stage].stage == stage for stage in STAGES)
    assert len({artifact.fingerprint for artifact in made}) == len(STAGES)


def test_each_stage_is_made_from_earlier_ones(store: Store) -> None:
    made = graph_of(PipelineConfig(), store)
    inputs = {artifact.stage: [given.stage for given in artifact.inputs] for artifact in made}
    assert inputs == {
        "seeds": [],
        "autoencoder": ["seeds"],
        "latents": ["seeds", "autoencoder"],
        "generator": ["latents"],
        "samples": ["autoencoder", "generator"],
        "evaluation": ["seeds", "samples", "seeds", *["answers"] * 16],
    }


@pytest.mark.parametrize(("override", "first"), FIRST_TO_CHANGE.items())
def test_a_knob_renames_its_own_stage_and_what_follows(
    store: Store, override: str, first: str
) -> None:
    renamed = changed(fingerprints(store), fingerprints(store, override))
    assert renamed == list(STAGES[STAGES.index(first) :])


@pytest.mark.parametrize(
    "knob",
    [knob for knob in knobs() if ".resources." in knob.path or ".probes." in knob.path],
    ids=lambda knob: knob.path,
)
def test_where_work_runs_and_what_stops_it_rename_nothing(store: Store, knob: Knob) -> None:
    value = VALUES_OF_NO_RESULT[knob.path.rpartition(".")[2]]
    assert value != knob.default
    override = f"{knob.path}={value}"
    assert load_config(None, [override]) != PipelineConfig()
    assert fingerprints(store, override) == fingerprints(store)


@pytest.mark.parametrize("stage", STAGES)
def test_a_new_version_of_a_stage_renames_it_and_what_follows(
    store: Store, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprints(store)
    monkeypatch.setitem(plan_module.STAGE_VERSIONS, stage, 99)
    assert changed(before, fingerprints(store)) == list(STAGES[STAGES.index(stage) :])


def test_names_do_not_depend_on_where_the_store_is(tmp_path: Path, store: Store) -> None:
    assert fingerprints(Store(str(tmp_path / "elsewhere"))) == fingerprints(store)


PRINT_FINGERPRINTS = """
import json, sys
from bend_ray.artifacts.store import Store
from bend_ray.config.reading import load_config
from bend_ray.config.graph import graph_of
made = graph_of(load_config(None, ["samples.count=50"]), Store(sys.argv[1]))
loaded = [name for name in ("torch", "ray", "sklearn") if name in sys.modules]
print(json.dumps([{a.stage: a.fingerprint for a in made}, loaded]))
"""


@pytest.mark.slow
def test_another_process_gives_the_same_names_without_torch_or_ray(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT_FINGERPRINTS, store.uri],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    theirs, loaded = json.loads(done.stdout)
    assert theirs == fingerprints(store, "samples.count=50")
    assert loaded == []
