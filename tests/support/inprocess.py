"""The HTTP interface in this process: a bag behind it, and no Ray."""

from __future__ import annotations

from pathlib import Path

from starlette.testclient import TestClient

from bend_ray.serve.answering import Answering
from bend_ray.serve.direct import guarded
from bend_ray.serve.meters import Meters, Prometheus
from bend_ray.serve.settings import ServeSettings


def client(
    folder: Path | str | None, settings: ServeSettings | None = None, token: str | None = None
) -> TestClient:
    """A client of a bag's interface; an exception of the server is a failure of the test."""
    service = Answering(settings or ServeSettings(), Meters(Prometheus()))
    if folder is not None:
        service.go_live(service.load(str(folder)))
    return TestClient(guarded(service, token))
