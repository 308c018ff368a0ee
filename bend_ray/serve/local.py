"""Serving on this machine: ``bend serve``."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from bend_ray.errors import ClusterError
from bend_ray.runtime import cluster
from bend_ray.serve import door
from bend_ray.serve.bag import Bag
from bend_ray.serve.deployment import application, grpc_options
from bend_ray.serve.listening import Listening, token
from bend_ray.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 30.0


def start(export: str, settings: ServeSettings, where: Listening) -> str:
    """Start Ray and Serve, deploy a bag, and say what listens where, or ClusterError."""
    # A broken export is refused here, in a second, not by a replica that restarts for ever.
    card = Bag.load(Path(export), run_code=settings.run_code).card
    settings = settings.model_copy(update={"require_token": token() is not None})
    door.put_up(settings.fitted_to(card), where)
    cluster.connect(None)
    for name in ("ray.serve", "ray.serve._private.client"):
        logging.getLogger(name).setLevel(logging.WARNING)
    http = HTTPOptions(
        host=where.host,
        port=where.port,
        request_timeout_s=REQUEST_SECONDS,
        ssl_certfile=where.certfile,
        ssl_keyfile=where.keyfile,
    )
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(
        proxy_location="HeadOnly",
        http_options=http,
        grpc_options=grpc_options(where.grpc_port),
        logging_config=quiet,
    )
    bound = application({**settings.model_dump(mode="json"), "export": export})
    try:
        serve.run(bound, name=settings.name, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        raise ClusterError(f"expected the bag to be deployed, got: {_reason(error)}") from None
    return f"{where.told}; Ray, with a token of its own, on {ray.util.get_node_ip_address()}"


def wait(name: str) -> None:
    """Until SIGINT or SIGTERM; then answer what has come, and stop. A second signal is at once."""
    asked = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, lambda *_: asked.set()) for each in signals}
    while not asked.wait(3600):
        pass
    for each, handler in before.items():
        signal.signal(each, handler)
    logger.info("serve        answering what has come, then stopping")
    # Serve's own shutdown takes the proxy away first, and with it the requests being answered.
    serve.delete(name)
    serve.shutdown()
    ray.shutdown()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or [type(error).__name__])[-1]
