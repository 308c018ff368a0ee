"""A cluster of several nodes on one machine, each a few processes, that can be looked at and hurt.

One a process: it reads Ray's environment when it starts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import ray
from processes import kill_all
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.cluster_utils import Cluster
from ray.util import state

MIB = 2**20
STARTS = 3
"""Times that a cluster may fail to start."""

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "OMP_NUM_THREADS": "1",
    # Ray's own 15 leaves workers next to nothing beside others on a busy machine.
    "RAY_worker_niceness": "0",
    # A node that is gone is known to be in seconds; one that is busy may take its time.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "20000",
    "RAY_health_check_failure_threshold": "5",
}


class Nodes:
    """A head that computes nothing, and nodes beside it.

    Args:
        count: of nodes beside the head.
        cpus: logical ones of each of them.
        store_bytes: of each node's object store.
        environment: variables of all processes, beside this one's.
        setup_worker: a script that starts workers in the place of Ray's.
    """

    def __init__(
        self,
        count: int = 2,
        *,
        cpus: int = 4,
        store_bytes: int = 150 * MIB,
        environment: Mapping[str, str] | None = None,
        setup_worker: Path | None = None,
    ) -> None:
        # Short: the paths of Ray's sockets below it may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="bc"))
        self.temporary = self.folder / "tmp"
        # Ray notes there which cluster is the newest.
        (self.temporary / "ray").mkdir(parents=True)
        self.environment = ENVIRONMENT | {"TMPDIR": str(self.temporary)} | dict(environment or {})
        self._every: dict[str, Any] = {"object_store_memory": store_bytes}
        if setup_worker is not None:
            self._every["setup_worker_path"] = str(setup_worker)
        self._cpus = cpus
        self._count = count
        self._cluster: Any = None

    def __enter__(self) -> Nodes:
        os.environ.update(self.environment)
        head = {
            **self._every,
            "num_cpus": 0,
            "temp_dir": str(self.folder / "ray"),
            "include_dashboard": True,
            "dashboard_port": 0,
        }
        for attempt in range(STARTS):
            try:
                self._cluster = Cluster(initialize_head=True, head_node_args=head)
                for _ in range(self._count):
                    self.add()
                return self
            except Exception:  # Ray raises nothing narrower when a busy machine is too slow for it.
                if attempt == STARTS - 1:
                    raise
                self._end(self.processes())
        raise AssertionError

    def __exit__(self, *_: object) -> None:
        mine = self.processes()
        self._cluster.shutdown()
        self._end(mine)
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _end(processes: list[psutil.Process]) -> None:
        kill_all(processes)
        psutil.wait_procs(processes, timeout=5)

    @property
    def address(self) -> str:
        """Where drivers join."""
        return str(self._cluster.address)

    def add(self) -> None:
        """One more node beside the head."""
        self._cluster.add_node(num_cpus=self._cpus, **self._every)

    def remove_node_of(self, pid: int, raylet: int | None = None) -> str:
        """End the node that a process runs on, as a spot market does that gives no notice.

        Args:
            pid: of the process.
            raylet: that it serves; None: one that it descends from.
        """
        raylets = {raylet} if raylet else {each.pid for each in psutil.Process(pid).parents()}
        for node in list(self._cluster.worker_nodes):
            if raylets & {process.pid for process in _raylets(node)}:
                gone = [p for r in _raylets(node) for p in r.children(recursive=True)]
                self._cluster.remove_node(node, allow_graceful=False)
                for process in gone:
                    if process.is_running():
                        process.kill()
                return f"a node with {len(gone)} processes"
        raise LookupError(f"process {pid} runs on no node beside the head")

    def processes(self) -> list[psutil.Process]:
        """All of the cluster, but this one."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                if str(self.folder) in " ".join(process.cmdline()) and process.pid != os.getpid():
                    family = [process, *process.children(recursive=True)]
                    found |= {each.pid: each for each in family}
            except psutil.Error:
                continue
        return list(found.values())

    def spilled_bytes(self) -> int:
        """By all nodes so far."""
        return object_stores(self.address)["spilled_bytes"]


def living_actors(address: str) -> list[str]:
    """Names of the classes of a cluster's actors that are alive."""
    listed = state.list_actors(address=address, filters=[("state", "!=", "DEAD")], limit=10_000)
    return sorted(actor.class_name for actor in listed)


def placement_groups(address: str) -> int:
    """How many of a cluster have not been removed."""
    filters = [("state", "!=", "REMOVED")]
    return len(state.list_placement_groups(address=address, filters=filters, limit=10_000))


def object_stores(address: str) -> dict[str, int]:
    """Of all nodes together: bytes and objects held, and bytes spilled so far."""
    stats = get_memory_info_reply(get_state_from_address(address)).store_stats
    return {
        "object_store_bytes": stats.object_store_bytes_used,
        "objects": stats.num_local_objects,
        "spilled_bytes": stats.spilled_bytes_total,
    }


def _raylets(node: ray._private.node.Node) -> list[psutil.Process]:
    return [
        psutil.Process(each.process.pid)
        for each in node.all_processes.get("raylet", [])
        if psutil.pid_exists(each.process.pid)
    ]
