"""The door in Ray's proxy: how many requests it lets through at once, and which."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from bend_ray.serve.door import PASSED_ON, Door
from bend_ray.serve.meters import Meters, Prometheus
from bend_ray.serve.settings import ServeSettings

SCOPE = {"type": "http", "method": "POST", "path": "/predict", "headers": []}


class Proxy:
    """Ray's proxy, which answers when it is told to."""

    def __init__(self) -> None:
        self.under_way, self.most, self.seen = 0, 0, list[int]()
        self.open = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope["number"])
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.open.wait()
        self.under_way -= 1
        json = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": json})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.mark.parametrize("waiting", [0, 72])
def test_so_many_are_under_way_and_the_others_keep_their_order(waiting: int) -> None:
    async def scene() -> tuple[Proxy, list[Any]]:
        proxy = Proxy()
        door = Door(proxy, ServeSettings(), None, Meters(Prometheus()))
        gone = {PASSED_ON + 1, PASSED_ON + 2} if waiting else set()
        statuses: list[Any] = [None] * (PASSED_ON + waiting)

        async def ask(number: int) -> None:
            told = iter([{"type": "http.request", "body": b"", "more_body": False}])

            async def receive() -> Message:
                if (message := next(told, None)) is not None:
                    return message
                if number not in gone:
                    await asyncio.Event().wait()
                return {"type": "http.disconnect"}

            async def send(message: Message) -> None:
                statuses[number] = message.get("status", statuses[number])

            await door({**SCOPE, "number": number}, receive, send)

        asked = [asyncio.create_task(ask(number)) for number in range(len(statuses))]
        while proxy.under_way < PASSED_ON:
            await asyncio.sleep(0)
        proxy.open.set()
        await asyncio.gather(*asked, return_exceptions=True)
        return proxy, [status for number, status in enumerate(statuses) if number in gone]

    proxy, of_gone = asyncio.run(scene())
    assert proxy.most == PASSED_ON
    # Who hung up while he waited costs Ray nothing.
    whole = range(PASSED_ON + waiting)
    passed = [n for n in whole if not waiting or n not in (PASSED_ON + 1, PASSED_ON + 2)]
    assert proxy.seen == passed
    assert set(of_gone) <= {None}
