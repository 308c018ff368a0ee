"""The table of ``bend plan``: what each stage takes on so many machines, and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bend_ray.forecast.workload import Work
from bend_ray.process.log import duration

PREFIXES = ("B", "KB", "MB", "GB", "TB", "PB")


def wall_of(works: Sequence[Work], nodes: int) -> float:
    """Seconds of the run on so many machines of one processor each."""
    return sum(work.wall(nodes) for work in works)


def bottleneck(works: Sequence[Work], nodes: int) -> str:
    """The phase that takes longest, and its stage."""
    phases = [(phase, work.stage) for work in works for phase in work.phases]
    longest, stage = max(phases, key=lambda each: each[0].wall(nodes))
    return f"{stage}: {longest.bound(nodes)}"


def at_rate(works: Sequence[Work], models_per_hour: float, models: int) -> list[Work]:
    """The same, with the population trained at a rate that was measured elsewhere."""

    def scaled(work: Work) -> Work:
        if work.stage != "seeds":
            return work
        factor = models * 3600.0 / models_per_hour / work.seconds
        phases = (replace(phase, seconds=phase.seconds * factor) for phase in work.phases)
        return replace(work, phases=tuple(phases))

    return [scaled(work) for work in works]


def rows(works: Sequence[Work], nodes: Sequence[int]) -> list[tuple[str, ...]]:
    """The table: a line a stage, their sum, and processor hours."""

    def line(name: str, some: Sequence[Work]) -> tuple[str, ...]:
        computing = duration(sum(work.seconds for work in some))
        stored = amount(sum(work.stored_bytes for work in some))
        return (name, computing, stored, *(duration(wall_of(some, n)) for n in nodes))

    head = ("", "computing", "stored", *(f"{n} x" for n in nodes))
    held = (f"{n * wall_of(works, n) / 3600:.2g} h" for n in nodes)
    total = [line("together", works), ("processor hours, if all are held", "", "", *held)]
    return [head, *(line(work.stage, [work]) for work in works), *total]


def as_json(works: Sequence[Work], nodes: Sequence[int]) -> dict[str, Any]:
    """The same as data, in seconds and bytes."""
    return {
        "stages": {
            work.stage: {
                "seconds": work.seconds,
                "bytes": work.stored_bytes,
                "phases": {
                    phase.name: {"pieces": phase.pieces, "seconds": phase.seconds}
                    for phase in work.phases
                },
            }
            for work in works
        },
        "nodes": {
            str(n): {
                "wall_seconds": {work.stage: work.wall(n) for work in works},
                "bottleneck": bottleneck(works, n),
            }
            for n in nodes
        },
    }


def amount(size: float) -> str:
    """Bytes as a person writes them.

    >>> [amount(s) for s in (0, 999, 2_200_000, 6.5e12)]
    ['0 B', '999 B', '2.2 MB', '6.5 TB']
    """
    power = 0
    while size >= 1000 and power < len(PREFIXES) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.3g} {PREFIXES[power]}"
