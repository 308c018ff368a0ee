"""Every damage is found, and only what nothing needs is removed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.lease import lease
from bend_ray.artifacts.population import ROW_TYPES, Population
from bend_ray.artifacts.shards import write_shard
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.artifacts.upkeep import remove, unneeded, verify
from bend_ray.errors import CorruptArtifact, StoreError

STAGES = ("seeds", "samples", "evaluation")
AT_ONCE = timedelta(0)


def population() -> Population:
    facts = {name: np.arange(3) for name in ROW_TYPES if name != "origin"}
    return Population(
        **facts,
        theta_KP=np.random.default_rng(0).standard_normal((3, 5), dtype=np.float32),
        origin="trained",
        layout_digest="d1",
    )


def run(store: Store, seed: int, samples: int = 0) -> list[Artifact]:
    """Three committed artifacts, each made from those before it."""
    seeds = store.artifact("seeds", 1, {"seed": seed})
    if not seeds.exists():
        name = write_shard(seeds, 0, population())
        seeds.write_json("layout.json", {"a": seed})
        seeds.commit(files=[name, "layout.json"], rows={name: 3}, metrics={}, cost=Cost())
    drawn = store.artifact("samples", 1, {"samples": samples}, [seeds])
    drawn.commit(files=[], metrics={}, cost=Cost())
    evaluation = store.artifact("evaluation", 1, {}, [seeds, drawn])
    evaluation.write_json("evidence.json", {"b": samples})
    evaluation.commit(files=["evidence.json"], metrics={}, cost=Cost())
    return [seeds, drawn, evaluation]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def problems(store: Store) -> dict[str, str]:
    return {stage: wrong for (stage, _), wrong in verify(store, STAGES) if wrong}


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("seeds", "shard-00000.parquet"),
        ("seeds", "layout.json"),
        ("seeds", "manifest.json"),
        ("evaluation", "evidence.json"),
    ],
)
def test_a_damaged_file_is_found_and_named(store: Store, stage: str, name: str) -> None:
    made = {artifact.stage: artifact for artifact in run(store, 0)}
    assert problems(store) == {}
    path = Path(made[stage].child(name))
    content = bytearray(path.read_bytes())
    vectors = population().theta_KP.tobytes()
    content[content.index(vectors) if vectors in content else len(content) // 3] ^= 1
    path.write_bytes(content)
    (wrong,) = problems(store).items()
    assert wrong[0] == stage
    assert name in wrong[1]


def test_what_a_kept_evaluation_was_made_from_stays(store: Store) -> None:
    shared, drawn, evaluation = run(store, 0)
    _, later, latest = run(store, 0, samples=1)
    assert unneeded(store, STAGES, older_than=AT_ONCE) == []
    found = unneeded(store, STAGES, keep=1, older_than=AT_ONCE)
    newest = store.manifests("evaluation")[-1].fingerprint
    gone = {drawn, evaluation} if newest == latest.fingerprint else {later, latest}
    assert {each.where.path for each in found} == {each.path for each in gone}
    for each in found:
        remove(store, each)
    assert shared.exists()
    assert not any(Path(each.path).exists() for each in gone)
    assert problems(store) == {}
    everything = unneeded(store, STAGES, keep=0, older_than=AT_ONCE)
    assert len(everything) == 3


def test_what_was_never_committed_goes_when_it_is_old(store: Store) -> None:
    half = store.artifact("seeds", 1, {"seed": 5})
    write_shard(half, 0, population())
    assert unneeded(store, STAGES) == []
    (found,) = unneeded(store, STAGES, older_than=AT_ONCE)
    assert found.why == "it was never committed"
    assert found.num_bytes == Path(half.child("shard-00000.parquet")).stat().st_size


def test_nothing_is_unneeded_while_a_run_works(store: Store) -> None:
    run(store, 0)
    with (
        lease(store.artifact("seeds", 1, {"seed": 9}), lambda _: None),
        pytest.raises(StoreError, match="expected nobody to work in"),
    ):
        unneeded(store, STAGES, keep=0, older_than=AT_ONCE)


def test_what_needs_nobody_knows_what_is_not_guessed(store: Store) -> None:
    _, _, evaluation = run(store, 0)
    Path(evaluation.child("manifest.json")).write_text("{")
    with pytest.raises(CorruptArtifact):
        unneeded(store, STAGES, older_than=AT_ONCE)
