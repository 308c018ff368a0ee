"""How a population is cut into pieces of work, and these into shards.

A cohort holds all that its runs leave until it is written: where that is much it has fewer runs,
and a run that leaves more than a shard holds is a cohort whose shards are written as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bend_ray.config.schema import SeedsSection
from bend_ray.networks.protocols import Checkpoints, Member, Run

SHARD_BYTES = 2**28
"""Parameters of a shard, and of what a cohort holds at once."""


@dataclass(frozen=True)
class Cohort:
    """Runs that one worker trains, together or one after another.

    Attributes:
        runs: of it.
        chunk: snapshots of each run that are held at once.
        shards: by index, the members of each, run after run.
    """

    runs: Sequence[Run]
    chunk: int
    shards: dict[int, tuple[Member, ...]]


def cohorts_of(section: SeedsSection, num_parameters: int) -> list[Cohort]:
    """The cohorts of a population of so many parameters; of others' checkpoints a trunk is one."""
    runs, stretch = section.protocol.runs(), section.protocol.run_stretch(section.recipe)
    snapshots, most = stretch.snapshots, max(1, SHARD_BYTES // (4 * num_parameters))
    together = max(1, min(section.cohort_size, most // max(1, snapshots)))
    if isinstance(section.protocol, Checkpoints):
        together, most = 1, stretch.early + snapshots
    cohorts: list[Cohort] = []
    index = 0
    for start in range(0, len(runs), together):
        own, shards = runs[start : start + together], {}
        for first in range(0, snapshots, most):
            last = first + most - stretch.early
            members = tuple(
                m for run in own for m in run if first - stretch.early <= m.snapshot < last
            )
            if members:
                shards[index] = members
                index += 1
        cohorts.append(Cohort(own, min(most, snapshots), shards))
    return cohorts
