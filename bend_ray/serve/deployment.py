"""The Ray Serve deployment, and its config file: one replica holds the whole bag.

``application`` is what a Serve config names (``bend_ray.serve.deployment:application``). Which bag
is served is the deployment's ``user_config``, so that a change of it alone swaps bags in the
running replicas, between two batches, without a restart.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import urllib.request
from typing import Any

import ray
import yaml
from ray import serve
from ray.util import metrics
from starlette.types import ASGIApp

from bend_ray.errors import BendError, ClusterError, ConfigError
from bend_ray.export.card import Card
from bend_ray.process.environment import variable
from bend_ray.runtime import cluster
from bend_ray.serve import door
from bend_ray.serve.answering import Answering
from bend_ray.serve.app import make_app
from bend_ray.serve.bag import Bag
from bend_ray.serve.guard import Guard
from bend_ray.serve.listening import Listening, is_loopback, token
from bend_ray.serve.meters import Meters
from bend_ray.serve.oip_grpc import METHODS, GrpcInference
from bend_ray.serve.settings import TOKEN_VARIABLE, ServeSettings, parse_settings

logger = logging.getLogger("ray.serve")

NAME = "Bag"
BUILDER = "bend_ray.serve.deployment:application"
_HEAD = """\
# Written by `bend serve --config-only`. Every machine of the cluster needs bend-ray, and to be able
# to read `export`: a folder they share, or s3://, gs:// or abfs://.
#   serve deploy FILE             the first time, and after every change
# To let another bag go live without a restart, change `export` alone.
# With BEND_SERVE_TOKEN in the environment of the replicas, requests must bear it.
# Have every machine start Ray with this, or its proxy does without limits and deadlines of ours:
#   RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=bend_ray.serve.door:middlewares
"""


@serve.deployment(name=NAME)
@serve.ingress()
class BagDeployment:
    """A replica; its ``args`` are ``ServeSettings``."""

    def __init__(self, args: dict[str, Any]) -> None:
        settings = parse_settings(args)
        self.token = variable(TOKEN_VARIABLE)
        if settings.require_token and self.token is None:
            raise ConfigError(f"expected {TOKEN_VARIABLE} in the environment of every replica")
        self.service = Answering(settings, Meters(metrics))
        self.inference = GrpcInference(self.service, self.token)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        app = make_app(self.service, node_metrics)
        return Guard(app, self.service.settings, self.token, self.service.meters)

    def __getattr__(self, name: str) -> Any:
        """The protocol's methods, which Ray Serve's gRPC proxy calls by their names."""
        if name not in METHODS:
            raise AttributeError(name)

        async def method(content: bytes, grpc_context: Any) -> Any:
            return await self.inference.call(name, content, grpc_context)

        return method

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load the bag that ``user_config`` names, warm it, and let it answer from now on.

        Where it is damaged the earlier one goes on answering.
        """
        if set(user_config) != {"export"} or not isinstance(user_config["export"], str):
            raise ConfigError(f"user_config: expected export alone, a folder or URI: {user_config}")
        loop = asyncio.get_running_loop()
        try:
            bag = await loop.run_in_executor(None, self.service.load, user_config["export"])
        except BendError as error:
            if self.service.bag is None:
                raise
            logger.error("%s; the earlier bag goes on answering", error)
            self.service.meters.bag(user_config["export"].rpartition("/")[2], "refused")
            return
        self.service.go_live(bag)


def node_metrics() -> bytes:
    """What all replicas of the cluster have counted, from Ray's agents on its machines."""
    lines: list[bytes] = []
    for node in ray.nodes():
        if not node["Alive"] or node["MetricsExportPort"] <= 0:
            continue
        host, port = node["NodeManagerAddress"], node["MetricsExportPort"]
        host = f"[{host}]" if ":" in host else host
        try:
            with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5) as said:
                lines += [line for line in said if b"ray_bend_" in line]
        except OSError as error:
            logger.warning("no metrics of %s: %s", host, error)
    # Each machine describes them all.
    return b"".join(dict.fromkeys(lines)).replace(b"ray_bend_", b"bend_")


def options(settings: ServeSettings) -> dict[str, Any]:
    """How Serve runs the deployment."""
    replicas: dict[str, Any] = {"num_replicas": settings.min_replicas}
    if settings.max_replicas > settings.min_replicas:
        names = {"min_replicas", "max_replicas", "target_ongoing_requests"}
        replicas = {"autoscaling_config": settings.model_dump(include=names)}
    return {
        "ray_actor_options": {"num_cpus": settings.cpus},
        # Ray's router makes waiting requests wait ever longer, and is no more than a tenth as fast:
        # replicas take them all, and the doors refuse what is too much.
        "max_ongoing_requests": 2**20,
        "graceful_shutdown_timeout_s": settings.drain_seconds,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5,
        "health_check_timeout_s": 30,
        # Where a replica must be replaced, the new one answers before the old one goes.
        "max_surge_percent": 100,
        **replicas,
    }


def application(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config; nothing is looked up before a replica starts.

    Beside ``ServeSettings``, ``export`` names the bag where the deployment's ``user_config`` does
    not. ConfigError for an unknown key, or a value that cannot be.
    """
    rest = dict(args)
    export = rest.pop("export", None)
    settings = parse_settings(rest)
    more = {} if export is None else {"user_config": {"export": export}}
    deployment: Any = BagDeployment
    return deployment.options(**options(settings), **more).bind(rest)


def deploy_config(export: str, settings: ServeSettings, where: Listening) -> dict[str, Any]:
    """The config as data."""
    if not is_loopback(where.host):
        settings = settings.model_copy(update={"require_token": True})
    tls = {"ssl_certfile": where.certfile, "ssl_keyfile": where.keyfile} if where.certfile else {}
    add = "bend_ray.serve.oip_grpc.add_to_server"
    grpc = {"port": where.grpc_port, "grpc_servicer_functions": [add], "enable_reflection": False}
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": where.host, "port": where.port, "request_timeout_s": 60, **tls},
        **({"grpc_options": grpc} if where.grpc_port else {}),
        "applications": [
            {
                "name": settings.name,
                "route_prefix": "/",
                "import_path": BUILDER,
                "args": settings.model_dump(mode="json"),
                "deployments": [
                    {"name": NAME, "user_config": {"export": export}, **options(settings)}
                ],
            }
        ],
    }


def deploy_text(config: dict[str, Any]) -> str:
    """The config as YAML, with what to do with it."""
    return _HEAD + yaml.safe_dump(config, sort_keys=False)


def start(export: str, settings: ServeSettings, where: Listening) -> tuple[str, Card]:
    """Start Ray and Serve, deploy a bag, and say what listens where, or ClusterError."""
    # A broken export is refused here, in a second, not by a replica that restarts for ever.
    card = Bag.load(export, settings).card
    settings = settings.model_copy(update={"require_token": token() is not None})
    door.put_up(settings.fitted_to(card), where)
    cluster.connect(None)
    for name in ("ray.serve", "ray.serve._private.client"):
        logging.getLogger(name).setLevel(logging.WARNING)
    config = deploy_config(export, settings, where)
    (given,) = config["applications"]
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(
        proxy_location="HeadOnly",
        http_options=config["http_options"],
        grpc_options=config.get("grpc_options"),
        logging_config=quiet,
    )
    bound = application(given["args"] | {"export": export})
    try:
        serve.run(bound, name=settings.name, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = [line for line in lines if "Error" in line] or lines or [type(error).__name__]
        raise ClusterError(f"expected the bag to be deployed, got: {reason[-1]}") from None
    ours = f"Ray, with a token of its own, on {ray.util.get_node_ip_address()}"
    return f"{where.told}; {ours}", card


def wait(name: str) -> None:
    """Until SIGINT or SIGTERM; then answer what has come, and stop. A second signal is at once."""
    asked = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, lambda *_: asked.set()) for each in signals}
    asked.wait()
    for each, handler in before.items():
        signal.signal(each, handler)
    logging.getLogger(__name__).info("serve        answering what has come, then stopping")
    # Serve's own shutdown takes the proxy away first, and with it the requests being answered.
    serve.delete(name)
    serve.shutdown()
    ray.shutdown()
