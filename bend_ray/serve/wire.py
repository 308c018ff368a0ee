"""HTTP/1.1 as strangers speak it: uvicorn's protocol over h11, with limits of time and size.

httptools, uvicorn's first choice, takes what follows an offered upgrade for another request, and
reads heads without end; h11 does neither.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from bend_ray.serve.guard import Guard
from bend_ray.serve.queries import RETRY_AFTER

HEAD_BYTES = 32 * 2**10
MOST_HEADERS = 100
HEAD_SECONDS = 10.0
"""In which a head must be there, from its connection or its first byte on."""
SEND_SECONDS = 30.0
"""In which a client must take what it is sent."""
LINGER_SECONDS = 2.0
"""For which a connection is read after a refusal: closed at once, it would reset the answer."""
LINGER_BYTES, LINGER_PAUSE = 2**24, 0.003
"""Of what is read then, and seconds between two reads of all such connections together."""
_SMALL, _MOST_SMALL = 64, 1024
"""Bytes of a small chunk, and how many of them a body may have: each costs as much as 64 KiB."""
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})\r\n", re.IGNORECASE)


class _Connection(h11.Connection):
    """h11's, which also refuses what proxies disagree on, or what costs much and says little."""

    _small = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._small = 0
            if event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("expected HTTP/1.1", error_status_hint=505)
            names = [name for name, _ in event.headers]
            size = sum(len(name) + len(value) + 4 for name, value in event.headers)
            if len(names) > MOST_HEADERS or size + len(event.target) > HEAD_BYTES:
                told = f"expected at most {MOST_HEADERS} headers, and {HEAD_BYTES} bytes of them"
                raise h11.RemoteProtocolError(told, error_status_hint=431)
            if b"content-length" in names and b"transfer-encoding" in names:
                raise h11.RemoteProtocolError("expected Content-Length or chunks, got both")
        elif isinstance(event, h11.Data) and len(event.data) < _SMALL:
            self._small += 1
            if self._small > _MOST_SMALL:
                raise h11.RemoteProtocolError("expected a body in larger chunks")
        return event


class Protocol(H11Protocol):
    """One connection; its application is, or wraps, a ``Guard``."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.conn = _Connection(h11.SERVER, HEAD_BYTES)
        app: Any = self.app
        while not isinstance(app, Guard):
            app = app.app
        self._guard: Guard = app
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None
        self._ended: bool = False
        self._read_after = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it, and wait for its first head."""
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""
        self._guard.peers[self._peer] += 1
        if self._guard.peers[self._peer] > self._guard.settings.max_connections_per_peer:
            self._refuse(503, "expected fewer connections from one address")
        else:
            self._within(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._guard.peers -= Counter([self._peer])
        self._guard.lingering -= self._ended
        self._within(None)
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take what it is sent: for a while."""
        super().pause_writing()
        self._sending = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        if self._sending is not None:
            self._sending.cancel()

    def data_received(self, data: bytes) -> None:
        """Read on, unless there is nothing more to say."""
        if self._ended:
            self._read_after += len(data)
            if self._read_after > LINGER_BYTES:
                self.transport.abort()
            self.transport.pause_reading()
            self.loop.call_later(LINGER_PAUSE * self._guard.lingering, self._resume)
            return
        if self._guard.is_full and self._refused_unread(data):
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            self._within(HEAD_SECONDS)
        else:
            self._within(None)

    def on_response_complete(self) -> None:
        """Go on with the next request; after a body that nobody wants there is none."""
        super().on_response_complete()
        # Answered before the body was there: to parse the rest would cost as much as to read it.
        if self.conn.their_state is h11.SEND_BODY:
            self._end()

    def _should_upgrade(self) -> bool:
        """Never: an offer may be passed over, and is answered as if it were none."""
        return False

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _within(self, seconds: float | None) -> None:
        """Have something happen by then; None: it has. A deadline that runs is not put off."""
        seconds = None if self._ended else seconds
        if seconds is None and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif seconds is not None and self._timer is None:
            self._timer = self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        self._timer = None
        if self.conn.trailing_data[0] and self.conn.their_state is h11.IDLE:
            self._refuse(408, f"expected a whole head in {HEAD_SECONDS:g} s")
        else:
            self.transport.close()

    def _refused_unread(self, data: bytes) -> bool:
        """Refuse a whole request that comes alone in one piece, for a tenth of what reading costs.

        Where more come than can be answered, refusing must cost next to nothing.
        """
        head, blank, body = data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        states = {self.conn.their_state, self.conn.our_state}
        if not (blank and head.startswith(b"POST ") and length and states == {h11.IDLE}):
            return False
        if self.conn.trailing_data[0] or b"transfer-encoding" in head.lower():
            return False
        if len(_LENGTH.findall(head + b"\r\n")) > 1 or len(body) != int(length[1]):
            return False
        self._within(None)
        self._unset_keepalive_if_required()
        # Told at once, a client that asks again at once would cost others their answers.
        self.flow.pause_reading()
        self.loop.call_later(RETRY_AFTER, self._refuse_and_go_on)
        return True

    def _refuse_and_go_on(self) -> None:
        if not self._ended and not self.transport.is_closing():
            self._say(503, self._guard.too_many, b"")
            super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What h11 could not read; called while its error is handled."""
        error = sys.exception()
        self._refuse(getattr(error, "error_status_hint", 400), f"HTTP/1.1: {error or msg}")

    def _refuse(self, status: int, message: str) -> None:
        """Say so, then nothing more."""
        begun, cycle = False, self.cycle
        if cycle is not None:
            begun = cycle.response_started and not cycle.response_complete
            cycle.disconnected = True
            cycle.message_event.set()
        if not self._ended and not begun:
            self._say(status, message, b"connection: close\r\n")
        self._end()

    def _end(self) -> None:
        """Say nothing more, and let what comes fall."""
        self._guard.lingering += not self._ended
        self._ended = True
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _say(self, status: int, message: str, more: bytes) -> None:
        self._guard.meters.request("none", status, 0.0)  # refused before it was read
        body = json.dumps({"error": message}).encode()
        wait = b"retry-after: %d\r\n" % RETRY_AFTER if status == 503 else b""
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s%s\r\n%s"
            % (status, STATUS_PHRASES[status], len(body), wait, more, body)
        )
