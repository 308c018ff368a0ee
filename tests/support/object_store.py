"""A server on loopback that speaks S3, and fails as many requests as it is told."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

BUCKET = "bend"
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>later</Message></Error>"


class ObjectStore:
    """moto's server behind a door that sometimes does not open.

    Attributes:
        failing: the share of requests that get 503 Slow Down.
        delay: seconds by which every answer is late.
        refusals: HTTP method -> how many of the next requests get it, whatever the share.
        requests: how many came.
        failed: how many of them were turned away.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.failing = self.delay = 0.0
        self.requests = self.failed = 0
        self.refusals: Counter[str] = Counter()
        self._random = random.Random(0)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = self._listening(0)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def _listening(self, port: int) -> BaseWSGIServer:
        server = make_server("127.0.0.1", port, self._answer, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        time.sleep(self.delay)
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

    def stop(self) -> None:
        """No longer listen: connections are refused. What it holds stays."""
        self._server.shutdown()
        self._server.server_close()

    def start_again(self) -> None:
        """Listen on the same port as before."""
        self._server = self._listening(self._server.port)

    @contextmanager
    def serving(self) -> Iterator[ObjectStore]:
        """While it answers."""
        try:
            yield self
        finally:
            self.stop()


def environment_of(store: ObjectStore) -> dict[str, str]:
    """Variables by which a process finds it."""
    return {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": store.url,
    }


def create_bucket() -> None:
    """The bucket, on the store that the environment names."""
    boto3.client("s3").create_bucket(Bucket=BUCKET)


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """One with an empty bucket; this process and those it starts find it by their environment."""
    with ObjectStore().serving() as store:
        for name, value in environment_of(store).items():
            monkeypatch.setenv(name, value)
        create_bucket()
        yield store
