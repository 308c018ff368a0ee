"""Stores on S3: what works in a folder works there, also where requests fail."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from object_store import BUCKET, ObjectStore, object_store

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.lease import lease
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import complete_shards, read_population, write_shard
from bend_ray.artifacts.store import Artifact, Store

URI = f"s3://{BUCKET}/runs"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as store:
        yield store


def population(num_models: int) -> Population:
    whole = np.arange(num_models)
    share = np.full(num_models, 0.5)
    return Population(
        model_id=whole,
        trunk=whole,
        fork=whole,
        step=whole,
        seed=whole,
        held_out=whole < 0,
        val_accuracy=share,
        val_nll=share,
        fit_seconds=share,
        origin="trained",
        theta_KP=np.ones((num_models, 5), dtype=np.float32),
        layout_digest="d1",
    )


def artifact() -> Artifact:
    return Store(URI).artifact("seeds", 1, {"seed": 0})


@pytest.mark.slow
def test_an_artifact_is_made_where_a_fifth_of_the_requests_fail(server: ObjectStore) -> None:
    server.failing = 0.2
    with lease(artifact(), pytest.fail, settle_seconds=0.0) as mine:
        assert mine
        write_shard(artifact(), 0, population(3))
        assert complete_shards(artifact(), {0: 3, 1: 3}) == {0}
        artifact().report_progress(3, 6, "models")
        write_shard(artifact(), 1, population(3))
        assert not artifact().exists()
        names = list(artifact().list_files())
        rows = dict.fromkeys(names, 3)
        artifact().commit(files=names, rows=rows, metrics={}, cost=Cost())
    assert artifact().exists()
    assert artifact().progress() is None
    assert len(read_population(artifact())) == 6
    with lease(artifact(), pytest.fail) as mine:
        assert not mine
    assert server.failed > 0


def test_a_small_file_takes_one_request(server: ObjectStore) -> None:
    store = Store(URI)  # pyarrow looks for the bucket's region
    before = server.requests
    store.artifact("seeds", 1, {}).write_json("small.json", {"a": 1})
    assert server.requests - before == 1


@pytest.mark.slow
def test_a_refusal_longer_than_the_file_is_a_refusal(server: ObjectStore) -> None:
    artifact().write_json("small.json", 1)
    server.refusals["GET"] = 3
    assert artifact().read_json("small.json") == 1
    assert server.refusals["GET"] == 0
    write_shard(artifact(), 0, population(1))
    server.refusals["GET"] = 3
    assert complete_shards(artifact(), {0: 1}) == {0}


@pytest.mark.slow
def test_another_process_is_as_patient(server: ObjectStore) -> None:
    sent = pickle.loads(pickle.dumps(artifact()))
    server.refusals |= {"HEAD": 3, "PUT": 4}
    sent.write_json("small.json", 1)
    assert sent.read_json("small.json") == 1
    assert not +server.refusals
    assert (sent.uri, sent.fingerprint) == (artifact().uri, artifact().fingerprint)
