"""Serving on this machine without Ray, in this process: ``bend serve --direct``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import uvicorn
from prometheus_client import generate_latest
from starlette.types import ASGIApp

from bend_ray.export.card import Card
from bend_ray.serve.answering import Answering
from bend_ray.serve.app import make_app
from bend_ray.serve.guard import Guard, traced
from bend_ray.serve.listening import Listening, token
from bend_ray.serve.meters import Meters, Prometheus
from bend_ray.serve.oip_grpc import GrpcInference, add_to_server
from bend_ray.serve.settings import ServeSettings
from bend_ray.serve.wire import Protocol


class _Server(uvicorn.Server):
    """uvicorn's, which says when it listens, and ends well when it is asked to end."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the first signal when all is answered, at the second one at once."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(each, self.handle_exit, each, None)
        yield


def guarded(service: Answering, token: str | None) -> ASGIApp:
    """The interface over a bag in this process."""
    made: Any = service.meters.make
    settings = (
        service.settings if service.bag is None else service.settings.fitted_to(service.card())
    )
    app = make_app(service, lambda: generate_latest(made.registry))
    return traced(Guard(app, settings, token, service.meters))


def run(
    export: str, settings: ServeSettings, where: Listening, tell: Callable[[str, Card], None]
) -> None:
    """Answer until SIGINT or SIGTERM, then answer what has come; ``tell`` when it listens.

    DataError or StoreError where there is no bag.
    """
    service = Answering(settings, Meters(Prometheus()))
    service.go_live(service.load(export))
    config = uvicorn.Config(
        guarded(service, token()),
        host=where.host,
        port=where.port,
        http=Protocol,
        ws="none",
        lifespan="off",
        backlog=4096,
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.drain_seconds),
        ssl_certfile=where.certfile,
        ssl_keyfile=where.keyfile,
    )
    ready = partial(tell, where.told, service.card())
    asyncio.run(_serve(_Server(config, ready), service, where))


async def _serve(server: uvicorn.Server, service: Answering, where: Listening) -> None:
    if where.grpc_port is None:
        await server.serve()
        return
    most = service.settings.max_body_bytes
    calls = grpc.aio.server(
        options=[("grpc.max_receive_message_length", most), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=service.settings.max_ongoing_requests,
    )
    add_to_server(GrpcInference(service, token()), calls)
    where.add_to(calls)
    await calls.start()
    await server.serve()
    await calls.stop(service.settings.drain_seconds)
