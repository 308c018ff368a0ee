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
import policies
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

BUCKET = "bend"
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>later</Message></Error>"
DENIED = (
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
)


class ObjectStore:
    """moto's server behind a door that sometimes does not open, and asks who may come in.

    Args:
        host: where it listens.

    Attributes:
        policy: what requests may do, see ``policies``; None for all. moto itself refuses nobody.
        asked: rights that requests needed, in their order.
        denied: those that the policy did not give.
        failing: the share of requests that get 503 Slow Down.
        delay: seconds by which every answer is late.
        refusals: HTTP method -> how many of the next requests get it, whatever the share.
        requests: how many came.
        failed: how many of them were turned away.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.failing = self.delay = 0.0
        self.requests = self.failed = 0
        self.refusals: Counter[str] = Counter()
        self.policy: policies.Policy | None = None
        self.asked: list[policies.Asked] = []
        self.denied: list[policies.Asked] = []
        self._random = random.Random(0)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = self._listening(0)
        self.port = self._server.port
        self.url = f"http://127.0.0.1:{self.port}"

    def _listening(self, port: int) -> BaseWSGIServer:
        server = make_server(self._host, port, self._answer, threaded=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests += 1
        time.sleep(self.delay)
        method = environ["REQUEST_METHOD"]
        refused = self.refusals[method] > 0
        self.refusals[method] -= refused
        if not refused and self._random.random() >= self.failing:
            if denied := self._denied(environ):
                self.denied.append(denied)
                return _refuse(environ, start_response, "403 Forbidden", DENIED)
            answer: Iterable[bytes] = self._moto(environ, start_response)
            return answer
        self.failed += 1
        return _refuse(environ, start_response, "503 Slow Down", SLOW_DOWN)

    def _denied(self, environ: dict[str, Any]) -> policies.Asked | None:
        """The right that a request lacks."""
        wanted = list(policies.rights_of(environ))
        self.asked += wanted
        if self.policy is None:
            return None
        reads = environ["REQUEST_METHOD"] in ("GET", "HEAD")
        if (
            wanted[0].action == "s3:GetObject"
            and reads
            and environ["PATH_INFO"] not in self._paths()
        ):
            wanted.append(policies.may_know_what_is_missing(BUCKET))
        return next((each for each in wanted if not policies.allows(self.policy, each)), None)

    def _paths(self) -> set[str]:
        return {f"/{BUCKET}{name}" for name in self.names()}

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
        self._server = self._listening(self.port)

    @contextmanager
    def serving(self) -> Iterator[ObjectStore]:
        """While it answers."""
        try:
            yield self
        finally:
            self.stop()


def _refuse(
    environ: dict[str, Any], start_response: Any, status: str, body: bytes
) -> Iterable[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [body]


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
    """The bucket, empty, on the store that the environment names."""
    # What moto holds is its process's, whichever server of it is asked.
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].reset()
    boto3.client("s3").create_bucket(Bucket=BUCKET)


@contextmanager
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """One with an empty bucket; this process and those it starts find it by their environment."""
    with ObjectStore().serving() as store:
        for name, value in environment_of(store).items():
            monkeypatch.setenv(name, value)
        create_bucket()
        yield store
