"""What a cluster has, and whether it can ever give what a stage asks for.

Nodes that are there are looked at. What they cannot give, an autoscaler may: it is asked by a
placement group, and says within seconds whether one of its node types fits.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from bend_ray.config.graph import ORDINARY
from bend_ray.config.resources import GIGABYTE, Resources, TrainResources
from bend_ray.config.schema import PipelineConfig
from bend_ray.process.log import duration

logger = logging.getLogger(__name__)

# Beside the processes of a stage, Ray Data needs a logical CPU of its own or waits for ever.
SPARE_CPUS = 2
VERDICT_SECONDS = 30.0
"""How long an autoscaler may take to say what it thinks; it looks every 5 s by default."""
POLL_SECONDS = 0.5
REMIND_SECONDS = 10.0

_ACCELERATOR = "accelerator_type:"


@dataclass(frozen=True)
class Request:
    """What a stage asks for: so many processes at the same time, each of which fits on a node."""

    stage: str
    resources: Resources
    processes: int = 1

    def __str__(self) -> str:
        return f"{self.processes} x ({_described(bundle(self.resources), self.resources.labels)})"

    @classmethod
    def of(cls, config: PipelineConfig, stage: str) -> Request:
        """What a stage asks for."""
        resources = getattr(config, "seeds" if stage == ORDINARY else stage).resources
        workers = resources.workers if isinstance(resources, TrainResources) else 1
        return cls(stage, resources, workers[0] if isinstance(workers, tuple) else workers)


@dataclass(frozen=True)
class Node:
    """A node's resources, as Ray names them, its labels, its id and its address."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]
    id: str = ""
    address: str = ""

    def __str__(self) -> str:
        own = {k: v for k, v in self.labels.items() if not k.startswith("ray.io/")}
        return _described(self.resources, own)

    def room(self, resources: Resources) -> int:
        """Processes that it holds when it is empty."""
        if not all(selects(v, self.labels.get(k)) for k, v in resources.labels.items()):
            return 0
        asked = bundle(resources).items()
        return min(int(self.resources.get(k, 0.0) / amount + 1e-9) for k, amount in asked)


def nodes() -> list[Node]:
    """Nodes that are there, busy or not."""
    return [
        Node(n["Resources"], n["Labels"], n["NodeID"], n["NodeManagerAddress"])
        for n in ray.nodes()
        if n["Alive"]
    ]


def bundle(resources: Resources) -> dict[str, float]:
    """What one process takes, as Ray counts it."""
    taken = {"CPU": resources.cpus}
    if resources.num_gpus:
        taken["GPU"] = resources.num_gpus
    if resources.memory:
        taken["memory"] = float(int(resources.memory * GIGABYTE))
    if resources.accelerator:
        taken[f"{_ACCELERATOR}{resources.accelerator}"] = 0.001
    return taken


def selects(selector: str, label: str | None) -> bool:
    """Whether a node with this label, or without it, is selected.

    >>> selects("spot", "spot"), selects("!spot", None), selects("in(a, b)", "b")
    (True, True, True)
    >>> selects("spot", None), selects("!in(a, b)", "b")
    (False, False)
    """
    negated, wanted = selector.startswith("!"), selector.removeprefix("!")
    listed = wanted.removeprefix("in(").removesuffix(")") if wanted.startswith("in(") else wanted
    return (label in [each.strip() for each in listed.split(",")]) != negated


def grows() -> bool:
    """Whether an autoscaler looks after the cluster."""
    return bool(_status().autoscaling_state.autoscaler_state_version)


def can_grow_to(asked: Request) -> bool:
    """Whether the autoscaler can ever give it; it may start a node of each kind that it can give.

    Of several, one after another, as stages ask: together they might be too many for what each
    fits on.
    """
    if not grows():
        return False
    with _waiting(asked) as group:
        return _verdict(group)


def wait_for(asked: Request) -> bool:
    """Wait, and say for what, until the cluster has grown to it; False where it never will."""
    if sum(node.room(asked.resources) for node in nodes()) >= asked.processes:
        return True
    if not grows():
        return False
    started, reminded = time.monotonic(), -REMIND_SECONDS
    with _waiting(asked) as group:
        if not _verdict(group):
            return False
        while not group.wait(0):
            if time.monotonic() - reminded >= REMIND_SECONDS:
                reminded = time.monotonic()
                logger.info("%-12s waiting for %s: %s", asked.stage, asked, situation())
            time.sleep(POLL_SECONDS)
            if _is_infeasible(group, _status()):
                return False
    took = duration(time.monotonic() - started)
    logger.info("%-12s the cluster has grown to it in %s", asked.stage, took)
    return True


def situation() -> str:
    """What the cluster has, and what it is starting or could not start, in one line."""
    state = _status().autoscaling_state
    starting = Counter(each.ray_node_type_name for each in state.pending_instances)
    for asked in state.pending_instance_requests:
        starting[asked.ray_node_type_name] += asked.count
    failed = Counter(each.ray_node_type_name for each in state.failed_instance_requests)
    parts = [f"the cluster has {counted(nodes())}"]
    for what, names in (("starting", starting), ("failed to start", failed)):
        if names:
            parts.append(f"{what}: {', '.join(f'{n} {name}' for name, n in names.items())}")
    return "; ".join(parts)


def counted(found: Iterable[Node]) -> str:
    """Nodes in words, alike ones together."""
    alike = Counter(map(str, found))
    return ", ".join(f"{n} x ({node})" for node, n in alike.items()) or "no nodes"


def _described(resources: Mapping[str, float], labels: Mapping[str, str]) -> str:
    amounts = [f"{resources.get(name, 0.0):g} {name}" for name in ("CPU", "GPU")]
    if memory := resources.get("memory"):
        amounts.append(f"{memory / GIGABYTE:.3g} GB")
    kinds = [k.removeprefix(_ACCELERATOR) for k in resources if k.startswith(_ACCELERATOR)]
    return ", ".join([*amounts, *kinds, *(f"{k}={v}" for k, v in labels.items())])


@contextmanager
def _waiting(asked: Request) -> Iterator[PlacementGroup]:
    bundles = [bundle(asked.resources)] * asked.processes
    selectors = [dict(asked.resources.labels)] * asked.processes
    group = placement_group(bundles, strategy="PACK", bundle_label_selector=selectors)
    try:
        yield group
    finally:
        remove_placement_group(group)


def _verdict(group: PlacementGroup) -> bool:
    """Whether the autoscaler, having seen a placement group, has not called it infeasible.

    One that says nothing for long is busy: it gets the benefit of the doubt, and waiting is told.
    """
    deadline, noticed = time.monotonic() + VERDICT_SECONDS, None
    while time.monotonic() < deadline:
        if group.wait(0):
            return True
        status = _status()
        demand = status.cluster_resource_state
        if noticed is None and _names(group, demand.pending_gang_resource_requests):
            noticed = demand.cluster_resource_state_version
        seen = status.autoscaling_state.last_seen_cluster_resource_state_version
        if noticed is not None and seen >= noticed:
            return not _is_infeasible(group, status)
        time.sleep(POLL_SECONDS)
    return True


def _is_infeasible(group: PlacementGroup, status: Any) -> bool:
    return _names(group, status.autoscaling_state.infeasible_gang_resource_requests)


def _names(group: PlacementGroup, gangs: Iterable[Any]) -> bool:
    return any(gang.details.startswith(group.id.hex()) for gang in gangs)


def _status() -> Any:
    """What the autoscaler and the cluster say of each other.

    ``ray.autoscaler.v2.sdk.get_cluster_status`` leaves out what the autoscaler calls infeasible.
    """
    client = ray._raylet.GcsClient(ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=10))
    return reply
