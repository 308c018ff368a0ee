"""Serving on this machine: ``bend serve``."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from pathlib import Path

import ray
from ray import serve
from ray.serve.config import HTTPOptions

from bend_ray.errors import ClusterError, ConfigError
from bend_ray.export.card import Card, read_card
from bend_ray.process.environment import variable
from bend_ray.runtime import cluster
from bend_ray.serve.bag import Bag
from bend_ray.serve.deployment import application
from bend_ray.serve.settings import TOKEN_VARIABLE, ServeSettings

logger = logging.getLogger(__name__)

READY_SECONDS = 120.0
REQUEST_SECONDS = 30.0


def start(export: str, settings: ServeSettings, host: str, port: int) -> str:
    """Start Ray and Serve, and deploy a bag.

    Args:
        export: the exported bag's folder.
        settings: of the deployment.
        host: to listen on.
        port: to listen on.

    Returns:
        The URL, when it answers.

    Raises:
        ClusterError: something does not start.
        ConfigError: the address is taken, or cannot be listened on.
    """
    _check_address(host, port)
    cluster.connect(None)
    for name in ("ray.serve", "ray.serve._private.client"):
        logging.getLogger(name).setLevel(logging.WARNING)
    options = HTTPOptions(host=host, port=port, request_timeout_s=REQUEST_SECONDS)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(proxy_location="HeadOnly", http_options=options, logging_config=quiet)
    bound = application({**settings.model_dump(mode="json"), "export": export})
    try:
        serve.run(bound, name=settings.name, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        raise ClusterError(f"expected the bag to be deployed, got: {_reason(error)}") from None
    return f"http://{_shown(host)}:{port}"


def wait(name: str) -> None:
    """Until SIGINT or SIGTERM; then answer what has come, and stop. A second signal is at once.

    Args:
        name: of the application.
    """
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
    ray.shutdown()


def _stroke(card: Card) -> list[list[list[int]]]:
    """Pixels of an upright stroke, as of a one: bright in the middle quarter of the columns."""
    _, height, width = card.image_shape
    middle = range(3 * width // 8, width - 3 * width // 8)
    images = []
    for mean, std in zip(card.pixel_mean, card.pixel_std, strict=True):
        bright = min(255, round(mean + 1.5 * std))
        images.append([[bright if x in middle else 0 for x in range(width)]] * height)
    return images


def welcome(url: str, export: Path, seconds: float) -> str:
    """What to do now: the URL, and a command that works."""
    card = read_card(export)
    token = f" -H 'Authorization: Bearer '\"${TOKEN_VARIABLE}\"" if _token() else ""
    rows = str(_stroke(card)).replace(" ", "")
    if len(rows) > 600:
        ask = f"curl{token} -H 'Content-Type: image/png' --data-binary @IMAGE.png {url}/predict"
    else:
        ask = (
            f"curl{token} -H 'Content-Type: application/json' "
            f"-d '{{\"pixels\":{rows}}}' {url}/predict"
        )
    what = f"{len(card.members)} members, version {card.model_version}"
    return (
        f"{url}    {what}, up in {seconds:.1f}s\n"
        f"  {url}/      draw or drop an image\n"
        f"  {url}/docs  the interface\n"
        f"  {ask}"
    )


def loadable(export: Path) -> None:
    """Refuse a broken export here, in a second, instead of in a replica that restarts for ever.

    Raises:
        DataError: as ``Bag.load``.
    """
    Bag.load(export, groups=1, batch=1)


def token_settings(settings: ServeSettings) -> ServeSettings:
    """The settings of replicas that must have the token which this process has."""
    return settings.model_copy(update={"require_token": True}) if _token() else settings


def _token() -> str | None:
    return variable(TOKEN_VARIABLE)


def _check_address(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--host {host} --port {port}: expected an address to listen on, got: {reason}; "
            "name another port"
        ) from None


def _shown(host: str) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only shown
    return f"[{host}]" if ":" in host else host


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or [type(error).__name__])[-1]
