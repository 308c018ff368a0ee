"""The table of ``bend plan``: what each stage takes on so many machines, and what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bend_ray.forecast.workload import Work
from bend_ray.process.log import duration

PREFIXES = ("B", "KB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True)
class Forecast:
    """What a run takes on so many machines of one processor each.

    Attributes:
        nodes: how many.
        walls: seconds of each stage until it is done.
        bottleneck: the phase that takes longest, and its stage.
    """

    nodes: int
    walls: dict[str, float]
    bottleneck: str

    @property
    def wall(self) -> float:
        """Seconds of the run."""
        return sum(self.walls.values())


def predict(works: Sequence[Work], nodes: int) -> Forecast:
    """The run on ``nodes`` machines."""
    phases = [(phase, work.stage) for work in works for phase in work.phases]
    longest, stage = max(phases, key=lambda each: each[0].wall(nodes))
    walls = {work.stage: work.wall(nodes) for work in works}
    return Forecast(nodes, walls, f"{stage}: {longest.bound(nodes)}")


def at_rate(works: Sequence[Work], models_per_hour: float, models: int) -> list[Work]:
    """The same, with the population trained at a rate that was measured elsewhere."""

    def scaled(work: Work) -> Work:
        if work.stage != "seeds":
            return work
        factor = models * 3600.0 / models_per_hour / work.seconds
        phases = (replace(phase, seconds=phase.seconds * factor) for phase in work.phases)
        return replace(work, phases=tuple(phases))

    return [scaled(work) for work in works]


def rows(
    works: Sequence[Work], predictions: Sequence[Forecast], price: float | None = None
) -> list[tuple[str, ...]]:
    """The table: a line a stage, their sum, processor hours, and at a price an hour their cost."""
    head = ("", "computing", "stored", "models held", *(f"{p.nodes} x" for p in predictions))
    body = [
        (
            work.stage,
            duration(work.seconds),
            amount(work.stored_bytes),
            amount(work.held_bytes) if work.held_bytes else "",
            *(duration(p.walls[work.stage]) for p in predictions),
        )
        for work in works
    ]
    total = (
        "together",
        duration(sum(work.seconds for work in works)),
        amount(sum(work.stored_bytes for work in works)),
        "",
        *(duration(p.wall) for p in predictions),
    )
    hours = [p.nodes * p.wall / 3600 for p in predictions]
    held = ("processor hours, if all are held", "", "", "", *(f"{h:.2g} h" for h in hours))
    if price is None:
        return [head, *body, total, held]
    costs = (f"{h * price:.2f}" for h in hours)
    return [head, *body, total, held, (f"at {price:g} an hour", "", "", "", *costs)]


def as_json(works: Sequence[Work], predictions: Sequence[Forecast]) -> dict[str, Any]:
    """The same as data, in seconds and bytes."""
    return {
        "stages": {
            work.stage: {
                "seconds": work.seconds,
                "bytes": work.stored_bytes,
                "held_bytes": work.held_bytes,
                "phases": {
                    phase.name: {"pieces": phase.pieces, "seconds": phase.seconds}
                    for phase in work.phases
                },
            }
            for work in works
        },
        "nodes": {
            str(p.nodes): {"wall_seconds": p.walls, "bottleneck": p.bottleneck} for p in predictions
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
