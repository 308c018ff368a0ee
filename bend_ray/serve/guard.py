"""What stands before every route: a token, a body limit, and no traceback behind it."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bend_ray.serve.meters import Meters
from bend_ray.serve.refusals import Refusal

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"})
"""Answered without a token: health, and pages that say nothing of what is served."""

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; frame-ancestors 'none'",
    ),
]


class Guard:
    """An ASGI app around another.

    Args:
        app: that answers.
        meters: count what passes.
        max_body: bytes of a request.
        token: that requests must bear; None: everybody is welcome.
    """

    def __init__(self, app: App, meters: Meters, max_body: int, token: str | None) -> None:
        self._app, self._meters = app, meters
        self._max_body, self._token = max_body, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever comes of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def headed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        self._meters.ongoing.inc()
        try:
            await self._answer(scope, receive, headed)
        finally:
            self._meters.ongoing.dec()
            route = getattr(scope.get("route"), "path", "none")
            self._meters.request(route, status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = False

        async def beginning(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._limited(receive), beginning)
        except Refusal as refusal:
            await _refuse(send, refusal)
        except Exception:
            logger.exception("a bug of ours")
            if began:
                raise
            await _refuse(send, Refusal(500, "this is a bug of the server, not of the request"))

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._token is not None and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
                raise Refusal(401, "expected the header Authorization: Bearer TOKEN")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18:
            raise Refusal(400, "Content-Length: expected a number of bytes")
        if int(length) > self._max_body:
            raise self._too_large()
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise Refusal(415, "Content-Encoding: expected none, send the body uncompressed")

    def _limited(self, receive: Receive) -> Receive:
        """``receive`` that stops a body which says nothing of its length, or lies."""
        got = 0

        async def limited() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self._max_body:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> Refusal:
        return Refusal(413, f"expected a body of at most {self._max_body} bytes, got more")


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"error": refusal.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.status == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
