"""Connecting to a cluster, and refusing at once what it can never give."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from bend_ray.artifacts.cost import Cost
from bend_ray.config import ActorResources, PipelineConfig, Resources
from bend_ray.errors import ClusterError

logger = logging.getLogger(__name__)

# Beside the processes of a stage, Ray Data needs a logical CPU of its own or waits for ever.
SPARE_CPUS = 2
OBJECT_STORE_BYTES = 400 * 2**20
PROBE_SECONDS = 10.0

_own = False


def connect(address: str | None) -> None:
    """Join the cluster at ``address``, or start one on this machine.

    Args:
        address: ``host:port``, ``auto``, or None: what RAY_ADDRESS says, else our own cluster.

    Raises:
        ClusterError: no cluster answers there.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {
        "log_to_driver": logger.isEnabledFor(logging.DEBUG),
        "logging_level": logging.WARNING,
        "namespace": "bend",
    }
    if address is None:
        _start(quiet)
        return
    _probe(address)
    try:
        ray.init(address=address, **quiet)
        _set_up_data()
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_answer(address, error) from None


def _start(quiet: dict[str, Any]) -> None:
    global _own
    logger.info("ray          starting on this machine")
    try:
        ray.init(
            address="local",
            num_cpus=(os.cpu_count() or 1) + SPARE_CPUS,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=True,  # Ray Train asks its State API
            **quiet,
        )
    except Exception as error:  # Ray raises nothing narrower when a process of it is too slow.
        reason = str(error).strip().partition("\n")[0]
        raise ClusterError(
            f"expected Ray to start on this machine, got: {reason}; it may be too busy or short "
            "of memory: run again, or give --address of a cluster"
        ) from error
    _own = True
    _set_up_data()


def _probe(address: str) -> None:
    """Fail within seconds where nothing listens: Ray itself tries for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except OSError as error:
        raise _no_answer(address, error) from None


def _no_answer(address: str, error: Exception) -> ClusterError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return ClusterError(
        f"--address {address}: expected a Ray cluster to answer, got: {reason}; check the "
        "address, or leave it out to start one on this machine"
    )


def _set_up_data() -> None:
    """Make Ray Data quiet, and its errors ours: stages say what is going on."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)
    logging.getLogger("ray.data._internal.execution.streaming_executor_state").setLevel(
        logging.CRITICAL
    )
    # It also warns that its progress bars are off, which is what the lines below ask for.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Its own wrapping loses what was wrapped on the way to the driver.
    context.raise_original_map_exception = True


def is_own() -> bool:
    """Whether ``connect`` started the cluster: one machine, this one, and this process its head."""
    return _own


def settle_in(*, own: bool) -> None:
    """Make this worker process one that may run stages, as the process that connected does.

    Args:
        own: what ``is_own`` says there.
    """
    global _own
    _own = own
    _set_up_data()


@dataclass(frozen=True)
class Capacity:
    """CPUs and GPUs of the cluster, and of its largest node."""

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float

    @classmethod
    def now(cls) -> Capacity:
        """What the connected cluster has, free or not."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [float(node.get("CPU", 0.0)) for node in nodes]
        gpus = [float(node.get("GPU", 0.0)) for node in nodes]
        return cls(sum(cpus), sum(gpus), max(cpus, default=0.0), max(gpus, default=0.0))


def require(stage: str, resources: Resources, workers: int = 1) -> None:
    """Refuse at once what would wait for ever.

    Args:
        stage: whose processes they are.
        resources: of one process, which must fit on one node.
        workers: how many there must be at the same time.

    Raises:
        ClusterError: with what was asked and what there is.
    """
    have = Capacity.now()
    fits_node = resources.cpus <= have.node_cpus and resources.gpus <= have.node_gpus
    fits = workers * resources.cpus <= have.cpus and workers * resources.gpus <= have.gpus
    if fits_node and fits:
        return
    raise ClusterError(
        f"{stage}.resources: the cluster can never give this: asked for {workers} x "
        f"({resources.cpus:g} CPU, {resources.gpus:g} GPU), it has {have.cpus:g} CPU and "
        f"{have.gpus:g} GPU, at most {have.node_cpus:g} CPU and {have.node_gpus:g} GPU on one "
        f"node; lower {stage}.resources or give --address of a larger cluster"
    )


def preflight(config: PipelineConfig, stages: Sequence[str]) -> None:
    """``require`` for every stage that is to run, before the first one starts.

    Raises:
        ClusterError: as ``require``.
    """
    for stage in stages:
        resources = getattr(config, stage).resources
        workers = getattr(resources, "workers", None) or 1
        require(stage, resources, workers[0] if isinstance(workers, tuple) else workers)


def num_actors(resources: ActorResources, pieces: int) -> int:
    """How many processes share out ``pieces`` of work: no more than can run at once."""
    if resources.workers is not None:
        return min(resources.workers, pieces)
    have = Capacity.now()
    # A cluster of our own declares more CPUs than there are cores.
    room = int((have.cpus - SPARE_CPUS if is_own() else have.cpus) // resources.cpus)
    if resources.gpus:
        room = min(room, int(have.gpus // resources.gpus))
    return max(1, min(room, pieces))


def options(resources: Resources) -> dict[str, object]:
    """What ``.options(...)`` of a task or actor takes."""
    return {"num_cpus": resources.cpus, "num_gpus": resources.gpus}


def settle(resources: Resources) -> str:
    """Set up this worker process for computing: one thread a CPU; returns its device.

    Two torch threads on one contended core are 40 times slower than one.
    """
    import torch

    torch.set_num_threads(max(1, int(resources.cpus)))
    return "cuda" if resources.gpus and torch.cuda.is_available() else "cpu"


def total(costs: Sequence[Cost], wall_seconds: float) -> Cost:
    """The cost of pieces done side by side in ``wall_seconds``."""
    summed = sum(costs, Cost())
    return Cost(
        cpu_seconds=summed.cpu_seconds, gpu_seconds=summed.gpu_seconds, wall_seconds=wall_seconds
    )
