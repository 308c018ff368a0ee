"""``bend doctor``: every right by asking once, and every node from inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from object_store import BUCKET, ObjectStore, object_store
from policies import policy_of, without

from bend_ray.artifacts.store import Store
from bend_ray.errors import StoreError
from bend_ray.runtime.doctor import _of_a_node, _to_mend, ask_store, examine, outside
from bend_ray.runtime.nodes import Node, Nodes

STORE = f"s3://{BUCKET}/runs"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as made:
        made.policy = policy_of("worker", BUCKET)
        yield made


def test_the_rights_of_the_policy_files_suffice(server: ObjectStore) -> None:
    answers = ask_store(STORE)
    assert answers["refused"] == []
    assert abs(answers["ahead"]) <= 1.0  # it counts whole seconds
    assert server.denied == []
    assert set(server.names()) <= {"/runs/"}


@pytest.mark.parametrize("right", ["ListBucket", "GetObject", "PutObject", "DeleteObject"])
def test_each_right_that_is_taken_away_is_named_before_any_work(
    server: ObjectStore, right: str
) -> None:
    assert server.policy is not None
    server.policy = without(server.policy, f"s3:{right}")
    refused = ask_store(STORE)["refused"]
    assert refused
    assert all(f"s3:{right}" in each for each in refused)
    with pytest.raises(StoreError, match=rf"^the store {STORE} .*s3:{right}.* --store URI$"):
        Store(STORE).ensure_writable()


@pytest.mark.parametrize(("moment", "found"), [(4.0, 0.0), (2.0, -1.0), (9.0, 4.0)])
def test_a_clock_is_wrong_by_what_no_delay_explains(moment: float, found: float) -> None:
    assert outside(moment, 3.0, 5.0) == found


def of(**changes: Any) -> list[str]:
    answer = {**_of_a_node(None, 0.0), "disk": SimpleNamespace(free=90e9, total=100e9), **changes}
    node = Node({"object_store_memory": 2e9}, {}, "ab", "10.0.0.2")
    return list(_to_mend(node, {"shared": 4e9, **answer}, changes.get("skew", 0.0)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shared": 1e9}, "2.0 GB is on disk, as /dev/shm has 1.0 GB"),
        ({"disk": SimpleNamespace(free=5e9, total=100e9)}, "5.0 of 100.0 GB free"),
        ({"skew": 3600.0}, "clock is +3600 s off"),
        ({"store": "no such bucket"}, "no such bucket"),
        ({"versions": {**_of_a_node(None, 0.0)["versions"], "torch": "1.0"}}, "torch 1.0 on node"),
    ],
)
def test_a_fault_of_a_node_is_one_line(changes: dict[str, Any], told: str) -> None:
    assert of(shared=4e9) == []
    (line,) = of(**{"shared": 4e9, **changes})
    assert told in line
    assert "\n" not in line


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_every_node_asks_the_store(tmp_path: Path) -> None:
    (found,) = examine(Nodes(own=True), str(tmp_path))
    assert "MiB/s there and back" in found.words
    assert not [each for each in found.mend if "object store" not in each and "disk" not in each]
    assert list(tmp_path.iterdir()) == []
