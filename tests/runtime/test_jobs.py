"""``bend submit`` against the session's cluster: a job outlives whoever handed it in."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from tiny import TINY

from bend_ray.cli.main import cli
from bend_ray.cli.submit import _checked
from bend_ray.errors import ClusterError
from bend_ray.runtime import jobs as module
from bend_ray.runtime.jobs import Jobs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900), pytest.mark.usefixtures("cluster")]


@pytest.fixture
def dashboard() -> str:
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
    out, err = left.communicate(timeout=120)
    assert left.returncode == 130, err
    assert "Traceback" not in err
    job = re.findall(r"^job (\S+)$", err, flags=re.MULTILINE)[0]
    assert f"bend stop --address {dashboard} {job}" in err
    assert (job, "RUNNING") in [each[:2] for each in Jobs(dashboard).listed()]

    jobs = Jobs(dashboard)
    deadline = time.monotonic() + 240
    while jobs.exit_code(job) is None:
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
    out, err = refused.communicate(timeout=240)
    assert refused.returncode == 2, out + err
    assert "seeds.resources: the cluster can never give this" in out, out


NO_AGENT = "Request failed with status code 500: No available agent to submit job, please try ..."


@pytest.mark.parametrize("refusals", [2, 5])
def test_a_cluster_that_has_just_started_gets_time_but_not_for_ever(
    dashboard: str, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    jobs, left = Jobs(dashboard), iter([RuntimeError(NO_AGENT)] * refusals)

    def submit_job(**job: object) -> str:
        if (error := next(left, None)) is not None:
            raise error
        return "job-1"

    now = count(step=100.0)
    clock = SimpleNamespace(monotonic=lambda: next(now), sleep=lambda seconds: None)
    monkeypatch.setattr(jobs._client, "submit_job", submit_job)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "STARTING_SECONDS", 300.0)
    if refusals == 2:
        assert jobs.submit(["run"], {}, {}) == "job-1"
    else:
        with pytest.raises(ClusterError, match=r"takes jobs.*--dashboard-agent-listen-port=0"):
            jobs.submit(["run"], {}, {})


def test_only_what_is_named_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("configs/b.yaml", "bend-store/seeds/shard-00000.parquet", "shop_jobs/nets.py"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("def make(): ...\n")
    Path("configs/a.yaml").write_text(
        "seeds: {architecture: {kind: imported, target: 'shop_jobs.nets:make'}}"
    )
    sent: set[str] = set()

    def submit_job(runtime_env: dict[str, str], **job: object) -> str:
        folder = Path(runtime_env["working_dir"])
        sent.update(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())
        return "job-1"

    jobs = object.__new__(Jobs)
    jobs.address, jobs._client = "", SimpleNamespace(submit_job=submit_job)
    command = ("seeds", "configs/a.yaml", "--store", str(tmp_path))
    context = cli.make_context("bend", [], resilient_parsing=True)
    files = _checked(context, command)
    assert jobs.submit(command, files, {}) == "job-1"
    assert sent == {"configs/a.yaml", "shop_jobs/nets.py"}
    jobs.submit(command, files, {}, send_package=True)
    assert "bend_ray/cli/main.py" in sent
    assert not [name for name in sent if "__pycache__" in name or "store" in name.split("/")[0]]
