from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest

from bend_ray.artifacts import store as store_module
from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.lease import lease, maker
from bend_ray.artifacts.store import Artifact, Store

HOLDER = """
import sys, time
from bend_ray.artifacts.lease import lease, maker
from bend_ray.artifacts.store import Store
with lease(Store(sys.argv[1]).artifact("seeds", 1, {}), print):
    print("held", flush=True)
    time.sleep(60)
"""


def silent(line: str) -> None:
    pass


def quick(
    artifact: Artifact, lines: list[str] | None = None, stale_seconds: float = 0.5
) -> AbstractContextManager[bool]:
    return lease(
        artifact,
        silent if lines is None else lines.append,
        renew_seconds=0.03,
        stale_seconds=stale_seconds,
        poll_seconds=0.02,
        settle_seconds=0.02,
    )


def held_by(artifact: Artifact, **changes: Any) -> None:
    holder = {
        "owner": "other",
        "host": "elsewhere",
        "pid": 123,
        "pid_namespace": "",
        "renewed": time.time(),
        **changes,
    }
    artifact.write_json("lease.json", holder)


def is_held(artifact: Artifact) -> bool:
    return bool(artifact.filesystem.get_file_info(artifact.child("lease.json")).is_file)


@pytest.fixture
def local(tmp_path: Path) -> Artifact:
    return Store(str(tmp_path)).artifact("seeds", 1, {})


@pytest.fixture(params=["local", "object"])
def artifact(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Artifact:
    if request.param == "object":
        tree = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
        monkeypatch.setattr(store_module, "resolve", lambda uri: (tree, "bucket"))
    return Store(str(tmp_path)).artifact("seeds", 1, {})


@contextmanager
def working(artifact: Artifact, *, commit: bool, seconds: float) -> Iterator[None]:
    """Another run, in a thread, that holds the lease for some time."""
    holds = threading.Event()

    def work() -> None:
        with quick(artifact) as acquired:
            assert acquired
            holds.set()
            time.sleep(seconds)
            if commit:
                artifact.commit(files=[], metrics={}, cost=Cost())

    thread = threading.Thread(target=work)
    thread.start()
    assert holds.wait(5)
    yield
    thread.join()


def test_a_free_lease_is_taken_and_given_back(artifact: Artifact) -> None:
    with quick(artifact) as acquired:
        assert acquired
        holder = artifact.read_json("lease.json")
        assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
    assert not is_held(artifact)


def test_a_committed_artifact_need_not_be_made(artifact: Artifact) -> None:
    artifact.commit(files=[], metrics={}, cost=Cost())
    with quick(artifact) as acquired:
        assert not acquired
    assert not is_held(artifact)


def test_a_lease_is_given_back_by_an_exception(artifact: Artifact) -> None:
    with pytest.raises(KeyError), quick(artifact):
        raise KeyError("ours")
    assert not is_held(artifact)
    assert not [t for t in threading.enumerate() if t.name.startswith("lease-")]


def test_a_lease_is_renewed_while_it_is_held(local: Artifact) -> None:
    with quick(local):
        first = local.read_json("lease.json")
        time.sleep(0.2)
        later = local.read_json("lease.json")
    assert later["renewed"] > first["renewed"]
    assert later["owner"] == first["owner"]


def test_a_second_run_waits_and_finds_the_artifact_made(artifact: Artifact) -> None:
    lines: list[str] = []
    with working(artifact, commit=True, seconds=0.3), quick(artifact, lines) as acquired:
        assert not acquired
        assert artifact.exists()
    assert lines == [
        f"seeds {artifact.fingerprint} is being made by pid {os.getpid()} "
        f"on host {socket.gethostname()}; waiting"
    ]


def test_a_second_run_takes_over_what_the_first_gave_up(local: Artifact) -> None:
    with working(local, commit=False, seconds=0.2):
        started = time.monotonic()
        with quick(local) as acquired:
            assert acquired
            assert time.monotonic() - started > 0.1


def test_racing_runs_make_an_artifact_once(tmp_path: Path) -> None:
    made = []

    def run(index: int) -> None:
        artifact = Store(str(tmp_path)).artifact("seeds", 1, {})
        with lease(artifact, silent, poll_seconds=0.02, settle_seconds=0.3) as acquired:
            if acquired:
                made.append(index)
                time.sleep(0.02)
                artifact.commit(files=[], metrics={}, cost=Cost())

    # A dead lease at the start makes them race for the takeover as well.
    held_by(Store(str(tmp_path)).artifact("seeds", 1, {}), renewed=0.0)
    threads = [threading.Thread(target=run, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_killed_holder_is_taken_over_at_once(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).artifact("seeds", 1, {})
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert artifact.read_json("lease.json")["pid"] == process.pid
    started = time.monotonic()
    with lease(artifact, silent, stale_seconds=60, settle_seconds=0.05) as acquired:
        assert acquired
        assert time.monotonic() - started < 1.0


def test_a_foreign_holder_is_dead_when_its_lease_stops_changing(local: Artifact) -> None:
    # Its clock runs an hour ahead, which must not keep it alive.
    held_by(local, renewed=time.time() + 3600)
    started = time.monotonic()
    with quick(local, stale_seconds=0.2) as acquired:
        assert acquired
        assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize("hours", [-1.0, 1.0])
def test_a_holder_whose_clock_is_wrong_lives_as_long_as_it_renews(
    local: Artifact, hours: float
) -> None:
    stop = threading.Event()

    def renew() -> None:
        renewed = time.time() + 3600 * hours
        while not stop.wait(0.05):
            renewed += 0.05
            held_by(local, renewed=renewed)

    held_by(local, renewed=time.time() + 3600 * hours)
    assert maker(local, renew_seconds=0.01) is None
    renewer = threading.Thread(target=renew)
    renewer.start()
    lines: list[str] = []
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    started = time.monotonic()
    assert maker(local, renew_seconds=0.1) == "pid 123 on host elsewhere"
    with quick(local, lines, stale_seconds=0.25):
        assert time.monotonic() - started > 0.5
    renewer.join()
    assert lines == [
        f"seeds {local.fingerprint} is being made by pid 123 on host elsewhere; waiting"
    ]


def test_a_process_id_of_another_container_says_nothing(local: Artifact) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held_by(local, host=socket.gethostname(), pid=gone.pid, pid_namespace="pid:[1]")
    lines: list[str] = []
    with quick(local, lines, stale_seconds=0.2):
        assert len(lines) == 1


def test_a_half_written_lease_is_waited_for_and_then_taken(local: Artifact) -> None:
    with local.open_output("lease.json") as stream:
        stream.write(b'{"own')
    lines: list[str] = []
    with quick(local, lines, stale_seconds=0.2) as acquired:
        assert acquired
    assert lines == [f"seeds {local.fingerprint} is being made by another run; waiting"]


def test_a_holder_that_lost_its_lease_warns_and_leaves_it_alone(
    artifact: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), quick(artifact):
        held_by(artifact, owner="thief")
        time.sleep(0.15)
    assert [r.getMessage() for r in caplog.records if "took over" in r.getMessage()]
    assert json.loads(artifact.read_bytes("lease.json"))["owner"] == "thief"


def test_a_lease_that_was_deleted_is_written_again(local: Artifact) -> None:
    with quick(local):
        local.discard("lease.json")
        deadline = time.monotonic() + 30
        while not is_held(local):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert not is_held(local)


def test_a_live_lease_says_who_is_making_an_artifact(tmp_path: Path) -> None:
    artifact = Store(str(tmp_path)).artifact("seeds", 1, {})
    assert maker(artifact) is None
    with lease(artifact, pytest.fail):
        assert maker(artifact) == f"pid {os.getpid()} on host {socket.gethostname()}"
    assert maker(artifact) is None
