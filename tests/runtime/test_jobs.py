"""``bend submit`` against the session's cluster: a job outlives whoever handed it in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from tiny import TINY

from bend_ray.runtime.jobs import Jobs

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


AGENT_PORT = 52365
"""Where a head is given jobs; of two clusters of a host only the first one has it."""


@pytest.fixture
def dashboard() -> str:
    family = {child.pid for child in psutil.Process().children(recursive=True)}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    if {c.pid for c in listening if c.laddr.port == AGENT_PORT} - family:
        pytest.skip("needs a host without another Ray cluster, which would be given the jobs")
    return f"http://{ray._private.worker.get_dashboard_url()}"


def submit(folder: Path, dashboard: str, *command: str) -> subprocess.Popen[str]:
    arguments = ["submit", "--address", dashboard, "--follow", "--", *command]
    return subprocess.Popen(
        [sys.executable, "-m", "bend_ray", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )


def test_ctrl_c_leaves_the_job_which_exits_as_it_does(tmp_path: Path, dashboard: str) -> None:
    sets = [part for knob in TINY for part in ("--set", knob)]
    config = tmp_path / "configs" / "tiny.yaml"
    config.parent.mkdir()
    config.write_text("seed: 5\n")
    store = tmp_path / "store"
    run = ["seeds", "configs/tiny.yaml", "--store", str(store), *sets]
    left = submit(tmp_path, dashboard, *run)
    assert left.stdout is not None
    said = left.stdout.readline()  # what the job prints comes while it runs
    left.send_signal(signal.SIGINT)
    out, err = left.communicate(timeout=60)
    assert left.returncode == 130, err
    assert "Traceback" not in err
    job = re.findall(r"^job (\S+)$", err, flags=re.MULTILINE)[0]
    assert f"ray job stop --address {dashboard} {job}" in err

    jobs = Jobs(dashboard)
    deadline = time.monotonic() + 120
    while not jobs.has_ended(job):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert jobs.exit_code(job) == 0
    (manifest,) = store.glob("seeds/*/manifest.json")
    whole: list[str] = []
    jobs.follow(job, whole.append)
    log = "".join(whole)
    assert log.startswith(said + out)
    assert str(manifest.parent) in log

    refused = submit(
        tmp_path, dashboard, *run, "--set", "seed=6", "--set", "seeds.resources.cpus=1000"
    )
    out, err = refused.communicate(timeout=120)
    assert refused.returncode == 2, out + err
    assert "seeds.resources: the cluster can never give this" in out, out


def test_only_what_is_named_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bend_ray.runtime.jobs import _gather

    monkeypatch.chdir(tmp_path)
    for name in ("configs/a.yaml", "configs/b.yaml", "bend-store/seeds/shard-00000.parquet"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    _gather(tmp_path / "job", [Path("configs/a.yaml")], package=True)
    sent = {str(f.relative_to(tmp_path / "job")) for f in (tmp_path / "job").rglob("*.yaml")}
    assert sent == {"configs/a.yaml"}
    assert (tmp_path / "job" / "bend_ray" / "cli" / "main.py").is_file()
    assert {each.name for each in (tmp_path / "job").iterdir()} == {"configs", "bend_ray"}
    assert not list((tmp_path / "job").rglob("__pycache__"))
    assert os.listdir(tmp_path / "bend-store") == ["seeds"]
