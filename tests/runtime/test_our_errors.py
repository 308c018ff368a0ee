"""What befalls a cluster is told in one line; what our own code does wrong keeps its traceback."""

from __future__ import annotations

import pytest
from ray import exceptions

from bend_ray.errors import BendError, ClusterError, StoreError
from bend_ray.runtime.causes import our_errors

OUT_OF_MEMORY = "5 worker(s) were killed due to the node running low on memory.\nTop 10 users: ..."


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (exceptions.OutOfMemoryError(OUT_OF_MEMORY), r"died again.*low on memory\.; .*run again"),
        (exceptions.NodeDiedError("gone\nfor good"), "died again.*gone; .*run again"),
        (exceptions.ActorDiedError(), "died again.*run again"),
        (exceptions.ObjectStoreFullError("full"), "expected the cluster to work.*full.*run again"),
        (exceptions.OutOfDiskError("no room"), "expected the cluster to work.*run again"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_cluster_that_fails_is_a_refusal(error: Exception, told: str) -> None:
    with pytest.raises(ClusterError, match=told) as caught, our_errors():
        raise error
    assert "\n" not in str(caught.value)
    wrapped = exceptions.RayTaskError("piece", "Traceback ...", error)
    with pytest.raises(BendError) as caught, our_errors():
        raise wrapped
    assert "\n" not in str(caught.value)


def test_a_workers_own_refusal_comes_first() -> None:
    ours = StoreError("expected a file, got none")
    with pytest.raises(StoreError, match=r"^expected a file, got none$"), our_errors():
        raise exceptions.RayTaskError("piece", "Traceback ...", ours)


def test_what_ray_adds_to_our_message_is_left_out() -> None:
    ours = StoreError("expected a file, got none\nFailed to apply UDF transform after 1/1 attempts")
    with pytest.raises(StoreError, match=r"^expected a file, got none$"), our_errors():
        raise exceptions.RayTaskError("piece", "Traceback ...", ours)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(exceptions.RayTaskError), our_errors():
        raise exceptions.RayTaskError("piece", "Traceback ...", ZeroDivisionError())
