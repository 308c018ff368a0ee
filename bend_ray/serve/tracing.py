"""A trace goes on through us: OpenTelemetry spans, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

trace: Any
try:
    from opentelemetry import propagate, trace
except ImportError:  # Ray's dashboard brings it; a server without Ray may have none
    trace = None


@contextmanager
def span(scope: MutableMapping[str, Any]) -> Iterator[None]:
    """A span of a request, below its ``traceparent``, which becomes the span's own for the app."""
    if trace is None:
        yield
        return
    carrier = {
        name.decode(): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }
    name, kind = f"{scope['method']} bend_ray", trace.SpanKind.SERVER
    above = propagate.extract(carrier)
    with trace.get_tracer("bend_ray").start_as_current_span(name, above, kind=kind):
        if carrier:
            propagate.inject(carrier)
            others = [pair for pair in scope["headers"] if pair[0].decode("latin-1") not in carrier]
            own = [(k.encode(), v.encode("latin-1")) for k, v in carrier.items()]
            scope["headers"] = others + own
        yield
