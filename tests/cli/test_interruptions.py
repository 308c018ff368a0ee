"""A run that is killed, in every stage, and run again gives what an undisturbed one gives."""

import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bend_process import Bend, Finished, descendants, figures, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

Reached = Callable[[Path], bool]


def _has(pattern: str) -> Reached:
    return lambda store: any(store.glob(pattern))


MOMENTS: dict[str, Reached] = {
    "seeds": _has("seeds/*/shard-00001.parquet"),
    "autoencoder": _has("autoencoder/*/making/training/checkpoint.safetensors"),
    "latents": _has("latents/*/lease.json"),
    "generator": _has("generator/*/making/training/checkpoint.safetensors"),
    "samples": _has("samples/*/shard-*.parquet"),
    "evaluation": _has("evaluation/*/lease.json"),
}


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(("generator",), id="generator"),
        pytest.param(tuple(MOMENTS), id="every stage", marks=pytest.mark.chaos),
    ],
)
def test_a_killed_driver_loses_nothing(
    bend: Bend, undisturbed: Finished, stages: tuple[str, ...]
) -> None:
    kept: dict[Path, int] = {}
    for before in itertools.takewhile(lambda stage: stage != stages[0], MOMENTS):
        shutil.copytree(undisturbed.bend.store / before, bend.store / before)
    for stage in stages:
        reached = MOMENTS[stage]
        process = bend.start(*bend.run_arguments())
        wait_until(lambda now=reached: now(bend.store), process)
        assert not list(bend.store.glob(f"{stage}/*/manifest.json")), f"{stage} was too quick"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
        for path, written in kept.items():
            assert path.stat().st_mtime_ns == written, f"{path} was made again"
        committed = bend.store.glob("*/*/manifest.json")
        kept = {path: path.stat().st_mtime_ns for path in committed}
    done = bend(*bend.run_arguments())
    assert done.returncode == 0, done.stderr
    assert figures(done.stdout) == undisturbed.figures


def test_ctrl_c_ends_every_process_and_keeps_what_was_finished(bend: Bend) -> None:
    process = bend.start(*bend.run_arguments())
    first_shard = _has("seeds/*/shard-*.parquet")
    wait_until(lambda: first_shard(bend.store), process)
    children = descendants(process)
    assert children
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr.splitlines()[-1].startswith("bend: interrupted")
    assert "Traceback" not in stderr
    _wait_gone(children)
    told = bend("status", str(bend.config), "--store", str(bend.store))
    assert "partial" in told.stdout.splitlines()[0]
    assert "of 16 models" in told.stdout.splitlines()[0]


def _wait_gone(processes: list) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(process.is_running() for process in processes):
            return
        time.sleep(0.1)
    raise AssertionError([process.cmdline() for process in processes if process.is_running()])


def test_a_broken_shard_is_named_and_making_it_again_mends_it(
    joining: Bend, undisturbed: Finished
) -> None:
    for folder in ("seeds", "autoencoder"):
        shutil.copytree(undisturbed.bend.store / folder, joining.store / folder)
    shard = next(joining.store.glob("seeds/*/roots.safetensors")).with_name("shard-00000.parquet")
    whole = pq.read_table(shard)
    shard.write_bytes(shard.read_bytes()[:1000])
    refused = joining("latents", str(joining.config), "--store", str(joining.store))
    assert refused.returncode == 2
    told = refused.stderr.splitlines()[-1]
    assert f"{shard.parent}: {shard.name} is corrupt" in told
    assert f"delete {shard.parent}" in told
    shutil.rmtree(shard.parent)
    mended = joining("seeds", str(joining.config), "--store", str(joining.store))
    assert mended.returncode == 0, mended.stderr
    assert pq.read_table(shard)["theta_000"].equals(whole["theta_000"])
