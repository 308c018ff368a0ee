"""What a piece of work cost, in seconds of processors and of the wall clock."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial

from pydantic import ConfigDict, NonNegativeFloat

from bend_ray.artifacts.directory import SCRATCH, Directory
from bend_ray.spec import Record
from bend_ray.storage.filesystems import side_by_side

COST_DIRECTORY = f"{SCRATCH}/cost"
"""What pieces of an artifact cost, while it is being made."""


class Cost(Record):
    """Seconds of CPU, of GPU and of waiting; costs of pieces add up.

    >>> Cost(cpu_seconds=2.0, wall_seconds=1.0) + Cost(cpu_seconds=3.0, wall_seconds=1.0)
    Cost(cpu_seconds=5.0, gpu_seconds=0.0, wall_seconds=2.0)
    """

    model_config = ConfigDict(allow_inf_nan=False)

    cpu_seconds: NonNegativeFloat = 0.0
    gpu_seconds: NonNegativeFloat = 0.0
    wall_seconds: NonNegativeFloat = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the processor that decides: the GPU where one was used, else the CPU."""
        return self.gpu_seconds or self.cpu_seconds

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: value + getattr(other, name) for name, value in self})


def cost_of_pieces(costs: Sequence[Cost], wall_seconds: float) -> Cost:
    """The cost of pieces done side by side in ``wall_seconds``."""
    return sum(costs, Cost()).model_copy(update={"wall_seconds": wall_seconds})


def write_cost(artifact: Directory, name: str, cost: Cost) -> None:
    """Notes what a piece cost, so that a resumed stage knows it."""
    artifact.write_note(f"{COST_DIRECTORY}/{name}.json", cost.model_dump())


def read_cost(artifact: Directory, name: str) -> Cost:
    """What ``write_cost`` noted."""
    return Cost.model_validate(artifact.read_json(f"{COST_DIRECTORY}/{name}.json", is_note=True))


def read_costs(artifact: Directory, names: Iterable[str]) -> list[Cost]:
    """``read_cost`` of each, several at a time."""
    return side_by_side(partial(read_cost, artifact), names)


class Stopwatch:
    """Measures this process's cost since it was made, or of a ``with`` block.

    GPUs held meanwhile are charged for the whole wall time, used or not.
    """

    def __init__(self, num_gpus: float = 0.0) -> None:
        self._num_gpus = num_gpus
        self._started = _now()
        self._stopped: tuple[float, float] | None = None

    def __enter__(self) -> Stopwatch:
        self._started, self._stopped = _now(), None
        return self

    def __exit__(self, *raised: object) -> None:
        self._stopped = _now()

    @property
    def cost(self) -> Cost:
        """The cost so far, or of the block that was left."""
        cpu, wall = self._stopped or _now()
        cpu, wall = cpu - self._started[0], wall - self._started[1]
        return Cost(cpu_seconds=cpu, gpu_seconds=wall * self._num_gpus, wall_seconds=wall)


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()
