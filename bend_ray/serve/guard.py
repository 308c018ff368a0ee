"""What stands before every route: a token, limits, deadlines, and no traceback behind it.

A request counts when its body is there: until then it costs a connection and what has come.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import anyio
from opentelemetry import trace
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.opentelemetry import OpenTelemetryMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bend_ray.errors import BendError
from bend_ray.serve.meters import Meters, route_of
from bend_ray.serve.queries import Refusal
from bend_ray.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

LIVE = "/v2/health/live"
OPEN = frozenset({"/", "/docs", "/openapi.json", LIVE, "/v2/health/ready", "/-/healthz"})
"""Answered without a token: health, and pages that say nothing of what is served."""
BODY = "bend_ray.body"
"""A whole body in a scope's extensions: a door has let the request in."""
BODY_SECONDS, SLOWEST = 5.0, 2**18
"""For a body, and bytes that it may have one more second for."""
LARGE, MOST_LARGE = 2**20, 4
"""Bytes of a large body, and how many of these are read on at a time."""
MOST_HELD = 16
"""Bodies of the largest size that all of a door's requests together may be."""

_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
        b"object-src 'none'",
    ),
]
_SECURE = (b"strict-transport-security", b"max-age=31536000")


class _Answer:
    """What is sent for one request, with the headers of all."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self._headers = send, headers
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self._headers]}
        await self._send(message)


class Guard:
    """An ASGI app around another."""

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, token: str | None, meters: Meters
    ) -> None:
        self.settings = settings
        self._app, self.meters, self._token = app, meters, token
        self.peers: Counter[str] = Counter()
        self._ongoing = self._held = self.lingering = 0
        self._large = asyncio.Semaphore(MOST_LARGE)
        most = settings.max_ongoing_requests
        self.too_many = f"expected at most {most} requests at a time; ask again"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever comes of it."""
        passed = scope["extensions"] = scope.get("extensions") or {}
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif BODY in passed:
            await self._answer(scope, receive, _Answer(send, []))
        else:
            await self._let_in(scope, receive, send)

    @property
    def is_full(self) -> bool:
        """Whether one more request would be refused."""
        return self._ongoing >= self.settings.max_ongoing_requests

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = _HEADERS + ([_SECURE] if scope.get("scheme") == "https" else [])
        started, answer = time.perf_counter(), _Answer(send, own)
        route = route_of(scope["path"])
        scope["route"] = SimpleNamespace(path_format=route)  # as starlette calls its spans by
        try:
            await self._answer(scope, receive, answer)
        except (ClientDisconnect, asyncio.CancelledError) as error:
            began, answer.status = answer.status is not None, 499
            if began or not isinstance(error, ClientDisconnect):
                raise  # and the connection is closed
        finally:
            status, seconds = answer.status or 500, time.perf_counter() - started
            self.meters.request(route, status, seconds)
            if self.settings.request_log:
                _log(scope, status, seconds)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Have the app answer, or say what is wrong."""
        try:
            self._check(scope)
            async with self._body(scope, receive) as body:
                await self._pass_on(scope, body, receive, answer.send)
            return
        except BendError as error:
            refusal = Refusal.of(error)
            status, told, headers = refusal.status, refusal.message, refusal.headers
        except HTTPException as error:
            status, told, headers = error.status_code, error.detail, dict(error.headers or {})
            told = "expected one of the paths that /docs lists" if status == 404 else told
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("a bug of ours")
            if answer.status is not None:
                raise
            status, told, headers = 500, "this is a bug of the server, not of the request", {}
        await JSONResponse({"error": told}, status, headers)(scope, receive, answer.send)

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the app, and stop it where nobody waits for it any more."""
        scope["app"] = self  # so that routes raise what they refuse
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def once() -> Message:
            return next(messages, {"type": "http.disconnect"})

        if BODY in scope["extensions"]:  # a door watches
            await self._app(scope, once, send)
            return

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        with anyio.CancelScope() as waited_for:
            gone = asyncio.ensure_future(until_gone())
            gone.add_done_callback(lambda _: waited_for.cancel())
            try:
                await self._app(scope, once, send)
            finally:
                gone.cancel()
        if waited_for.cancelled_caught:
            raise ClientDisconnect

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if scope["path"] not in OPEN and not bears(self._token, headers.get("authorization", "")):
            raise Refusal(401, "expected the header Authorization: Bearer TOKEN")
        if int(headers.get("content-length", "0")) > (most := self._most(scope)):
            raise _too_large(most)

    def _most(self, scope: Scope) -> int:
        """Bytes of the body: pictures may have more than what can only be numbers."""
        kind = Headers(scope=scope).get("content-type", "").strip().lower()
        most, is_large = self.settings.max_body_bytes, kind.startswith(("image/", "multipart/"))
        return most if is_large else min(most, self.settings.max_text_bytes or most)

    @asynccontextmanager
    async def _body(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """A request's whole body, inflated; within, the request counts."""
        passed = scope["extensions"]
        if BODY in passed or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            yield passed.get(BODY, b"")
            return
        chunks: list[bytes] = []
        counted = 0
        try:
            await self._read(scope, receive, chunks)
            body = await self._inflated(scope, b"".join(chunks))
            if self.is_full:
                raise Refusal(503, self.too_many)
            counted = 1
            self._ongoing += counted
            self.meters.ongoing(self._ongoing)
            yield body
        finally:
            self._held -= sum(map(len, chunks))
            self._ongoing -= counted
            self.meters.ongoing(self._ongoing)

    async def _read(self, scope: Scope, receive: Receive, chunks: list[bytes]) -> None:
        now = asyncio.get_running_loop().time
        most, started, got, is_large = self._most(scope), now(), 0, False
        try:
            async with asyncio.timeout(BODY_SECONDS) as deadline:
                async for chunk in Request(scope, receive).stream():
                    chunks.append(chunk)
                    got += len(chunk)
                    self._held += len(chunk)
                    if got > most:
                        raise _too_large(most)
                    if self._held > MOST_HELD * self.settings.max_body_bytes:
                        raise Refusal(503, "expected fewer large bodies at a time; ask again")
                    if got > LARGE and not is_large:
                        before = now()
                        deadline.reschedule(None)
                        is_large = await self._large.acquire()
                        started += now() - before
                    deadline.reschedule(started + BODY_SECONDS + got / SLOWEST)
        except TimeoutError:
            told = f"expected a body in {BODY_SECONDS:.0f} s, or {SLOWEST >> 10} KiB of it a second"
            raise Refusal(408, told) from None
        finally:
            if is_large:
                self._large.release()

    async def _inflated(self, scope: Scope, body: bytes) -> bytes:
        coding = Headers(scope=scope).get("content-encoding", "").strip().lower()
        if coding in ("", "identity"):
            return body
        if coding not in ("gzip", "x-gzip", "deflate"):
            raise Refusal(415, "Content-Encoding: expected gzip, deflate or none")
        body = await asyncio.to_thread(inflate, body, self._most(scope))
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"content-encoding"]
        return body


def _log(scope: Scope, status: int, seconds: float) -> None:
    """A line about a request, without anything that it holds."""
    told = {
        "time": time.time(),
        "peer": (scope.get("client") or ("",))[0],
        "method": scope["method"],
        "route": route_of(scope["path"]),
        "status": status,
        "seconds": round(seconds, 6),
        "traceparent": Headers(scope=scope).get("traceparent", ""),
    }
    logger.info("%s", json.dumps(told))


def traced(app: ASGIApp) -> ASGIApp:
    """With a span a request where OpenTelemetry is set up; it would cost a fifth of small ones."""
    is_set_up = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    return OpenTelemetryMiddleware(app) if is_set_up else app


def bears(token: str | None, authorization: str) -> bool:
    """Whether a header Authorization bears the token; always where there is none."""
    scheme, _, said = authorization.partition(" ")
    given = said.strip().encode("latin-1", "replace")
    is_right = token is None or hmac.compare_digest(given, token.encode())
    return token is None or (is_right and scheme.lower() == "bearer")


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"expected a body of at most {most} bytes, got more")


def inflate(body: bytes, most: int) -> bytes:
    """What gzip, zlib or bare deflate stands for; refused where it is more than ``most`` bytes."""
    parts, size = [], 0
    # 47: gzip or zlib, as its head says; -15: deflate without a head, as some send it.
    kind = 47 if body[:1] in (b"\x1f", b"\x78") else -15
    while body:
        stream = zlib.decompressobj(kind)
        try:
            parts.append(stream.decompress(body, most + 1 - size))
        except zlib.error as error:
            raise Refusal(400, f"Content-Encoding: expected its bytes, got: {error}") from None
        size += len(parts[-1])
        if size > most:
            raise _too_large(most)
        if not stream.eof:
            raise Refusal(400, "Content-Encoding: expected its bytes to the end, got fewer")
        body = stream.unused_data  # gzip may have several members
    return b"".join(parts)
