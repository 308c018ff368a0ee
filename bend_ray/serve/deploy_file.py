"""The Serve config file: what ``serve deploy`` and a RayService's ``serveConfigV2`` take."""

from __future__ import annotations

from typing import Any

import yaml

from bend_ray.serve.listening import Listening, is_loopback
from bend_ray.serve.settings import ServeSettings

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


def grpc_options(port: int | None) -> dict[str, Any] | None:
    """Ray Serve's gRPC proxy on a port; None for none."""
    if port is None:
        return None
    add = "bend_ray.serve.oip_grpc.add_to_server"
    return {"port": port, "grpc_servicer_functions": [add], "enable_reflection": False}


def deploy_config(export: str, settings: ServeSettings, where: Listening) -> dict[str, Any]:
    """The config as data."""
    from bend_ray.serve.deployment import NAME, options

    if not is_loopback(where.host):
        settings = settings.model_copy(update={"require_token": True})
    tls = {"ssl_certfile": where.certfile, "ssl_keyfile": where.keyfile} if where.certfile else {}
    grpc = grpc_options(where.grpc_port)
    return {
        "proxy_location": "EveryNode",
        "http_options": {
            "host": where.host,
            "port": where.port,
            "request_timeout_s": 60,
            **tls,
        },
        **({"grpc_options": grpc} if grpc else {}),
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
