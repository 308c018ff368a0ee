"""The nodes of a run: what there is, what could be, and what of it is used.

Nodes that are there are looked at. What they cannot give, an autoscaler may: it is asked by a
placement group, and says within seconds whether one of its node types fits.

A process is asked of every node before any work. A node on which no process starts, or on which
two in a row die before one has done anything, would take all work and do none: it is left out.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import ray
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bend_ray.artifacts.manifest import installed_versions
from bend_ray.config.graph import ORDINARY
from bend_ray.config.resources import GIGABYTE, Resources, TrainResources
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import ClusterError
from bend_ray.process.computing import gpu_problem, usable_memory
from bend_ray.process.log import duration
from bend_ray.runtime.causes import told
from bend_ray.runtime.tracking import count

logger = logging.getLogger(__name__)

# Beside the processes of a stage, Ray Data needs a logical CPU of its own or waits for ever.
SPARE_CPUS = 2
VERDICT_SECONDS = 30.0
"""How long an autoscaler may take to say what it thinks; it looks every 5 s by default."""
POLL_SECONDS = 0.5
REMIND_SECONDS = 10.0

_ACCELERATOR = "accelerator_type:"
ANSWER_SECONDS = 120.0
LOOK_SECONDS = 5.0
MOST_ACTORS = 1000
MOST_DEATHS = 2
"""Processes that may die on a node, one after another, before it is left out."""
_DECIDING = ("bend_ray", "torch", "numpy")


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
    taken = {"CPU": resources.cpus, "GPU": resources.num_gpus}
    taken["memory"] = float(int((resources.memory or 0.0) * GIGABYTE))
    taken[f"{_ACCELERATOR}{resources.accelerator}"] = 0.001 if resources.accelerator else 0.0
    return {name: amount for name, amount in taken.items() if amount}


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


@cache
def versions() -> dict[str, str]:
    """Of what decides results, in this process."""
    found = installed_versions()
    return {name: found[name] for name in _DECIDING}


def expect(wanted: dict[str, str]) -> None:
    """Refuse, by a ClusterError, to compute with something else than the driver does."""
    if versions() != wanted:
        raise ClusterError(differs(wanted, {ray.util.get_node_ip_address(): versions()}))


def unlike(wanted: dict[str, str], found: Mapping[str, str]) -> list[str]:
    """What of the wanted versions somebody else does not have."""
    return [name for name, version in wanted.items() if found[name] != version]


def differs(wanted: dict[str, str], found: dict[str, dict[str, str]]) -> str:
    """That nodes compute with something else than is wanted, by their addresses."""

    def named(versions: dict[str, str], names: Sequence[str]) -> str:
        return ", ".join(f"{name} {versions[name]}" for name in names)

    wrong = (f"{named(each, unlike(wanted, each))} on node {node}" for node, each in found.items())
    return (
        f"expected {named(wanted, list(wanted))} on every node, as the driver has, got "
        f"{'; '.join(wrong)}: install the same on all machines"
    )


def computes_with(gpus: float) -> dict[str, str]:
    """What decides how a process of this node computes, and why its GPU does not."""
    import torch  # noqa: F401 - so that its kernels are among the versions

    return installed_versions() | {"problem": (gpus and gpu_problem()) or ""}


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference, timeout=0.0)
    except ray.exceptions.RayError as error:
        return error


class Nodes:
    """The nodes of the cluster that this process is connected to.

    It is our ``own`` where it is this machine alone, and this process its head. ``left_out`` says
    why, by the node's id.
    """

    def __init__(self, own: bool) -> None:
        self.own = own
        self.left_out: dict[str, str] = {}
        self._there = {node.id: node for node in nodes()}
        self._deaths: Counter[str] = Counter()
        self._looked = time.monotonic()

    def usable(self) -> list[Node]:
        """Those that are there and not left out."""
        return [node for node in nodes() if node.id not in self.left_out]

    def room(self, resources: Resources) -> int:
        """Processes that they hold when they are empty."""
        return sum(node.room(resources) for node in self.usable())

    def memory(self) -> float:
        """Bytes of memory of the smallest."""
        kinds = ("memory", "object_store_memory")
        held = [sum(each.resources.get(k, 0.0) for k in kinds) for each in self.usable()]
        return usable_memory() if self.own else min(held, default=0.0)

    def num_actors(self, resources: Resources, pieces: int) -> int:
        """How many processes share out ``pieces`` of work.

        No more than can run at once, where that is known; a cluster that grows is asked for as many
        as there are pieces where they ask for GPUs, or for nodes of a kind.
        """
        if (asked := getattr(resources, "workers", None)) is not None:
            return min(int(asked), pieces)
        if (resources.num_gpus or resources.labels) and not self.own and grows():
            return min(pieces, MOST_ACTORS)
        there = self.room(resources)
        if self.own:  # It declares more CPUs than there are cores.
            cpus = sum(node.resources.get("CPU", 0.0) for node in nodes())
            there = min(there, int((cpus - SPARE_CPUS) // resources.cpus))
        return max(1, min(there, pieces))

    def options(self, resources: Resources) -> dict[str, object]:
        """What ``.options(...)`` of a task or actor takes."""
        taken = bundle(resources)
        given: dict[str, object] = {"num_cpus": taken.pop("CPU"), "num_gpus": taken.pop("GPU", 0.0)}
        given |= {"memory": taken.pop("memory", None), "resources": taken}
        if selector := self.selector(resources):
            given["label_selector"] = selector
        if getattr(resources, "placement", "pack") == "spread":
            given["scheduling_strategy"] = "SPREAD"
        return given

    def selector(self, resources: Resources) -> dict[str, str]:
        """Labels by which Ray finds the nodes asked for, and keeps work from what is left out."""
        names = ", ".join(sorted(self.left_out))
        without = {"ray.io/node-id": f"!in({names})"} if names else {}
        return {**resources.labels, **without}

    def refuse_what_never_fits(self, asked: Sequence[Request]) -> None:
        """See ``interface.Runtime.preflight``; of what does not fit, a table says what there is."""
        missing = {str(each): each for each in asked if self.room(each.resources) < each.processes}
        # One after another, as stages ask: together they might be too many for what each fits on.
        never = [name for name, each in missing.items() if not self._can_grow_to(each)]
        if not never:
            return
        width = max(len(str(each)) for each in asked)
        logger.error(f"{'asked for':<{width + 13}}  fits")
        for each in asked:
            fits = "never" if str(each) in never else "yes"
            logger.error(f"{each.stage:<12} {each!s:<{width}}  {fits}")
        logger.error("there is     %s", situation())
        raise self._never(missing[never[0]])

    def _can_grow_to(self, asked: Request) -> bool:
        """Whether the autoscaler can ever give it; it may start a node of each kind that it can."""
        if self.own or not grows():
            return False
        with _waiting(asked) as group:
            return _verdict(group)

    def wait_for(self, asked: Request) -> None:
        """Wait, and say for what, until the cluster has grown to it; see ``interface.Runtime``."""
        if sum(node.room(asked.resources) for node in nodes()) >= asked.processes:
            return
        if not grows():
            raise self._never(asked)
        started, reminded = time.monotonic(), -REMIND_SECONDS
        with _waiting(asked) as group:
            fits = _verdict(group)
            while fits and not group.wait(0):
                if time.monotonic() - reminded >= REMIND_SECONDS:
                    reminded = time.monotonic()
                    logger.info("%-12s waiting for %s: %s", asked.stage, asked, situation())
                time.sleep(POLL_SECONDS)
                fits = not _is_infeasible(group, _status())
        if not fits:
            raise self._never(asked)
        took = duration(time.monotonic() - started)
        logger.info("%-12s the cluster has grown to it in %s", asked.stage, took)

    def _never(self, asked: Request) -> ClusterError:
        more = "" if self.own or not grows() else ", and no node type it can add fits"
        return ClusterError(
            f"{asked.stage}.resources: the cluster can never give this: asked for {asked}, it has "
            f"{counted(nodes())}{more}; lower {asked.stage}.resources or give "
            "--address of a larger cluster"
        )

    def look(self) -> None:
        """Tell who came and who went since the last look; may be called as often as one likes."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        there = {node.id: node for node in nodes()}
        for node in [there[key] for key in there.keys() - self._there.keys()]:
            logger.info("cluster      node %s has joined: %s", node.address, node)
        for node in [self._there[key] for key in self._there.keys() - there.keys()]:
            logger.warning("cluster      node %s is lost, others go on", node.address)
        self._there = there

    def ask(
        self, question: Callable[..., Any], arguments: Callable[[Node], tuple[Any, ...]]
    ) -> dict[str, Any]:
        """What a process of each node answers, by the node's id; an exception where none does."""
        # It ends with its answer: a process that has looked at a GPU holds memory there.
        task = ray.remote(num_cpus=0, max_retries=MOST_DEATHS - 1, max_calls=1)(question)
        asked = {}
        for node in self.usable():
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            asked[node.id] = task.options(scheduling_strategy=there).remote(*arguments(node))
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
        return {key: _answer(reference) for key, reference in asked.items()}

    def check(self, gpus: bool = False) -> bool:
        """Ask every node what it computes with, be it with ``gpus``; whether some do not answer.

        These are left out. ClusterError where none answers, one has other versions, or a GPU that
        does not work.
        """
        answers = self.ask(computes_with, lambda node: (gpus * node.resources.get("GPU", 0.0),))
        found = {k: answer for k, answer in answers.items() if not isinstance(answer, Exception)}
        for key in answers.keys() - found.keys():
            self.leave_out(key, f"no process starts there: {told(answers[key])}")
        if not found:
            reason = next(iter(self.left_out.values()), "no nodes")
            raise ClusterError(f"expected a process to start on a node, got: {reason}")
        wanted = versions()
        if others := {self.address(k): each for k, each in found.items() if unlike(wanted, each)}:
            raise ClusterError(differs(wanted, others))
        if problem := next((each["problem"] for each in found.values() if each["problem"]), None):
            raise ClusterError(problem)
        kernels = Counter(answer["kernels"] for answer in found.values())
        if len(kernels) > 1:
            logger.warning(
                "cluster      nodes compute with unlike kernels, whose results differ in the last "
                "digits: %s",
                ", ".join(f"{n} x {name}" for name, n in kernels.most_common()),
            )
        return len(found) < len(answers)

    def gpu_problem(self) -> str:
        """Why a GPU of a node does not work; empty where all do."""
        answers = self.ask(computes_with, lambda node: (node.resources.get("GPU", 0.0),))
        problems = [a["problem"] for a in answers.values() if not isinstance(a, Exception)]
        return next(filter(None, problems), "")

    def address(self, key: str) -> str:
        """A node's, by its id."""
        return self._there[key].address if key in self._there else key

    def leave_out(self, key: str, why: str) -> None:
        """Give a node no more work."""
        self.left_out[key] = f"node {self.address(key)}: {why}"
        count("left_out", 1)
        logger.warning("cluster      node %s is left out: %s", self.address(key), why)

    def died(self, key: str, why: str, resources: Resources) -> None:
        """A process died there that had done nothing since it, or the one before, began."""
        self._deaths[key] += key in self._there
        if self._deaths[key] >= MOST_DEATHS and self.has_others(key, resources):
            self.leave_out(key, f"{MOST_DEATHS} processes in a row died there, the last: {why}")

    def has_others(self, key: str, resources: Resources) -> bool:
        """Whether work can go on without a node that is not left out yet."""
        others = [node for node in self.usable() if node.id != key and node.room(resources)]
        return bool(others) and key not in self.left_out

    def did_well(self, key: str) -> None:
        """A process did something there."""
        self._deaths[key] = 0
