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
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.exceptions import HTTPException

from bend_ray.serve.meters import Meters, route_of, span
from bend_ray.serve.queries import Refusal
from bend_ray.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

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


class Gone(Exception):  # noqa: N818 - nobody made an error
    """The client has hung up."""


class _Answer:
    """What is sent for one request, with the headers of all, and without the body of a HEAD."""

    def __init__(self, scope: Scope, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self._bare, self._headers = send, scope["method"] == "HEAD", headers
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self._headers]}
        elif self._bare:
            message = {**message, "body": b""}
        await self._send(message)


class Guard:
    """An ASGI app around another."""

    def __init__(
        self, app: App, settings: ServeSettings, token: str | None, meters: Meters
    ) -> None:
        self.settings = settings
        self._app, self._meters, self._token = app, meters, token
        self.peers: Counter[str] = Counter()
        self._ongoing = self._held = self.lingering = 0
        self._large = asyncio.Semaphore(MOST_LARGE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever comes of it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (body := (scope.get("extensions") or {}).get(BODY)) is None:
            await self._let_in(scope, receive, send)
        else:
            await self._answer(scope, body, None, _Answer(scope, send, []))

    @property
    def is_full(self) -> bool:
        """Whether one more request would be refused."""
        return self._ongoing >= self.settings.max_ongoing_requests

    @property
    def too_many(self) -> str:
        """What a refused request is told."""
        return (
            f"expected at most {self.settings.max_ongoing_requests} requests at a time; ask again"
        )

    def refused(self, status: int) -> None:
        """Count a request that was refused before it was read."""
        self._meters.request("none", status, 0.0)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = _HEADERS + ([_SECURE] if scope.get("scheme") == "https" else [])
        started, answer = time.perf_counter(), _Answer(scope, send, own)
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else dict(scope)
        route = route_of(scope["path"])
        with span(scope["method"], route, scope["headers"]) as finish:
            try:
                self._check(scope)
                async with self._body(inner, receive) as body:
                    await self._answer(inner, body, receive, answer)
            except Refusal as refusal:
                await say(answer.send, refusal.status, {"error": refusal.message}, refusal.headers)
            except (Gone, asyncio.CancelledError) as error:
                began, answer.status = answer.status is not None, 499
                if began or not isinstance(error, Gone):
                    raise  # and the connection is closed
            finally:
                status, seconds = answer.status or 500, time.perf_counter() - started
                finish(status)
                self._meters.request(route, status, seconds)
                if self.settings.request_log:
                    _log(scope, status, seconds)

    async def _answer(
        self, scope: Scope, body: bytes, receive: Receive | None, answer: _Answer
    ) -> None:
        """Have the app answer, or say what is wrong; without ``receive`` another watches."""
        send = answer.send
        try:
            self._check_token(scope)
            await self._pass_on(scope, body, receive, send)
        except Refusal as refusal:
            await say(send, refusal.status, {"error": refusal.message}, refusal.headers)
        except HTTPException as error:
            told = "expected one of the paths that /docs lists"
            told = told if error.status_code == 404 else error.detail
            await say(send, error.status_code, {"error": told}, dict(error.headers or {}))
        except Gone:
            raise
        except Exception:
            logger.exception("a bug of ours")
            if answer.status is not None:
                raise
            await say(send, 500, {"error": "this is a bug of the server, not of the request"})

    async def _pass_on(
        self, scope: Scope, body: bytes, receive: Receive | None, send: Send
    ) -> None:
        """Run the app, and stop it where nobody waits for it any more."""
        scope["app"] = self  # so that routes raise what they refuse
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def once() -> Message:
            return next(messages, {"type": "http.disconnect"})

        if receive is None:
            await self._app(scope, once, send)
            return
        working, ended = asyncio.current_task(), False
        assert working is not None

        def stop(gone: asyncio.Task[None]) -> None:
            if not ended:
                working.cancel()

        gone = asyncio.ensure_future(_until_gone(receive))
        gone.add_done_callback(stop)
        try:
            await self._app(scope, once, send)
        except asyncio.CancelledError:
            if not gone.done():
                raise
            working.uncancel()
            raise Gone from None
        finally:
            ended = True
            gone.cancel()

    def _check(self, scope: Scope) -> None:
        self._check_token(scope)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18:
            raise Refusal(400, "Content-Length: expected a number of bytes")
        if int(length) > self._most(scope):
            raise self._too_large(scope)

    def _check_token(self, scope: Scope) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if scope["path"] not in OPEN and not bears(self._token, given.decode("latin-1")):
            raise Refusal(401, "expected the header Authorization: Bearer TOKEN")

    def _most(self, scope: Scope) -> int:
        """Bytes of the body: pictures may have more than what can only be numbers."""
        kind = dict(scope["headers"]).get(b"content-type", b"").strip().lower()
        most, is_large = self.settings.max_body_bytes, kind.startswith((b"image/", b"multipart/"))
        return most if is_large else min(most, self.settings.max_text_bytes or most)

    def _too_large(self, scope: Scope) -> Refusal:
        return Refusal(413, f"expected a body of at most {self._most(scope)} bytes, got more")

    @asynccontextmanager
    async def _body(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """A request's whole body, inflated; within, the request counts."""
        if scope["method"] in ("GET", "OPTIONS"):
            yield b""
            return
        chunks: list[bytes] = []
        try:
            await self._read(scope, receive, chunks)
            body = await self._inflated(scope, b"".join(chunks))
            if self.is_full:
                raise Refusal(503, self.too_many)
            self._ongoing += 1
            self._meters.ongoing(self._ongoing)
            try:
                yield body
            finally:
                self._ongoing -= 1
                self._meters.ongoing(self._ongoing)
        finally:
            self._held -= sum(map(len, chunks))

    async def _read(self, scope: Scope, receive: Receive, chunks: list[bytes]) -> None:
        most = self._most(scope)
        now = asyncio.get_running_loop().time
        started = now()
        got, more, is_large = 0, True, False
        try:
            async with asyncio.timeout(BODY_SECONDS) as deadline:
                while more:
                    deadline.reschedule(started + BODY_SECONDS + got / SLOWEST)
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    chunks.append(chunk)
                    got += len(chunk)
                    self._held += len(chunk)
                    if got > most:
                        raise self._too_large(scope)
                    if self._held > MOST_HELD * self.settings.max_body_bytes:
                        raise Refusal(503, "expected fewer large bodies at a time; ask again")
                    if got > LARGE and not is_large:
                        before = now()
                        deadline.reschedule(None)
                        is_large = await self._large.acquire()
                        started += now() - before
        except TimeoutError:
            told = f"expected a body in {BODY_SECONDS:.0f} s, or {SLOWEST >> 10} KiB of it a second"
            raise Refusal(408, told) from None
        finally:
            if is_large:
                self._large.release()

    async def _inflated(self, scope: Scope, body: bytes) -> bytes:
        coding = dict(scope["headers"]).get(b"content-encoding", b"").strip().lower()
        if coding in (b"", b"identity"):
            return body
        if coding not in (b"gzip", b"x-gzip", b"deflate"):
            raise Refusal(415, "Content-Encoding: expected gzip, deflate or none")
        inflated = await asyncio.to_thread(inflate, body, self._most(scope))
        if inflated is None:
            raise self._too_large(scope)
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"content-encoding"]
        return inflated


def _log(scope: Scope, status: int, seconds: float) -> None:
    """A line about a request, without anything that it holds."""
    peer, headers = (scope.get("client") or ("",))[0], dict(scope["headers"])
    told = {
        "time": time.time(),
        "peer": peer,
        "method": scope["method"],
        "route": route_of(scope["path"]),
        "status": status,
        "seconds": round(seconds, 6),
        "traceparent": headers.get(b"traceparent", b"").decode("latin-1"),
    }
    logger.info("%s", json.dumps(told))


async def say(send: Send, status: int, told: Any, headers: dict[str, str] | None = None) -> None:
    """Send a JSON response."""
    body = json.dumps(told).encode()
    own = {"content-type": "application/json", "content-length": str(len(body))}
    pairs = [(k.encode(), v.encode()) for k, v in (own | (headers or {})).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def bears(token: str | None, authorization: str) -> bool:
    """Whether a header Authorization bears the token; always where there is none."""
    scheme, _, said = authorization.partition(" ")
    given = said.strip().encode("latin-1", "replace")
    is_right = token is None or hmac.compare_digest(given, token.encode())
    return token is None or (is_right and scheme.lower() == "bearer")


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def inflate(body: bytes, most: int) -> bytes | None:
    """What gzip, zlib or bare deflate stands for; None where that is more than ``most`` bytes."""
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
            return None
        if not stream.eof:
            raise Refusal(400, "Content-Encoding: expected its bytes to the end, got fewer")
        body = stream.unused_data  # gzip may have several members
    return b"".join(parts)
