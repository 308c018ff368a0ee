"""What an operator watches, for Prometheus: Ray exports it on the driver's node.

The driver alone counts, which outlives its workers. All are counters, as Ray forgets a gauge that
is not set again and again. ``cluster/grafana.json`` is a board of them.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import ray.util.metrics

_ABOUT = {
    "asked": "Models or steps of a stage.",
    "done": "Models or steps that are done.",
    "bytes": "What made stages have written.",
    "seconds": "What made stages took, of: wall, cpu or gpu.",
    "pieces": "Pieces of work that are done.",
    "piece_seconds": "From giving pieces of work away to having them done.",
    "lost": "Processes lost, to: node, memory or itself.",
    "left_out": "Nodes that are given no more work.",
}
_progress: Counter[str] = Counter()


def tell(name: str, value: float, **tags: str) -> None:
    """Add to a counter of ``_ABOUT``."""
    if value > 0:  # Ray adds nothing less
        _counter(name, tuple(tags)).inc(value, tags)


def tell_progress(stage: str, done: int, total: int) -> None:
    """So much of a stage is done."""
    for name, value in (("asked", total), ("done", done)):
        key = f"{name} {stage}"
        tell(name, value - _progress[key], stage=stage)
        _progress[key] = max(value, _progress[key])


@cache
def _counter(name: str, tags: tuple[str, ...]) -> Any:
    return ray.util.metrics.Counter(f"bend_{name}_total", _ABOUT[name], tag_keys=tags)
