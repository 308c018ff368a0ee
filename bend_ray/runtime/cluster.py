"""Connecting to a cluster, and refusing at once what it can never give."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from bend_ray.config.graph import ORDINARY
from bend_ray.config.resources import Resources, TrainResources
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import ClusterError
from bend_ray.process.computing import usable_cores, usable_memory
from bend_ray.process.environment import variable
from bend_ray.runtime import capacity
from bend_ray.runtime.address import check_address, no_answer
from bend_ray.runtime.capacity import Request
from bend_ray.runtime.environment import cluster_to_join
from bend_ray.runtime.nodes import Nodes
from bend_ray.runtime.sending import importable, send_with
from bend_ray.storage.masking import masked, utf8

logger = logging.getLogger(__name__)

# Beside the processes of a stage, Ray Data needs a logical CPU of its own or waits for ever.
SPARE_CPUS = 2
MOST_ACTORS = 1000
STORE_SHARE = 0.3
"""Of memory, that objects may take: data sets, and what workers and trainings hand over."""
LEAST_STORE_BYTES = 100 * 2**20
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Ray keeps objects
SHORT = "/tmp"  # noqa: S108 - where Ray is without TMPDIR
LONGEST_FOLDER = 103 - len("/ray/session_2026-01-31_12-00-00_000000_4194304/sockets/plasma_store")
"""Bytes in the path of it: a socket's path has 103 at most on macOS, on Linux 107."""

_started_here = False
"""Whether the cluster that this process is connected to was started by it."""


def _keep_stdout_for_results() -> None:
    """Have Ray show on stderr, and only if asked to, what workers print and what befalls nodes.

    It writes both to stdout, the latter even where ``log_to_driver`` is off.
    """
    worker = ray._private.worker
    show = getattr(worker, "print_to_stdstream", None)
    if show is None:  # private, so another Ray may have none
        return

    def to_stderr(data: dict[str, Any], ignore_prefix: bool) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            show(data | {"is_err": True}, ignore_prefix)

    worker.print_to_stdstream = to_stderr


def _keep_credentials_out_of_job_metadata() -> None:
    """Have Ray note the command line of this driver, which names the store, masked.

    It shows it in its dashboard, and writes it into its logs.
    """
    utils = ray._private.utils
    entrypoint = getattr(utils, "get_entrypoint_name", None)
    if entrypoint is not None:  # private, so another Ray may have none
        utils.get_entrypoint_name = lambda: utf8(masked(entrypoint()))


def connect(address: str | None, config: PipelineConfig | None = None) -> bool:
    """Join the cluster at ``address`` or RAY_ADDRESS, or start one on this machine.

    Workers can import the code of the user's own that ``config`` names.

    Returns:
        Whether the cluster is our own: one machine, this one, and this process its head.

    Raises:
        ClusterError: no cluster answers there.
        ConfigError: there is no such code.
    """
    global _started_here
    if not ray.is_initialized():
        with importable(config) as code:
            _started_here = _connect(address, code)
    else:
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "local", "auto", here):
            raise ClusterError(
                f"address: expected the cluster that this process is in, {here}, got "
                f"{masked(str(address))}; call ray.shutdown() before you join another"
            )
        if config is not None:
            send_with(config)
    set_up_data()
    return _started_here


def _connect(address: str | None, code: dict[str, Any]) -> bool:
    _keep_stdout_for_results()
    _keep_credentials_out_of_job_metadata()
    quiet = {
        "log_to_driver": logger.isEnabledFor(logging.DEBUG),
        "logging_level": logging.WARNING,
        "namespace": "bend",
        **code,
    }
    join = cluster_to_join(address)
    if join is None:
        _start(quiet)
        return True
    named = f"--address {join}" if address else f"RAY_ADDRESS={join}"
    check_address(join, named)
    try:
        ray.init(address=join, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise no_answer(named, str(error) or type(error).__name__) from None
    return False


def _start(quiet: dict[str, Any]) -> None:
    logger.info("ray          starting on this machine")
    try:
        with _short_paths():
            ray.init(
                address="local",
                num_cpus=usable_cores() + SPARE_CPUS,
                object_store_memory=object_store_bytes(usable_memory(), _shared_memory()),
                include_dashboard=True,  # Ray Train asks its State API
                **quiet,
            )
    except Exception as error:  # Ray raises nothing narrower when a process of it is too slow.
        reason = str(error).strip().partition("\n")[0]
        raise ClusterError(
            f"expected Ray to start on this machine, got: {reason}; it may be too busy or short "
            "of memory: run again, or give --address of a cluster"
        ) from error


def object_store_bytes(memory: float, shared: float) -> int:
    """What objects may take on a machine with so many bytes of memory, and of it shared.

    What shared memory has no room for Ray would keep in files, at a disk's speed.
    """
    return int(max(LEAST_STORE_BYTES, min(STORE_SHARE * memory, 0.9 * shared)))


def _shared_memory() -> float:
    """Bytes that are free where objects are kept."""
    try:
        return float(shutil.disk_usage(SHARED_MEMORY).free)
    except OSError:  # not on Linux
        return math.inf


def node_memory(own: bool, nodes: Nodes) -> float:
    """Bytes of memory of the smallest node."""
    kinds = ("memory", "object_store_memory")
    held = [sum(each.resources.get(k, 0.0) for k in kinds) for each in nodes.usable()]
    return usable_memory() if own else min(held, default=0.0)


@contextmanager
def _short_paths() -> Iterator[None]:
    """Within, a folder for temporary files in whose path there is room for one of a socket.

    Batch systems make long ones.
    """
    named = {name: path for name in ("RAY_TMPDIR", "TMPDIR") if (path := variable(name))}
    if all(len(os.fsencode(path)) <= LONGEST_FOLDER for path in named.values()):
        yield
        return
    logger.info("ray          uses %s: the path of %s is too long", SHORT, " and ".join(named))
    os.environ.update(dict.fromkeys(named, SHORT))
    try:
        yield
    finally:
        os.environ.update(named)


def set_up_data() -> None:
    """Make Ray Data quiet and its order that of its parts: stages say what is going on.

    For every process that runs stages: the one that connected, and workers that do.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for noisy in ("exceptions", "_internal.execution.streaming_executor_state"):
        logging.getLogger(f"ray.data.{noisy}").setLevel(logging.CRITICAL)
    # It also warns that its progress bars are off, which is what the lines below ask for.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Its own wrapping loses what was wrapped on the way to the driver.
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True


def requests(config: PipelineConfig, stages: Sequence[str]) -> list[Request]:
    """What stages ask for, in their order."""
    return [request(config, stage) for stage in stages]


def request(config: PipelineConfig, stage: str) -> Request:
    """What a stage asks for."""
    resources = getattr(config, "seeds" if stage == ORDINARY else stage).resources
    workers = resources.workers if isinstance(resources, TrainResources) else 1
    return Request(stage, resources, workers[0] if isinstance(workers, tuple) else workers)


def preflight(config: PipelineConfig, stages: Sequence[str], own: bool, nodes: Nodes) -> None:
    """See ``interface.Runtime``."""
    asked = requests(config, stages)
    missing = [each for each in asked if nodes.room(each.resources) < each.processes]
    can_be = [False] * len(missing) if own else capacity.can_grow_to(missing)
    never = [each for each, fits in zip(missing, can_be, strict=True) if not fits]
    if never:
        for line in _comparison(asked, never):
            logger.error(line)
        raise _never(never[0], own)


def wait_for(asked: Request, own: bool) -> None:
    """See ``interface.Runtime``; for where the cluster grows to what is asked of it."""
    if not capacity.wait_for(asked):
        raise _never(asked, own)


def _comparison(asked: Sequence[Request], never: Sequence[Request]) -> list[str]:
    """The table of what is asked and what exists."""
    width = max(len(str(each)) for each in asked)
    verdicts = ["never" if each in never else "yes" for each in asked]
    pairs = zip(asked, verdicts, strict=True)
    rows = [f"{each.stage:<12} {each!s:<{width}}  {verdict}" for each, verdict in pairs]
    return [f"{'asked for':<{width + 13}}  fits", *rows, f"there is     {capacity.situation()}"]


def _never(request: Request, own: bool) -> ClusterError:
    has = capacity.counted(capacity.nodes())
    more = "" if own or not capacity.grows() else ", and no node type it can add fits"
    return ClusterError(
        f"{request.stage}.resources: the cluster can never give this: asked for {request}, it has "
        f"{has}{more}; lower {request.stage}.resources or give --address of a larger cluster"
    )


def num_actors(resources: Resources, pieces: int, own: bool, nodes: Nodes) -> int:
    """How many processes share out ``pieces`` of work.

    No more than can run at once, where that is known; a cluster that grows is asked for as many
    as there are pieces where they ask for GPUs, or for nodes of a kind.
    """
    if (asked := getattr(resources, "workers", None)) is not None:
        return min(int(asked), pieces)
    if (resources.num_gpus or resources.labels) and not own and capacity.grows():
        return min(pieces, MOST_ACTORS)
    there = nodes.room(resources)
    if own:  # It declares more CPUs than there are cores.
        cpus = sum(node.resources.get("CPU", 0.0) for node in capacity.nodes())
        there = min(there, int((cpus - SPARE_CPUS) // resources.cpus))
    return max(1, min(there, pieces))


def options(resources: Resources, nodes: Nodes) -> dict[str, object]:
    """What ``.options(...)`` of a task or actor takes."""
    taken = capacity.bundle(resources)
    given: dict[str, object] = {"num_cpus": taken.pop("CPU"), "num_gpus": taken.pop("GPU", 0.0)}
    given |= {"memory": taken.pop("memory", None), "resources": taken}
    if selector := {**resources.labels, **nodes.selector()}:
        given["label_selector"] = selector
    if getattr(resources, "placement", "pack") == "spread":
        given["scheduling_strategy"] = "SPREAD"
    return given
