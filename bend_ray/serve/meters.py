"""What is counted, for Prometheus: by Ray, which adds up its processes, or in this one alone.

A door counts requests, by what became of them; whoever holds the bag counts batches and answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import prometheus_client
from numpy.typing import NDArray

from bend_ray.serve.voting import Answers

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_POWERS = tuple(float(2**power) for power in range(11))
_NATS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)

Tags = Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """What became of a request.

    Attributes:
        method: of HTTP, or gRPC's.
        route: of the interface, its names left out; ``none`` for any other path.
        status: 200 to 599; 499 where the client did not wait.
        seconds: from its head to the last byte of the answer.
    """

    method: str
    route: str
    status: int
    seconds: float


_ROUTES = re.compile(
    r"/(|docs|openapi\.json|metrics|about|predict|v2|v2/health/(live|ready)|v2/repository/index"
    r"|v2/models/\{name\}(/versions/\{version\})?(|/ready|/infer|/config|/stats)|-/healthz)"
)


def route_of(path: str) -> str:
    """The route that a path is of.

    >>> route_of("/v2/models/bag/versions/7/infer"), route_of("/etc/passwd")
    ('/v2/models/{name}/versions/{version}/infer', 'none')
    """
    path = re.sub(r"^/v2/models/[^/]+", "/v2/models/{name}", path)
    path = re.sub(r"/versions/[^/]+", "/versions/{version}", path)
    return path if _ROUTES.fullmatch(path) else "none"


class Prometheus:
    """prometheus_client in the words of ``ray.util.metrics``."""

    def __init__(self) -> None:
        self.registry = prometheus_client.CollectorRegistry()

    def Counter(self, name: str, about: str, tag_keys: Sequence[str] = ()) -> Any:  # noqa: N802
        """A sum."""
        return _Tagged(prometheus_client.Counter(name, about, tag_keys, registry=self.registry))

    def Gauge(self, name: str, about: str, tag_keys: Sequence[str] = ()) -> Any:  # noqa: N802
        """A value."""
        return _Tagged(prometheus_client.Gauge(name, about, tag_keys, registry=self.registry))

    def Histogram(  # noqa: N802
        self, name: str, about: str, boundaries: Sequence[float], tag_keys: Sequence[str] = ()
    ) -> Any:
        """How often values were how large."""
        made = prometheus_client.Histogram(
            name, about, tag_keys, registry=self.registry, buckets=boundaries
        )
        return _Tagged(made)


class _Tagged:
    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def _of(self, tags: Tags | None) -> Any:
        return self._metric.labels(**tags) if tags else self._metric

    def inc(self, value: float = 1.0, tags: Tags | None = None) -> None:
        self._of(tags).inc(value)

    def set(self, value: float, tags: Tags | None = None) -> None:
        self._of(tags).set(value)

    def observe(self, value: float, tags: Tags | None = None) -> None:
        self._of(tags).observe(value)


class Meters:
    """The counts of one process.

    Args:
        make: makes each of them: ``ray.util.metrics``, or a ``Prometheus``.
    """

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
        self._members = make.Gauge("bend_bag_members", "Members.", tag_keys=("model_version",))
        of = {
            "bend_queue_seconds": ("Wait of a question for its batch.", _SECONDS),
            "bend_batch_seconds": ("Computing of a batch.", _SECONDS),
            "bend_batch_images": ("Images of a batch.", _POWERS),
            "bend_members_used": ("Members asked about an image.", _POWERS),
            "bend_answer_entropy_nats": ("Entropy of an answer.", _NATS),
            "bend_answer_information_nats": ("Members' disagreement on an answer.", _NATS),
            "bend_answer_top_probability": ("Probability of an answer's label.", _SHARES),
        }
        self._of = {
            name: make.Histogram(name, about, boundaries=bounds)
            for name, (about, bounds) in of.items()
        }

    def request(self, request: Request) -> None:
        """A request came to its end."""
        tags = {"route": request.route, "status": str(request.status)}
        self._requests.inc(1.0, tags)
        self._seconds.observe(request.seconds, {"route": request.route})

    def ongoing(self, requests: int) -> None:
        """So many are being answered now."""
        self._ongoing.set(requests)

    def loaded(self, model_version: str, members: int, earlier: str | None) -> None:
        """A bag went live, in place of an earlier version."""
        if earlier is not None:
            self._members.set(0, {"model_version": earlier})
        self._members.set(members, {"model_version": model_version})

    def batch(self, seconds: float, waits: Sequence[float], answers: Sequence[Answers]) -> None:
        """A batch was answered.

        Args:
            seconds: of computing.
            waits: seconds before it, of each question.
            answers: to each question.
        """
        self._of["bend_batch_seconds"].observe(seconds)
        self._of["bend_batch_images"].observe(sum(len(each.labels_B) for each in answers))
        self._each("bend_queue_seconds", waits)
        for each in answers:
            self._each("bend_members_used", each.used_B)
            self._each("bend_answer_entropy_nats", each.entropy_B)
            self._each("bend_answer_information_nats", each.information_B)
            self._each("bend_answer_top_probability", each.probs_BC.max(axis=1))

    def _each(self, name: str, values: Sequence[float] | NDArray[Any]) -> None:
        for value in values:
            self._of[name].observe(float(value))
