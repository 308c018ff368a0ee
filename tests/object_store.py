"""A server on loopback that speaks S3, and fails as many requests as it is told."""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bend"
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>later</Message></Error>"


class ObjectStore:
    """moto's server behind a door that sometimes does not open.

    Attributes:
        failing: the share of requests that get 503 Slow Down.
        refusals: HTTP method -> how many of the next requests get it, whatever the share.
        requests: how many came.
        failed: how many of them were turned away.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.failing = 0.0
        self.requests = self.failed = 0
        self.refusals: Counter[str] = Counter()
        self._random = random.Random(0)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        method = environ["REQUEST_METHOD"]
        refused = self.refusals[method] > 0
        self.refusals[method] -= refused
        if not refused and self._random.random() >= self.failing:
            answer: Iterable[bytes] = self._moto(environ, start_response)
            return answer
        self.failed += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))]
        start_response("503 Slow Down", headers)
        return [SLOW_DOWN]

    def names(self) -> list[str]:
        """Objects of the bucket, seen from inside: whoever watches is not turned away."""
        backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        return sorted(f"/{name}" for name in backend.buckets[BUCKET].keys)

    @contextmanager
    def serving(self) -> Iterator[ObjectStore]:
        """While it answers."""
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """One with an empty bucket; this process and those it starts find it by their environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with ObjectStore().serving() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield store
