"""A cluster that grows and shrinks on one machine: Ray's autoscaler, and nodes that are processes.

``ray.cluster_utils.AutoscalingCluster`` needs a file that Ray's wheel does not hold, and ends every
Ray process of the machine; this one ends its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import ray
from processes import kill_all
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
)

OBJECT_STORE_BYTES = 150 * 2**20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class AutoscalingCluster:
    """A head of ``head_cpus`` CPUs, and nodes of ``node_types`` as they are asked for.

    Args:
        node_types: name -> ``resources``, ``max_workers`` and ``labels``.
        head_cpus: logical CPUs of the head.
        idle_seconds: after which a node that does nothing goes.
        environment: variables of every process of the cluster.
    """

    def __init__(
        self,
        node_types: Mapping[str, Mapping[str, Any]],
        *,
        head_cpus: int = 3,
        idle_seconds: float = 4.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # Short: the paths of Ray's sockets below it may have 107 characters.
        self.folder = tempfile.mkdtemp(prefix="ba")
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"{ray.util.get_node_ip_address()}:{self.port}"
        self.node_types = node_types
        self.head_cpus = head_cpus
        self.idle_seconds = idle_seconds
        self.environment = dict(environment or {})

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted to."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    def _launcher_config(self) -> dict[str, Any]:
        commands = "initialization setup head_setup worker_setup head_start_ray worker_start_ray"
        provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
        workers = {
            name: {
                "node_config": {},
                "min_workers": 0,
                "labels": {},
                **spec,
                "resources": {"object_store_memory": OBJECT_STORE_BYTES, **spec["resources"]},
            }
            for name, spec in self.node_types.items()
        }
        head = {"resources": {"CPU": self.head_cpus}, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "fake",
            "max_workers": sum(spec["max_workers"] for spec in self.node_types.values()),
            "upscaling_speed": 10.0,
            "idle_timeout_minutes": self.idle_seconds / 60,
            "provider": {
                "type": "external",
                "module": provider,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "gcs_address": self.address,
                "launch_multiple": True,
                "head_node_id": FAKE_HEAD_NODE_ID,
            },
            "available_node_types": {**workers, FAKE_HEAD_NODE_TYPE: head},
            "head_node_type": FAKE_HEAD_NODE_TYPE,
            **{f"{name}_commands": [] for name in commands.split()},
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
            "file_mounts_sync_continuously": False,
        }

    def __enter__(self) -> AutoscalingCluster:
        config = Path(self.folder, "autoscaling.json")
        config.write_text(json.dumps(self._launcher_config()))
        environment = {
            # The token is this process's.
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_") or "AUTH" in k},
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DATA_USE_DATASOURCE_V2": "0",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            **self.environment,
        }
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            f"--port={self.port}",
            f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={free_port()}",
            f"--temp-dir={self.folder}",
            f"--autoscaling-config={config}",
            f"--num-cpus={self.head_cpus}",
            "--num-gpus=0",
            f"--object-store-memory={OBJECT_STORE_BYTES}",
        ]
        # Nodes work in a folder of their own: no path of the driver's means anything there.
        started = subprocess.run(
            command, env=environment, capture_output=True, text=True, cwd=self.folder
        )
        assert started.returncode == 0, started.stdout + started.stderr
        return self

    def __exit__(self, *_: object) -> None:
        processes = self.processes()
        kill_all(processes)
        psutil.wait_procs(processes, timeout=5)

    def kill_node(self, raylet_socket: str) -> None:
        """End a node as a spot market does that gives no notice; see ``ray.nodes()`` for which."""
        kill_all(self.processes(raylet_socket))

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Its processes, of all nodes, whose command line holds ``name``."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                if self.folder in line and process.pid != os.getpid():
                    family = [process, *process.children(recursive=True)]
                    found |= {each.pid: each for each in family}
            except psutil.Error:
                continue
        return [each for each in found.values() if name in _command_line(each)]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
