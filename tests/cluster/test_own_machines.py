"""``cluster/slurm.sh`` and ``cluster/systemd``: Ray on machines of one's own."""

import configparser
import os
import subprocess
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"


def test_slurm_starts_ray_on_every_node_and_the_run_once(tmp_path: Path) -> None:
    stand_ins = {
        "scontrol": "printf 'a01\\na02\\n'",
        "hostname": "echo 10.0.0.7",
        "ray": 'echo "$RAY_AUTH_MODE ${#RAY_AUTH_TOKEN} ray $@"',
        # Options before the command are srun's own.
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    }
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "a[01-02]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "16",
    }
    done = subprocess.run(
        [CLUSTER / "slurm.sh", "run", "a b.yaml", "--store", "/scratch/s"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == (
        "token 64 ray symmetric-run --address 10.0.0.7:6379 --min-nodes 2 --num-cpus=16 -- "
        "bend run a b.yaml --store /scratch/s --address 10.0.0.7:6379\n"
    )


@pytest.mark.parametrize("who", ["head", "worker"])
def test_systemd_starts_ray_again_and_with_the_token(who: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(CLUSTER / "systemd" / f"bend-ray-{who}.service")
    service = unit["Service"]
    assert service["Restart"] == "always"
    assert "RAY_AUTH_MODE=token" in service["Environment"]
    start = service["ExecStart"].split()
    assert {"--block", "--head" if who == "head" else "--address=HEAD:6379"} <= set(start)
    assert any(each.startswith("--node-ip-address=") for each in start)
