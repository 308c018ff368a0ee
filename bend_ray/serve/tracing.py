"""A span of OpenTelemetry for each request, where its API is installed and somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

trace: Any
try:
    from opentelemetry import propagate, trace
except ImportError:  # it comes with Ray's dashboard, or by itself
    trace = None

Finish = Callable[[int], None]


@contextmanager
def span(method: str, route: str, headers: list[tuple[bytes, bytes]]) -> Iterator[Finish]:
    """A server's span, a child of the one that ``traceparent`` names; give it the status."""
    if trace is None:
        yield lambda status: None
        return
    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    with trace.get_tracer("bend_ray").start_as_current_span(
        f"{method} {route}",
        context=propagate.extract(carrier),
        kind=trace.SpanKind.SERVER,
        attributes={"http.request.method": method, "http.route": route},
        record_exception=False,
    ) as own:

        def finish(status: int) -> None:
            own.set_attribute("http.response.status_code", status)
            if status >= 500:
                own.set_status(trace.StatusCode.ERROR)

        yield finish
