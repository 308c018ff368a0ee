"""Sharing out pieces of work among actors that may die, on a cluster that may shrink and grow."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import ray
import ray.exceptions

from bend_ray.errors import BendError, ClusterError

logger = logging.getLogger(__name__)

MOST_DEATHS = 5
"""Actors that may die of one piece of work; and times that all may die before any has done one."""

PATIENCE_SECONDS = 60.0

LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
)
"""What a call raises whose actor, or the node that held its result, is gone.

Ray's memory monitor is one that kills.
"""

_CLUSTERS_OWN = (
    ray.exceptions.ObjectStoreFullError,
    ray.exceptions.OutOfDiskError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.RaySystemError,
    ray.exceptions.RpcError,
)
"""What a call raises where the cluster itself has a problem, not a worker or its code."""

T = TypeVar("T")


class Pool:
    """Actors that share out pieces of work; one that dies is replaced and its piece done again.

    A piece goes to an actor that runs. Ray itself would start a dead actor again and keep its piece
    for it: where a spot node is gone for good that waits for ever, although others are idle.

    Args:
        start: makes an actor, of a class that does not restart.
        size: how many there shall be.
        waiting: says what the cluster has, for as long as no actor runs.
    """

    def __init__(self, start: Callable[[], Any], size: int, waiting: Callable[[], str]) -> None:
        self._start = start
        self._size = size
        self._waiting = waiting
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._flying: dict[Any, tuple[int, Any]] = {}
        self._deaths_in_a_row = 0

    def __enter__(self) -> Pool:
        for _ in range(self._size):
            self._add()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        flying = [actor for _, actor in self._flying.values()]
        for actor in [*self._starting.values(), *self._idle, *flying]:
            ray.kill(actor)

    def run(self, method: str, pieces: Sequence[T]) -> Iterator[tuple[T, Any]]:
        """Call ``method(piece)`` on whichever actor is free; yields as pieces are done.

        Args:
            method: the name of the method to call; calling it twice must do no harm.
            pieces: what to call it with, in the order to start them.

        Yields:
            Each piece and what the method returned.

        Raises:
            BendError: raised by the method.
            ClusterError: actors died of one piece, or in a row, more often than they may.
        """
        waiting, deaths = deque(range(len(pieces))), Counter[int]()
        while waiting or self._flying:
            while self._idle and waiting:
                actor, index = self._idle.pop(), waiting.popleft()
                self._flying[getattr(actor, method).remote(pieces[index])] = index, actor
            reference = self._next(method)
            if reference in self._starting:
                self._started(reference)
                continue
            index, actor = self._flying.pop(reference)
            try:
                result = ray.get(reference)
            except LOST as error:
                deaths[index] += 1
                self._replace(actor, error, deaths[index])
                waiting.appendleft(index)
                continue
            except ray.exceptions.RayTaskError as error:
                raise _within(error) or error from None
            self._deaths_in_a_row = 0
            self._idle.append(actor)
            yield pieces[index], result

    def _next(self, method: str) -> Any:
        """A call that has ended, or the start of an actor that has."""
        while True:
            references = [*self._flying, *self._starting]
            ready, _ = ray.wait(references, num_returns=1, timeout=PATIENCE_SECONDS)
            if ready:
                return ready[0]
            if self._flying:
                logger.info("%-12s still at %d of %s", "", len(self._flying), method)
            else:
                logger.info("%-12s waiting for a worker: %s", "", self._waiting())

    def _add(self) -> None:
        actor = self._start()
        self._starting[actor.__ray_ready__.remote()] = actor

    def _started(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            ray.get(reference)
        except LOST as error:
            if getattr(error, "actor_init_failed", False):
                raise
            self._replace(actor, error, 0)
        else:
            self._idle.append(actor)

    def _replace(self, actor: Any, error: Exception, deaths: int) -> None:
        """Put another actor in the place of one that is lost."""
        self._deaths_in_a_row += 1
        if deaths > MOST_DEATHS or self._deaths_in_a_row > MOST_DEATHS * self._size:
            raise died_too_often(error) from None
        logger.debug("a worker is gone, another takes over: %s", _first_line(error))
        ray.kill(actor)
        self._add()


def get(reference: Any) -> Any:
    """``ray.get`` whose errors are ours, see ``our_errors``."""
    with our_errors():
        return ray.get(reference)


@contextmanager
def our_errors() -> Iterator[None]:
    """Around calls of Ray: a worker's ``BendError`` comes out as itself.

    Raises:
        BendError: raised by the worker, however deep Ray and Ray Data have wrapped it.
        ClusterError: the worker died more often than it may, or the cluster fails.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if (ours := _within(error)) is not None:
            raise ours from None
        if (ours := _refusal(error.cause)) is not None:
            raise ours from None
        raise
    except ray.exceptions.RayError as error:
        if (ours := _refusal(error)) is not None:
            raise ours from None
        raise


def _refusal(error: Exception) -> ClusterError | None:
    """What befell the cluster, as an error of ours; None where it is something else."""
    if isinstance(error, (*LOST, ray.exceptions.WorkerCrashedError)):
        return died_too_often(error)
    if isinstance(error, _CLUSTERS_OWN):
        return _cluster_failed(error)
    return None


def _cluster_failed(error: Exception) -> ClusterError:
    return ClusterError(
        f"expected the cluster to work, got: {_first_line(error)}; what was finished is kept: mend "
        "it and run again"
    )


def died_too_often(error: Exception) -> ClusterError:
    """The error where workers died more often than they may, the last time of ``error``."""
    return ClusterError(
        f"workers died again and again: {_first_line(error)}; what they had finished is kept: "
        "run again"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _within(error: BaseException | None) -> BendError | None:
    """The ``BendError`` an error was made from, if there is one."""
    while error is not None:
        # A RayTaskError also is what it wraps, but its message is the worker's traceback.
        if isinstance(error, BendError) and not isinstance(error, ray.exceptions.RayTaskError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None
