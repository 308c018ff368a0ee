"""What an operator watches, for Prometheus: Ray exports it on the driver's node.

The driver alone counts, which outlives its workers. ``cluster/grafana.json`` is a board of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

TELL_SECONDS = 5.0
"""Ray forgets a gauge that is not set for two of its reports, ten seconds apart."""

_METRICS = {
    "stage_done": (Gauge, "Models or steps that are done."),
    "stage_total": (Gauge, "Models or steps of a stage."),
    "waiting": (Gauge, "Processes asked for that have not begun."),
    "nodes_left_out": (Gauge, "Nodes that are given no more work."),
    "bytes_total": (Counter, "What made stages have written."),
    "seconds_total": (Counter, "What made stages took, of: wall, cpu or gpu."),
    "lost_total": (Counter, "Processes lost, to: node, memory or itself."),
    "piece_seconds": (
        partial(Histogram, boundaries=[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]),
        "From giving a piece of work away to having it done.",
    ),
}
_gauges: dict[str, Callable[[], None]] = {}


def tell(name: str, value: float, **tags: str) -> None:
    """Set a gauge, add to a counter, observe a histogram: one of ``_METRICS``."""
    metric = _metric(name, tuple(tags))
    if isinstance(metric, Gauge):
        if not _gauges:
            threading.Thread(target=_keep_telling, daemon=True, name="meters").start()
        _gauges[f"{name} {tags}"] = partial(metric.set, value, tags)
        metric.set(value, tags)
    elif isinstance(metric, Histogram):
        metric.observe(value, tags)
    elif value:  # Ray adds no zero
        metric.inc(value, tags)


def tell_progress(stage: str, done: int, total: int) -> None:
    """So much of a stage is done."""
    tell("stage_done", done, stage=stage)
    tell("stage_total", total, stage=stage)


@cache
def _metric(name: str, tags: tuple[str, ...]) -> Any:
    make, about = _METRICS[name]
    return make(f"bend_{name}", about, tag_keys=tags)


def _keep_telling() -> None:
    while True:
        time.sleep(TELL_SECONDS)
        for set_again in list(_gauges.values()):
            set_again()
