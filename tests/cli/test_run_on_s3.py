"""The whole pipeline on S3, killed, resumed and refused a share of its requests."""

from __future__ import annotations

import os
import signal

import pytest
from bend_process import Bend, Finished, figures, wait_until
from object_store import BUCKET, object_store

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(900)]

URI = f"s3://{BUCKET}/runs"
MOMENTS = {"seeds": "shard-00001.parquet", "generator": "checkpoint.safetensors"}


@pytest.mark.parametrize("failing", [0.0, 0.2], ids=["a server", "a server that often fails"])
def test_a_run_on_s3_that_is_killed_twice_gives_what_one_in_a_folder_gives(
    bend: Bend, undisturbed: Finished, failing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ["run", str(bend.config), "--store", URI, "--json", "-"]
    with object_store(monkeypatch) as server:
        server.failing = failing
        for stage, file in MOMENTS.items():
            process = bend.start(*run)
            wait_until(
                lambda at=f"/{stage}/", end=file: any(
                    at in name and name.endswith(end) for name in server.names()
                ),
                process,
            )
            os.kill(process.pid, signal.SIGKILL)
            process.communicate(timeout=30)
            committed = [n for n in server.names() if n.endswith("manifest.json")]
            assert not any(f"/{stage}/" in name for name in committed), f"{stage} was too quick"
        done = bend(*run, timeout=400)
        assert done.returncode == 0, done.stderr
        assert figures(done.stdout) == undisturbed.figures
        again = bend(*run)
        assert again.returncode == 0
        assert figures(again.stdout) == undisturbed.figures
        assert (server.failed > 20) == (failing > 0)
        left = [n for n in server.names() if n.endswith(("lease.json", "progress.json", ".tmp"))]
        assert left == []
