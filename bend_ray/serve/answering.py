"""Whoever holds a bag and answers questions, in batches: ``Answering``, a ``Service``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bend_ray.export.card import Card, fetch_bag
from bend_ray.serve.bag import Bag
from bend_ray.serve.batches import answer_batch
from bend_ray.serve.meters import Meters
from bend_ray.serve.queries import Question
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.settings import ServeSettings
from bend_ray.serve.voting import Answers

logger = logging.getLogger(__name__)

SMALL, MIDDLE = 2**16, 2**20
"""Pixels or bytes that are read at once, and those that wait behind none but their like."""
MOST_WAITING = 32
"""Pictures or texts that wait in a lane; one more is refused."""

Read = TypeVar("Read")


@dataclass
class Statistics:
    """What the Open Inference Protocol asks for; durations in nanoseconds."""

    inferences: int = 0
    executions: int = 0
    requests: int = 0
    queue_ns: int = 0
    compute_ns: int = 0
    last_ms: int = 0


@dataclass
class _Asked:
    bag: Bag
    question: Question
    answer: asyncio.Future[Answers]
    since: float = field(default_factory=time.perf_counter)


class _Lane:
    """One thread that yields to others, before which a few may wait."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name, _yield_to_others)
        self._waiting = 0

    async def run(self, function: Callable[..., Read], *arguments: Any) -> Read:
        if self._waiting >= MOST_WAITING:
            raise Refusal(503, "expected fewer large requests at a time; ask again")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, function, *arguments)
        finally:
            self._waiting -= 1


def _yield_to_others() -> None:
    # Of this thread alone, on Linux; elsewhere it is the whole process, which nobody may slow.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class Answering:
    """A bag and its questions; everything but ``load`` is for one event loop.

    Args:
        settings: of the deployment.
        meters: count batches.
    """

    def __init__(self, settings: ServeSettings, meters: Meters) -> None:
        self.settings, self.meters = settings, meters
        self.statistics = Statistics()
        self.bag: Bag | None = None
        # One thread: sessions run one batch at a time, and the loop goes on reading requests.
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="bag")
        self._middle, self._large = _Lane("middle"), _Lane("large")
        self._waiting: deque[_Asked] = deque()
        self._turns: asyncio.Task[None] | None = None

    def load(self, export: str) -> Bag:
        """Read a bag, and warm it.

        Args:
            export: its folder or URI.

        Raises:
            DataError: it is damaged, or none.
            StoreError: it cannot be read.
        """
        with tempfile.TemporaryDirectory() as scratch:
            return Bag.load(
                fetch_bag(export, Path(scratch)),
                groups=self.settings.groups,
                threads=max(1, int(self.settings.cpus)),
                batch=self.settings.max_batch_size,
            )

    def go_live(self, bag: Bag) -> None:
        """Let a loaded bag answer from now on; what was asked before is answered by the earlier."""
        earlier = None if self.bag is None else self.bag.card.model_version
        self.bag = bag
        self.meters.loaded(bag.card.model_version, len(bag.card.members), earlier)
        logger.info("bag %s is live, run as %s", bag.card.model_version, bag.way)

    def card(self) -> Card:
        """Of the bag that is live."""
        return self._live().card

    def _live(self) -> Bag:
        if self.bag is None:
            raise Refusal(503, "expected a bag to be loaded, none is yet")
        return self.bag

    async def read(self, cost: int, function: Callable[..., Read], *arguments: Any) -> Read:
        """Call what reads a picture or a text; what costs much stands in nobody's way.

        Args:
            cost: pixels, or bytes.
            function: that reads.
            arguments: of it.
        """
        if cost <= SMALL:
            return function(*arguments)
        return await (self._middle if cost <= MIDDLE else self._large).run(function, *arguments)

    async def ask(self, card: Card, question: Question) -> Answers:
        """Answer in a batch with others."""
        bag = self._live()
        if bag.card is not card and bag.card.image_shape != card.image_shape:
            raise Refusal(503, "the bag was replaced by one of other images; ask again")
        if len(self._waiting) >= self.settings.max_ongoing_requests:
            raise Refusal(503, "expected fewer requests at a time; ask again")
        asked = _Asked(bag, question, asyncio.get_running_loop().create_future())
        self._waiting.append(asked)
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._answer())
        return await asked.answer

    async def _answer(self) -> None:
        """Batch after batch, until nobody waits."""
        if self.settings.batch_wait_ms:
            await asyncio.sleep(self.settings.batch_wait_ms / 1000)
        while self._waiting:
            if batch := self._next():
                await self._answered(batch)

    async def _answered(self, batch: list[_Asked]) -> None:
        started = time.perf_counter()
        loop, items = asyncio.get_running_loop(), [(each.bag, each.question) for each in batch]
        try:
            answers = await loop.run_in_executor(self._computing, answer_batch, items)
        except Exception as error:
            for each in batch:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        for each, answer in zip(batch, answers, strict=True):
            if not each.answer.done():
                each.answer.set_result(answer)
        seconds, waits = time.perf_counter() - started, [started - each.since for each in batch]
        self.meters.batch(seconds, waits, answers)
        self._note(seconds, waits, sum(len(each.question) for each in batch))

    def _note(self, seconds: float, waits: list[float], images: int) -> None:
        seen = self.statistics
        seen.inferences += images
        seen.executions += 1
        seen.requests += len(waits)
        seen.queue_ns += int(1e9 * sum(waits))
        seen.compute_ns += int(1e9 * seconds) * len(waits)
        seen.last_ms = int(time.time() * 1000)

    def _next(self) -> list[_Asked]:
        """Who is answered next: not who has gone, and not who has waited too long."""
        batch: list[_Asked] = []
        images, most = 0, self.settings.max_batch_size
        while self._waiting:
            if batch and images + len(self._waiting[0].question) > most:
                break
            asked = self._waiting.popleft()
            if asked.answer.done():
                continue
            if time.perf_counter() - asked.since > self.settings.max_wait_seconds:
                asked.answer.set_exception(Refusal(503, "too many asked before you; ask again"))
                continue
            batch.append(asked)
            images += len(asked.question)
        return batch
