"""Sharing out pieces of work among actors that may die, on a cluster that may shrink and grow."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import ray.exceptions

from bend_ray.config.resources import Resources
from bend_ray.errors import ClusterError
from bend_ray.runtime.causes import LOST, died_too_often, told, within
from bend_ray.runtime.interface import Workers
from bend_ray.runtime.nodes import LOOK_SECONDS, Nodes, differs, situation, versions
from bend_ray.runtime.tracking import count

logger = logging.getLogger(__name__)

MOST_DEATHS = 5
"""Actors that may die of a piece before it goes on; times that all may before one has done one."""
MOST_KILLS = 3
"""Times that one piece's actor may be killed for memory: what did not fit will not fit."""
PATIENCE_SECONDS = 60.0

T = TypeVar("T")


class _Host:
    """An actor; what its worker's constructor raises comes out as itself."""

    def begin(self, wanted: dict[str, str], make: Callable[[], Any]) -> tuple[str, Any]:
        """Make the worker, where the versions are the wanted ones; where, and which these are.

        Ray's own way wraps what a constructor raises in text.
        """
        if versions() == wanted:
            self._worker = make()
        return ray.get_runtime_context().get_node_id(), versions()

    def call(self, method: str, piece: Any) -> Any:
        return getattr(self._worker, method)(piece)


class Pool(Workers):
    """Actors that share out pieces of work; one that dies is replaced and its piece done again.

    A piece goes to an actor that runs. Ray itself would start a dead actor again and keep its piece
    for it: where a spot node is gone for good that waits for ever, although others are idle. There
    are as many actors as there are pieces, and room for on the nodes that are there at the time.

    ``make`` makes a worker, in its process; ``name`` is for titles and logs.
    """

    def __init__(
        self, name: str, make: Callable[[], Any], resources: Resources, nodes: Nodes
    ) -> None:
        self._name = name
        self._make = make
        self._resources = resources
        self._nodes = nodes
        self._host = ray.remote(type(name, (_Host,), {}))
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._flying: dict[Any, tuple[int, Any, float]] = {}
        self._homes: dict[Any, str] = {}
        self._followed = self._heard = -float("inf")
        self._deaths_in_a_row = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *raised: object) -> None:
        flying = [actor for _, actor, _ in self._flying.values()]
        for actor in [*self._starting.values(), *self._idle, *flying]:
            ray.kill(actor)

    def run(
        self, method: str, pieces: Sequence[T], how_far: Callable[[T], Any] = lambda _: None
    ) -> Iterator[tuple[T, Any]]:
        """See ``Workers``.

        A BendError of the method, or of making a worker, is raised; ClusterError where actors died
        of one piece, or in a row, more often than they may.
        """
        waiting, deaths = deque(range(len(pieces))), Counter[tuple[int, bool]]()
        seen: dict[int, Any] = {}
        title = f"{self._name}.{method}"
        while waiting or self._flying:
            self._follow(len(waiting) + len(self._flying))
            while self._idle and waiting:
                actor, index = self._idle.pop(), waiting.popleft()
                call = actor.call.options(name=title).remote(method, pieces[index])
                self._flying[call] = index, actor, time.monotonic()
            reference = self._next(title)
            if reference in self._starting:
                self._started(reference)
            if reference not in self._flying:
                continue
            index, actor, given = self._flying.pop(reference)
            try:
                result = ray.get(reference)
            except LOST as error:
                for_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
                far = how_far(pieces[index])
                if far != seen.setdefault(index, far):
                    seen[index], self._deaths_in_a_row = far, 0
                    deaths[index, True] = deaths[index, False] = 0
                deaths[index, for_memory] += 1
                most = MOST_KILLS if for_memory else MOST_DEATHS + 1
                self._bury(actor, error, deaths[index, for_memory] >= most)
                waiting.appendleft(index)
                continue
            except ray.exceptions.RayTaskError as error:
                raise within(error) or error from None
            count("pieces", 1, work=title)
            count("piece_seconds", time.monotonic() - given, work=title)
            self._deaths_in_a_row = 0
            self._nodes.did_well(self._homes[actor])
            self._idle.append(actor)
            yield pieces[index], result

    def _follow(self, left: int) -> None:
        """Have as many actors as there are pieces left, and room for by now."""
        if time.monotonic() - self._followed < LOOK_SECONDS:
            return
        self._followed = time.monotonic()
        self._nodes.look()
        wanted = self._nodes.num_actors(self._resources, left)
        surplus = len(self._starting) + len(self._idle) + len(self._flying) - wanted
        for _ in range(-surplus):
            self._add()
        for reference in list(self._starting)[: max(0, surplus)]:
            ray.kill(self._starting.pop(reference))

    def _next(self, title: str) -> Any:
        """A call that has ended, or the start of an actor that has; None if none has for long."""
        references = [*self._flying, *self._starting]
        ready, _ = ray.wait(references, num_returns=1, timeout=LOOK_SECONDS)
        now = time.monotonic()
        if ready or self._heard < 0:
            self._heard = now
        elif now - self._heard >= PATIENCE_SECONDS:
            self._heard = now
            if self._nodes.left_out and not self._nodes.room(self._resources):
                raise ClusterError(
                    f"{title}: expected a node to work on, got none but those that are left out: "
                    f"{'; '.join(self._nodes.left_out.values())}"
                )
            if self._flying:
                logger.info("%-12s still at %d of %s", "", len(self._flying), title)
            else:
                logger.info("%-12s waiting for a worker: %s", "", situation())
        return ready[0] if ready else None

    def _add(self) -> None:
        actor = self._host.options(**self._nodes.options(self._resources)).remote()
        self._starting[actor.begin.remote(versions(), self._make)] = actor

    def _started(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            home, found = ray.get(reference)
        except LOST as error:
            self._bury(actor, error)
            return
        except ray.exceptions.RayTaskError as error:
            raise within(error) or error from None
        if found != versions():
            refusal = differs(versions(), {self._nodes.address(home): found})
            if self._nodes.has_others(home, self._resources):
                self._nodes.leave_out(home, refusal)
            elif home not in self._nodes.left_out:
                raise ClusterError(refusal)
        if home in self._nodes.left_out:
            ray.kill(actor)
            self._followed = -float("inf")
            return
        self._homes[actor] = home
        self._idle.append(actor)

    def _bury(self, actor: Any, error: Exception, too_often: bool = False) -> None:
        """Let go of an actor that is lost; another will take its place."""
        home, with_its_node = _grave(actor)
        where = self._nodes.address(home)
        ray.kill(actor)
        self._deaths_in_a_row += 1
        if too_often or self._deaths_in_a_row > MOST_DEATHS * (1 + len(self._homes)):
            raise died_too_often(error, f", the last on node {where}") from None
        self._homes.pop(actor, None)
        self._followed = -float("inf")
        reason = told(error)
        logger.info("%-12s a worker on node %s is gone, another takes over: %s", "", where, reason)
        for_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
        to = "node" if with_its_node else "memory" if for_memory else "itself"
        count("lost", 1, work=self._name, to=to)
        if not with_its_node and not for_memory:
            self._nodes.died(home, reason, self._resources)


def _grave(actor: Any) -> tuple[str, bool]:
    """The id of the node on which an actor died, and whether it died with it."""
    known = ray._private.state.actors(actor._actor_id.hex())
    if not known:
        return "", False
    context = known["DeathCause"].actor_died_error_context
    return known["Address"]["NodeID"], context.reason == context.NODE_DIED
