"""The door in Ray Serve's proxies: a guard before the way to a replica, and a stricter protocol.

``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=bend_ray.serve.door:middlewares`` in the environment of
a machine puts it into the proxy there. A whole body is handed on with its request; without it
replicas fetch it in a call of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from dataclasses import asdict, replace
from typing import Any

import uvicorn
from ray.serve._private import default_impl
from ray.util import metrics
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http import auto

from bend_ray.process.environment import variable
from bend_ray.serve.guard import BODY, LIVE, Guard, traced
from bend_ray.serve.listening import Listening
from bend_ray.serve.meters import Meters
from bend_ray.serve.queries import Refusal
from bend_ray.serve.settings import SETTINGS_VARIABLE, TOKEN_VARIABLE, ServeSettings
from bend_ray.serve.wire import Protocol

logger = logging.getLogger("ray.serve")

CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PASSED_ON = 128
"""Requests that one proxy has under way; the others wait at its door, in their order.

Each that is under way makes all others dearer to Ray.
"""
ACCEPTED = 32
"""Connections accepted in one turn of a proxy's loop: uvloop takes one a socket."""
LISTENING_VARIABLE = "BEND_SERVE_LISTENING"
"""JSON of a ``Listening`` for Ray's gRPC proxy: by itself it takes all addresses, and no TLS."""

# Ray's proxy obeys some headers, among them one that takes every deadline away.
_PASSED = frozenset(
    {
        *(b"host", b"authorization", b"content-type", b"content-length", b"accept", b"user-agent"),
        *(b"inference-header-content-length", b"traceparent", b"tracestate", b"origin"),
    }
)


_HONEST = {
    404: "expected a bag, none is deployed or it is stopping",
    408: "no replica has answered in time",
    500: "the replica that was asked is gone",
}


class Door(Guard):
    """A guard before Ray's proxy, which answers some requests by itself, in its own words."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._turns = asyncio.Semaphore(PASSED_ON)

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        if scope["path"] == LIVE:
            await JSONResponse({"live": True})(scope, receive, send)
            return
        async with self._turns:
            if await Request(scope, receive).is_disconnected():
                raise ClientDisconnect
            await self._ask_ray(scope, body, receive, send)

    async def _ask_ray(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        headers = [(k, v) for k, v in scope["headers"] if k in _PASSED and v.isascii()]
        inner = {**scope, "headers": headers, "extensions": {BODY: body}, "state": {}}
        first = iter([{"type": "http.request", "body": b"", "more_body": False}])
        start: Message | None = None
        told, gone = b"", False

        async def receiving() -> Message:
            nonlocal gone
            message = next(first, None) or await receive()
            gone = message["type"] == "http.disconnect"
            return message

        async def sending(message: Message) -> None:
            nonlocal start, told
            if message["type"] == "http.response.start":
                start = message
            assert start is not None
            if not _is_rays(start):
                await send(message)
            elif message["type"] == "http.response.body":
                told += message.get("body", b"")

        await self._app(inner, receiving, sending)
        if start is None and gone:
            raise ClientDisconnect
        if start is None or _is_rays(start):
            raise _honest(500 if start is None else start["status"], told)


def _is_rays(start: Message) -> bool:
    """Whether an answer is a refusal of the proxy's own: ours are JSON."""
    kind = dict(start.get("headers", [])).get(b"content-type", b"")
    return start["status"] >= 400 and not kind.startswith(b"application/json")


def _honest(status: int, told: bytes) -> Refusal:
    """What a proxy's refusal means to a client: ask again."""
    words = _HONEST.get(status) or told.decode("utf-8", "replace")[:200] or "not now"
    return Refusal(503, f"{words}; ask again")


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy puts before itself; called once, before it listens."""
    # Uvicorn names its protocol here, and Ray leaves it the choice.
    auto.AutoHTTPProtocol = Protocol
    uvicorn.Server.startup = _startup  # type: ignore[method-assign, assignment]
    default_impl.add_grpc_address = _add_grpc_address
    settings = ServeSettings.model_validate_json(variable(SETTINGS_VARIABLE) or "{}")
    token = variable(TOKEN_VARIABLE)
    door = Middleware(Door, settings=settings, token=token, meters=Meters(metrics))
    return [Middleware(traced), door]


_start = uvicorn.Server.startup


async def _startup(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
    await _start(server, sockets and [each.dup() for each in sockets for _ in range(ACCEPTED)])


def _add_grpc_address(server: Any, address: str) -> None:
    where = Listening(**json.loads(variable(LISTENING_VARIABLE) or '{"host": "::", "port": 0}'))
    replace(where, grpc_port=int(address.rpartition(":")[2])).add_to(server)


def put_up(settings: ServeSettings, where: Listening) -> None:
    """Put the door into the proxies of a cluster that this process is about to start."""
    os.environ[CALLBACK_VARIABLE] = "bend_ray.serve.door:middlewares"
    os.environ[SETTINGS_VARIABLE] = settings.model_dump_json()
    os.environ[LISTENING_VARIABLE] = json.dumps(asdict(where))
