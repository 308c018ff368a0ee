"""The nodes of a run: who came and went, who computes with what, and which are left out.

A process is asked of every node before any work. A node on which no process starts, or on which
two in a row die before one has done anything, would take all work and do none: it is left out.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bend_ray.artifacts.manifest import installed_versions
from bend_ray.config.resources import Resources
from bend_ray.errors import ClusterError
from bend_ray.process.computing import gpu_problem, usable_memory
from bend_ray.runtime import capacity
from bend_ray.runtime.capacity import Node, Request
from bend_ray.runtime.causes import told
from bend_ray.runtime.tracking import count

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 120.0
LOOK_SECONDS = 5.0
MOST_ACTORS = 1000
MOST_DEATHS = 2
"""Processes that may die on a node, one after another, before it is left out."""
_DECIDING = ("bend_ray", "torch", "numpy")


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

    Attributes:
        own: whether the cluster is this machine alone, and this process its head.
        left_out: why, by the node's id.
    """

    def __init__(self, own: bool) -> None:
        self.own = own
        self.left_out: dict[str, str] = {}
        self._there = {node.id: node for node in capacity.nodes()}
        self._deaths: Counter[str] = Counter()
        self._looked = time.monotonic()

    def usable(self) -> list[Node]:
        """Those that are there and not left out."""
        return [node for node in capacity.nodes() if node.id not in self.left_out]

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
        if (resources.num_gpus or resources.labels) and not self.own and capacity.grows():
            return min(pieces, MOST_ACTORS)
        there = self.room(resources)
        if self.own:  # It declares more CPUs than there are cores.
            cpus = sum(node.resources.get("CPU", 0.0) for node in capacity.nodes())
            there = min(there, int((cpus - capacity.SPARE_CPUS) // resources.cpus))
        return max(1, min(there, pieces))

    def options(self, resources: Resources) -> dict[str, object]:
        """What ``.options(...)`` of a task or actor takes."""
        taken = capacity.bundle(resources)
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
        never = [
            name for name, each in missing.items() if self.own or not capacity.can_grow_to(each)
        ]
        if not never:
            return
        width = max(len(str(each)) for each in asked)
        logger.error(f"{'asked for':<{width + 13}}  fits")
        for each in asked:
            fits = "never" if str(each) in never else "yes"
            logger.error(f"{each.stage:<12} {each!s:<{width}}  {fits}")
        logger.error("there is     %s", capacity.situation())
        raise self._never(missing[never[0]])

    def wait_for(self, asked: Request) -> None:
        """See ``interface.Runtime``; for where the cluster grows to what is asked of it."""
        if not capacity.wait_for(asked):
            raise self._never(asked)

    def _never(self, asked: Request) -> ClusterError:
        more = "" if self.own or not capacity.grows() else ", and no node type it can add fits"
        return ClusterError(
            f"{asked.stage}.resources: the cluster can never give this: asked for {asked}, it has "
            f"{capacity.counted(capacity.nodes())}{more}; lower {asked.stage}.resources or give "
            "--address of a larger cluster"
        )

    def look(self) -> None:
        """Tell who came and who went since the last look; may be called as often as one likes."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        there = {node.id: node for node in capacity.nodes()}
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
