"""Sharing out pieces of work among actors that may die."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import ray.exceptions

from bend_ray.errors import BendError, ClusterError

logger = logging.getLogger(__name__)

SURVIVES = {"max_restarts": 5, "max_task_retries": 5}
"""Actor options: a killed actor is started again and repeats the piece it was at."""

PATIENCE_SECONDS = 60.0

T = TypeVar("T")


def split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive pieces of ``size``; the last may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def run_pieces(
    actors: Sequence[Any], method: str, pieces: Sequence[int]
) -> Iterator[tuple[int, Any]]:
    """Call ``method(piece)`` on whichever actor is free; yields as pieces are done.

    Args:
        actors: handles, created with ``SURVIVES``.
        method: the name of the method to call.
        pieces: what to call it with, in the order to start them.

    Yields:
        Each piece and what the method returned.

    Raises:
        BendError: raised by the method.
        ClusterError: an actor died more often than it may.
    """
    waiting = list(reversed(pieces))
    idle = list(actors)
    flying: dict[Any, tuple[int, Any]] = {}
    while waiting or flying:
        while idle and waiting:
            actor, piece = idle.pop(), waiting.pop()
            flying[getattr(actor, method).remote(piece)] = (piece, actor)
        ready, _ = ray.wait(list(flying), num_returns=1, timeout=PATIENCE_SECONDS)
        if not ready:
            logger.info("             still at %s of %s", method, _named(flying))
            continue
        piece, actor = flying.pop(ready[0])
        idle.append(actor)
        yield piece, get(ready[0])


def get(reference: Any) -> Any:
    """``ray.get`` whose errors are ours, see ``our_errors``."""
    with our_errors():
        return ray.get(reference)


@contextmanager
def our_errors() -> Iterator[None]:
    """Around calls of Ray: a worker's ``BendError`` comes out as itself.

    Raises:
        BendError: raised by the worker, however deep Ray and Ray Data have wrapped it.
        ClusterError: the worker died more often than it may.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if (ours := _within(error)) is not None:
            raise ours from None
        raise
    except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError) as error:
        raise ClusterError(
            f"a worker died more than {SURVIVES['max_restarts']} times: "
            f"{str(error).strip().splitlines()[0]}; what it had finished is kept: run again"
        ) from None


def _within(error: BaseException | None) -> BendError | None:
    """The ``BendError`` an error was made from, if there is one."""
    while error is not None:
        # A RayTaskError also is what it wraps, but its message is the worker's traceback.
        if isinstance(error, BendError) and not isinstance(error, ray.exceptions.RayTaskError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def _named(flying: dict[Any, tuple[int, Any]]) -> str:
    return ", ".join(str(piece) for piece, _ in flying.values())
