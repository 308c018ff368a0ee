"""Whoever holds a bag and answers questions, in batches: ``Answering``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from bend_ray.errors import ConfigError, DataError
from bend_ray.export.card import Card
from bend_ray.serve.bag import Bag, Cascade, is_finite
from bend_ray.serve.meters import Meters
from bend_ray.serve.queries import Answers, Inputs, Refusal, Wants
from bend_ray.serve.settings import ServeSettings, Stop
from bend_ray.storage.masking import cause

logger = logging.getLogger(__name__)

SMALL, MIDDLE = 2**16, 2**20
"""Pixels or bytes that are read at once, and those that wait behind none but their like."""
MOST_WAITING = 32
"""Pictures or texts that wait for a reader; one more is refused."""

Read = TypeVar("Read")


@dataclass
class Statistics:
    """What was done since the start; ``last``: when, in seconds since 1970."""

    examples: int = 0
    batches: int = 0
    questions: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    last: float = 0.0


@dataclass
class _Asked:
    bag: Bag
    inputs: Inputs
    stop: Stop
    answer: asyncio.Future[Answers]
    since: float = field(default_factory=time.perf_counter)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


class _Reader:
    """One thread that yields to others, before which a few may wait."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "reader", _yield_to_others)
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
    if sys.platform == "linux":  # elsewhere it would be the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class Answering:
    """A bag and its questions; everything but ``load`` is for one event loop."""

    def __init__(self, settings: ServeSettings, meters: Meters) -> None:
        self.settings, self.meters = settings, meters
        self.statistics = Statistics()
        self.bag: Bag | None = None
        # One thread: sessions run one batch at a time, and the loop goes on reading requests.
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="bag")
        self._middle, self._large = _Reader(), _Reader()
        self._waiting: deque[_Asked] = deque()
        self._turns: asyncio.Task[None] | None = None

    def load(self, export: str) -> Bag:
        """Read and warm the bag in a folder or at a URI; DataError or StoreError for none."""
        bag, settings = Bag.load(export, self.settings), self.settings
        if not settings.stop.is_patient and "confidence" not in bag.card.task.known:
            raise ConfigError(
                f"stop_when_decided, confidence: expected none, as the bag is of a "
                f"{bag.card.task.kind}"
            )
        if settings.student is None:
            return bag
        return Cascade(Bag.load(settings.student, settings), bag, settings.unsure_below)

    def go_live(self, bag: Bag) -> None:
        """Let a loaded bag answer from now on; what was asked before is answered by the earlier."""
        self.bag = bag
        self.meters.bag(bag.card.model_version, "live")
        logger.info("bag %s is live, run as %s", bag.card.model_version, bag.way or "torch")

    def card(self) -> Card:
        """Of the bag that is live."""
        return self._live().card

    def _live(self) -> Bag:
        if self.bag is None:
            raise Refusal(503, "expected a bag to be loaded, none is yet")
        return self.bag

    async def read(self, cost: int, function: Callable[..., Read], *arguments: Any) -> Read:
        """Call what reads so many pixels or bytes; what costs much stands in nobody's way."""
        if cost <= SMALL:
            return function(*arguments)
        return await (self._middle if cost <= MIDDLE else self._large).run(function, *arguments)

    async def ask(
        self, card: Card, inputs: Inputs, wants: Wants, everyone: bool = False
    ) -> tuple[Card, Answers]:
        """Answer inputs of a card in a batch with others, and say the card of who answered.

        They are at most ``max_batch_size`` examples. With ``everyone`` all members must be asked.
        """
        bag = self._live()
        wants.check(bag.card)
        stop = Stop(everyone=True) if everyone else wants.stop(self.settings.stop)
        asked = _Asked(bag, inputs, stop, asyncio.get_running_loop().create_future())
        if bag.card.takes != card.takes:
            raise Refusal(503, "the bag was replaced by one of other inputs; ask again")
        most = self.settings.max_batch_size
        if not 1 <= len(asked) <= most:
            told = f"got {len(asked)}; the server's option max_batch_size says how many"
            raise DataError(f"expected 1 to {most} examples, {told}")
        if len(self._waiting) >= self.settings.max_ongoing_requests:
            raise Refusal(503, "expected fewer requests at a time; ask again")
        self._waiting.append(asked)
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._answer())
        return bag.card, wants.promised(bag.card, await asked.answer)

    async def _answer(self) -> None:
        """Batch after batch, until nobody waits."""
        if self.settings.batch_wait_ms:
            await asyncio.sleep(self.settings.batch_wait_ms / 1000)
        while self._waiting:
            if batch := self._next():
                await self._answered(batch)

    def _next(self) -> list[_Asked]:
        """Who is answered next, by one bag: not who has gone, and not who waited too long."""
        batch: list[_Asked] = []
        examples, now = 0, time.perf_counter()
        while self._waiting:
            asked = self._waiting[0]
            examples += len(asked)
            if batch and (examples > self.settings.max_batch_size or asked.bag is not batch[0].bag):
                break
            self._waiting.popleft()
            if now - asked.since > self.settings.max_wait_seconds and not asked.answer.done():
                asked.answer.set_exception(Refusal(503, "too many asked before you; ask again"))
            if asked.answer.done():
                examples -= len(asked)
            else:
                batch.append(asked)
        return batch

    async def _answered(self, batch: list[_Asked]) -> None:
        started, loop = time.perf_counter(), asyncio.get_running_loop()
        try:
            if batch[0].bag.is_quick:
                answers = _together(batch)
            else:
                answers = await loop.run_in_executor(self._computing, _together, batch)
        except Exception as error:
            if len(batch) > 1:  # of one of them, which must not be the others' harm
                for each in batch:
                    await self._answered([each])
            elif not batch[0].answer.done():
                told = f"expected inputs that the network takes, it says {cause(error)[:200]}"
                batch[0].answer.set_exception(DataError(told))
            return
        for each, answer in zip(batch, answers, strict=True):
            if not each.answer.done() and is_finite(answer).all():
                each.answer.set_result(answer)
            elif not each.answer.done():
                told = "expected inputs that the network takes, it answers with nan"
                each.answer.set_exception(DataError(told))
        seconds, waits = time.perf_counter() - started, [started - each.since for each in batch]
        self.meters.batch(seconds, waits, answers)
        seen = self.statistics
        seen.examples += sum(map(len, batch))
        seen.batches += 1
        seen.questions += len(batch)
        seen.queue_seconds += sum(waits)
        seen.compute_seconds += seconds * len(batch)
        seen.last = time.time()


def _together(batch: Sequence[_Asked]) -> list[Answers]:
    """The answer to each, by their one bag."""
    inputs = {
        name: np.concatenate([asked.inputs[name] for asked in batch]) for name in batch[0].inputs
    }
    said = batch[0].bag.answer(inputs, [asked.stop for asked in batch for _ in range(len(asked))])
    ends = np.cumsum([len(asked) for asked in batch])[:-1]
    parts = {name: np.split(values, ends) for name, values in said.items()}
    return [{name: part[place] for name, part in parts.items()} for place in range(len(batch))]
