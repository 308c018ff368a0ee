from pathlib import Path

import pytest
from evaluations import CONFIG, commit

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import EVIDENCE, graph_of
from bend_ray.errors import CorruptArtifact, StoreError
from bend_ray.report.evaluation import Result
from bend_ray.report.runs import Run, grouped, newest, read_run, stored_runs


def test_a_run_reads_as_its_own_result(store: Store, repeats: list[Run]) -> None:
    assert repeats[0].result == Result.of(graph_of(CONFIG, store))
    assert repeats[0].config == CONFIG.model_dump(mode="json")


@pytest.mark.slow
def test_the_evaluation_alone_is_enough(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = commit(CONFIG, store)
    before = Result.of(made)
    for stage in ("seeds", "autoencoder", "latents", "generator", "samples"):
        Path(made[stage].path, "manifest.json").unlink()
    assert read_run(store, made.evaluation.fingerprint).result == before


@pytest.mark.slow
def test_repeats_are_one_group_and_another_config_is_another(tmp_path: Path, store: Store) -> None:
    assert [len(group) for group in grouped(stored_runs(store))] == [3]
    other = Store(str(tmp_path))
    for config in (
        CONFIG.model_copy(update={"seed": 2}),
        CONFIG,
        CONFIG.model_copy(
            update={"samples": CONFIG.samples.model_copy(update={"temperature": 0.5})}
        ),
    ):
        commit(config, other)
    groups = grouped(stored_runs(other))
    assert sorted(len(group) for group in groups) == [1, 2]
    pair = next(group for group in groups if len(group) == 2)
    assert [run.config["seed"] for run in pair] == [0, 2]
    assert newest(groups) in groups


@pytest.mark.slow
def test_where_it_ran_makes_no_other_run(tmp_path: Path) -> None:
    from bend_ray.config.reading import load_config

    store = Store(str(tmp_path))
    for override in ("seed=0", "seed=1"):
        commit(load_config(None, [override, "seeds.resources.workers=7"]), store)
    assert [len(group) for group in grouped(stored_runs(store))] == [2]


def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="got none: make one with `bend run`"):
        stored_runs(Store(str(tmp_path / "nowhere")))
    with pytest.raises(StoreError, match="expected a committed evaluation"):
        read_run(Store(str(tmp_path)), "0123456789ab")


def test_an_evaluation_without_evidence_is_none(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    old = store.artifact("evaluation", 1, {})
    old.commit(files=[], metrics={}, cost=Cost())
    with pytest.raises(StoreError, match="1 of an earlier bend-ray"):
        stored_runs(store)
    with pytest.raises(StoreError, match=r"expected evidence\.json in .*, got no such file"):
        read_run(store, old.fingerprint)


@pytest.mark.slow
def test_broken_evidence_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = commit(CONFIG, store)
    Path(made.evaluation.path, EVIDENCE).write_text("{")
    with pytest.raises(CorruptArtifact, match=r"evidence\.json is corrupt"):
        read_run(store, made.evaluation.fingerprint)
