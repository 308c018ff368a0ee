"""What is counted, for Prometheus.

Ray adds up the counts of its processes, or they are of this one alone.

A door counts requests, by what became of them; whoever holds the bag counts batches and answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import prometheus_client

from bend_ray.serve.queries import Answers

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_POWERS = tuple(float(2**power) for power in range(11))
_NATS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
_NAMED = re.compile(r"^/v2/models/[^/]+(/versions/[^/]+)?(|/ready|/infer|/config|/stats)$")
_ROUTES = (
    *("/", "/docs", "/openapi.json", "/about", "/metrics", "/predict", "/-/healthz"),
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/repository/index"),
)


def route_of(path: str) -> str:
    """The route that a path is of, without the names in it.

    >>> route_of("/v2/models/bag/versions/7/infer"), route_of("/etc/passwd")
    ('/v2/models/{name}/infer', 'none')
    """
    if found := _NAMED.match(path):
        return "/v2/models/{name}" + found[2]
    return path if path in _ROUTES else "none"


class Prometheus:
    """prometheus_client in the words of ``ray.util.metrics``."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        def make(name: str, about: str, tag_keys: Sequence[str] = (), **more: Any) -> Any:
            bounds = {"buckets": more["boundaries"]} if more else {}
            made = getattr(prometheus_client, kind)
            metric = made(name, about, tag_keys, registry=self.registry, **bounds)
            return _Tagged(metric) if tag_keys else metric

        return make


class _Tagged:
    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def __getattr__(self, method: str) -> Callable[..., None]:
        return lambda value, tags: getattr(self._metric.labels(**tags), method)(value)


class Meters:
    """The counts of one process, made by ``ray.util.metrics`` or a ``Prometheus``."""

    def __init__(self, make: Any) -> None:
        self.make = make
        self._requests = make.Counter(
            "bend_requests_total",
            "Requests, by what became of them; 499: the client did not wait.",
            tag_keys=("route", "status"),
        )
        self._seconds = make.Histogram(
            "bend_request_seconds",
            "From a request's head to the last byte of its answer.",
            boundaries=_SECONDS,
            tag_keys=("route",),
        )
        self._ongoing = make.Gauge("bend_requests_ongoing", "Requests being answered.")
        self._bags = make.Counter(
            "bend_bags_total", "Bags that were to go live.", tag_keys=("model_version", "outcome")
        )
        of = {
            "queue_seconds": ("Wait of a question for its batch.", _SECONDS),
            "batch_seconds": ("Computing of a batch.", _SECONDS),
            "batch_examples": ("Examples of a batch.", _POWERS),
            "members_used": ("Members asked about an example.", _POWERS),
            "answer_entropy_nats": ("Entropy of an answer.", _NATS),
            "answer_information_nats": ("Members' disagreement on an answer.", _NATS),
            "answer_top_probability": ("Probability of an answer's label.", _SHARES),
        }
        self._of = {
            name: make.Histogram(f"bend_{name}", about, boundaries=bounds)
            for name, (about, bounds) in of.items()
        }

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request came to its end; 499: before it was answered."""
        self._requests.inc(1.0, {"route": route, "status": str(status)})
        self._seconds.observe(seconds, {"route": route})

    def ongoing(self, requests: int) -> None:
        """So many are being answered now."""
        self._ongoing.set(requests)

    def bag(self, model_version: str, outcome: str) -> None:
        """A bag went live, or was refused."""
        self._bags.inc(1.0, {"model_version": model_version, "outcome": outcome})

    def batch(self, seconds: float, waits: Sequence[float], answers: Sequence[Answers]) -> None:
        """A batch was answered, in so many seconds, after the ``waits`` of its questions."""
        self._observe("batch_seconds", [seconds])
        self._observe("batch_examples", [sum(len(each["entropy"]) for each in answers)])
        self._observe("queue_seconds", waits)
        for each in answers:
            self._observe("members_used", each["members_used"])
            self._observe("answer_entropy_nats", each["entropy"])
            self._observe("answer_information_nats", each["mutual_information"])
            if "probabilities" in each:
                self._observe("answer_top_probability", each["probabilities"].max(axis=1))

    def _observe(self, name: str, values: Iterable[float]) -> None:
        for value in values:
            self._of[name].observe(float(value))
