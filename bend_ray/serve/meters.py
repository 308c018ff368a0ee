"""What is counted: for ``/metrics``, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_POWERS = tuple(float(2**power) for power in range(11))

Report = Callable[[int, list[int]], None]


class Meters:
    """The counts of one replica.

    Args:
        report: told about every batch too: its images, and each image's members.
    """

    def __init__(self, report: Report | None = None) -> None:
        self.registry = CollectorRegistry()
        self._report = report
        self.seconds = Histogram(
            "bend_request_seconds",
            "From the first byte of a request to the last of its response.",
            ["route", "status"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.ongoing = Gauge(
            "bend_requests_ongoing",
            "Requests being answered, those that wait for a batch among them.",
            registry=self.registry,
        )
        self.rejected = Counter(
            "bend_requests_rejected_total",
            "Requests answered with 4xx or 503, by status.",
            ["status"],
            registry=self.registry,
        )
        self._batches = Histogram(
            "bend_batch_images", "Images of a batch.", buckets=_POWERS, registry=self.registry
        )
        self._members = Histogram(
            "bend_members_used",
            "Members asked about an image.",
            buckets=_POWERS,
            registry=self.registry,
        )
        self._loaded = Gauge(
            "bend_bag_members", "Members of the bag.", ["model_version"], registry=self.registry
        )

    def loaded(self, model_version: str, members: int) -> None:
        """A bag went live."""
        self._loaded.clear()
        self._loaded.labels(model_version).set(members)

    def batch(self, images: int, used: list[int]) -> None:
        """A batch was answered, with so many members asked about each image."""
        self._batches.observe(images)
        for members in used:
            self._members.observe(members)
        if self._report is not None:
            self._report(images, used)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.seconds.labels(route, str(status)).observe(seconds)
        if status >= 400:
            self.rejected.labels(str(status)).inc()

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)
