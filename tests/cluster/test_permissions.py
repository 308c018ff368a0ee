"""``cluster/permissions``: rights that suffice for a whole run, and none that nothing asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import BUCKET, ObjectStore, object_store
from policies import Asked, Policy, allows, policy_of
from tiny import MakeConfig, make

from bend_ray.artifacts.store import Store
from bend_ray.config.graph import STAGES
from bend_ray.errors import StoreError

BUCKET_ARN = f"arn:aws:s3:::{BUCKET}"
STORE = f"s3://{BUCKET}/runs"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    with object_store(monkeypatch) as made:
        made.asked.clear()
        made.policy = policy_of("worker", BUCKET)
        yield made


@pytest.mark.parametrize(
    ("condition", "prefix", "allowed"),
    [
        ({}, None, True),
        ({"StringLike": {"s3:prefix": ["runs", "runs/*"]}}, "runs/seeds", True),
        ({"StringLike": {"s3:prefix": ["runs", "runs/*"]}}, "others", False),
        ({"StringLike": {"s3:prefix": "runs/*"}}, None, False),
        ({"StringLikeIfExists": {"s3:prefix": "runs/*"}}, None, True),
        ({"StringEquals": {"s3:prefix": "runs/*"}}, "runs/seeds", False),
    ],
)
def test_a_condition_holds_as_aws_says(
    condition: dict[str, object], prefix: str | None, allowed: bool
) -> None:
    context = {} if prefix is None else {"s3:prefix": prefix}
    statement = {"Effect": "Allow", "Action": "s3:List*", "Resource": BUCKET_ARN}
    policy: Policy = [{**statement, "Condition": condition}]
    assert allows(policy, Asked("s3:ListBucket", BUCKET_ARN, context)) is allowed
    assert not allows(policy, Asked("s3:GetObject", BUCKET_ARN, context))
    assert not allows(policy, Asked("s3:ListBucket", f"{BUCKET_ARN}2", context))


def test_listing_under_a_condition_makes_a_missing_object_a_forbidden_one(
    server: ObjectStore,
) -> None:
    assert server.policy is not None
    (listing,) = [each for each in server.policy if each["Action"] == "s3:ListBucket"]
    condition = {"StringLike": {"s3:prefix": ["runs", "runs/*"]}}
    artifact = Store(STORE).artifact("seeds", 1, {})
    assert not artifact.exists()
    server.policy = [{**each, **({"Condition": condition} if each is listing else {})}
                     for each in server.policy]  # fmt: skip
    with pytest.raises(StoreError, match="ACCESS_DENIED"):
        artifact.exists()


@pytest.mark.slow
def test_a_run_may_ask_for_all_that_it_asks_for_and_asks_for_all_that_it_may(
    server: ObjectStore, tiny: MakeConfig
) -> None:
    store = Store(STORE)
    store.ensure_writable()
    graph = make(tiny(), store)
    assert all(graph[stage].exists() for stage in STAGES)
    assert server.denied == []
    assert server.policy is not None
    # Of each right, and of no other, something was asked.
    rights = {action for each in server.policy for action in _listed(each["Action"])}
    asked = {each.action for each in server.asked}
    assert asked == {right for right in rights if right.startswith("s3:")}
    assert all(allows(policy_of("head", BUCKET), each) for each in server.asked)
    # Nothing but a listing is asked of the bucket itself, and that of folders of the store.
    of_the_bucket = [each for each in server.asked if each.resource == BUCKET_ARN]
    assert all(each.context["s3:prefix"].startswith("runs/") for each in of_the_bucket)


def test_ray_trains_storage_asks_nothing_of_the_bucket(server: ObjectStore) -> None:
    import pickle

    from ray.train.v2._internal.execution.storage import StorageContext

    from bend_ray.runtime.training import _storage

    path, filesystem = _storage(Store(STORE).artifact("generator", 1, {}))
    context = StorageContext(path, "run", pickle.loads(pickle.dumps(filesystem)))
    context._create_validation_file()
    context._check_validation_file()
    assert any(name.endswith("training/run/.validate_storage_marker") for name in server.names())
    assert server.denied == []
    assert "s3:ListBucket" not in {e.action for e in server.asked if "s3:prefix" not in e.context}


def _listed(value: object) -> list[str]:
    return value if isinstance(value, list) else [str(value)]


def test_a_folder_needs_no_storage_of_its_own(tmp_path: Path) -> None:
    from bend_ray.runtime.training import _storage

    artifact = Store(str(tmp_path)).artifact("generator", 1, {})
    assert _storage(artifact) == (artifact.child("making/training"), artifact.filesystem)
