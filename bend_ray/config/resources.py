"""What the processes of a stage are given, and where they run: never what they compute."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from bend_ray.spec import Spec

GIGABYTE = 1e9
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"


def _label_key(key: str) -> str:
    if not re.fullmatch(rf"(?:[a-z0-9][a-z0-9.-]*/)?{_NAME}", key):
        raise ValueError(f"expected a label's name, as in market or example.com/pool, got {key!r}")
    return key


def _label_value(value: str) -> str:
    if not re.fullmatch(rf"!?(?:{_NAME}|in\({_NAME}(?:, *{_NAME})*\))", value):
        raise ValueError(f"expected spot, !spot, in(a, b) or !in(a, b), got {value!r}")
    return value


LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
Placement = Literal["pack", "spread"]


class Resources(Spec):
    """What one process of a stage is given; where work runs never changes what it computes."""

    cpus: PositiveFloat = 1.0
    """CPUs a process."""
    gpus: NonNegativeFloat | Literal["auto"] = "auto"
    """GPUs a process; a fraction puts several processes on one GPU. 0 for none.

    auto: of the nodes that are there when a run begins. Classifiers are trained, drawn and asked
    on GPUs, small ones four processes on one; latents are learnt on CPUs, from principal
    coefficients in seconds. Where no GPU works, all on CPUs. A line says what was chosen.
    """
    memory: PositiveFloat | None = None
    """Gigabytes of main memory a process; null for the models it will hold, where they take one.

    A node runs no more processes than have room in seven tenths of its memory.
    """
    accelerator: str | None = None
    """Kind of accelerator its node must have, as Ray names it: A10G, L4, H100; null for any."""
    labels: dict[LabelKey, LabelValue] = {}  # noqa: RUF012 - pydantic copies it
    """Labels its node must have, as in {market: spot}; also !spot, in(a, b) and !in(a, b)."""

    @property
    def num_gpus(self) -> float:
        """GPUs a process; none as long as nobody has looked for any."""
        return 0.0 if self.gpus == "auto" else self.gpus

    # The generated one would hash the fields, and a dict has none.
    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class HourlyPrice(Spec):
    """What processors cost an hour, in whatever is paid with."""

    cpu: NonNegativeFloat = 0.0
    """A CPU: a node's price, by its CPUs."""
    gpu: NonNegativeFloat = 0.0
    """A GPU, with all that is in its node beside it."""


class ActorResources(Resources):
    """Processes that share out independent pieces of work."""

    workers: PositiveInt | None = None
    """Processes; null for as many as the cluster has room for and there are pieces of work.

    A cluster that grows is asked for as many GPU processes as there are pieces.
    """
    placement: Placement = "pack"
    """pack fills a node before the next is used; spread puts neighbours on different nodes."""


class TrainResources(Resources):
    """Workers of one distributed training."""

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Workers of the data-parallel training; [least, most] trains on as many as there are."""
    placement: Placement = "pack"
    """pack puts workers on as few nodes as can be; spread puts them on different ones."""

    @model_validator(mode="after")
    def _ordered(self) -> TrainResources:
        if isinstance(self.workers, tuple) and self.workers[0] > self.workers[1]:
            raise ValueError(f"expected workers [least, most], got {list(self.workers)}")
        return self
