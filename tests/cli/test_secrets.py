"""A secret in a command line goes nowhere but to the store it opens."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import ray
from bend_process import Bend
from object_store import BUCKET, object_store

from bend_ray.cli.main import main

SECRET = "hunter2PLANTED"
STORE = f"s3://KEY:{SECRET}@{BUCKET}/runs"


@pytest.mark.parametrize(
    "command",
    [
        ["status", "--store", f"s3:/KEY:{SECRET}@{BUCKET}"],
        ["status", "--store", f"s3://{BUCKET}/a?secret_key={SECRET}&scheme=nonsense"],
        ["status", f"{STORE}.yaml"],
        ["status", STORE, STORE],
        ["status", "--set", STORE],
        ["config", "--set", f"dataset={{kind: image_parquet, train: '{STORE}', test: x}}"],
        ["config", "--set", f"dataset={{kind: image_folder, root: '{STORE}'}}"],
        ["config", "--set", f"seeds={STORE}"],
        ["compare", f"ftp://KEY:{SECRET}@host", "nowhere"],
        ["serve", "--export", STORE, "--config-only"],
        ["seeds", "--address", f"ray://user:{SECRET}@127.0.0.1:9"],
        ["submit", "--address", f"http://user:{SECRET}@127.0.0.1:9", "--", "run"],
        ["submit", "--address", "http://127.0.0.1:9", "--", "run", "--store", STORE],
        ["tune", "--store", STORE],
    ],
    ids=lambda command: " ".join(command).replace(SECRET, "..."),
)
def test_what_is_refused_is_refused_without_it(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # The session's cluster may have been joined in this process, as no cluster has in a user's.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bend", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr()
    assert ended.value.code == 2, said.err
    assert said.err
    assert SECRET not in said.out + said.err


def test_a_bug_of_ours_keeps_its_traceback_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raises(uri: str) -> None:
        raise RuntimeError(f"cannot parse {uri}")

    monkeypatch.setattr("bend_ray.artifacts.store.resolve", raises)
    monkeypatch.setattr(sys, "argv", ["bend", "status", "--store", STORE])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" in said
    assert f"RuntimeError: cannot parse s3://***@{BUCKET}/runs" in said


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray and everybody else puts temporary files; sockets want a short name."""
    folder = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_whole_run_writes_and_prints_it_nowhere(
    bend: Bend, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store(monkeypatch) as server:
        endpoint = server.url.removeprefix("http://")
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        store = f"{STORE}?endpoint_override={endpoint}&scheme=http&region=us-east-1"
        printed = []
        for command in (
            ["-v", "run", str(bend.config), "--store", store, "--json", "result.json"],
            ["run", str(bend.config), "--store", store, "--json", "-"],
            ["status", str(bend.config), "--store", store],
            ["report", "--store", store, "--output", "page"],
            ["compare", store, "page/report.json", "--output", "both"],
            ["store", "verify", "--store", store],
            ["store", "gc", "--store", store],
            ["export", "--store", store, "--output", store.replace("/runs", "/export")],
        ):
            done = bend(*command, timeout=400)
            assert done.returncode == 0, (command, done.stderr)
            printed.append(done.stdout + done.stderr)
        assert not [text for text in printed if SECRET in text]
        client = boto3.client(
            *("s3", "us-east-1"),
            endpoint_url=server.url,
            aws_access_key_id="any",
            aws_secret_access_key="any",
        )
        contents = {
            name: client.get_object(Bucket=BUCKET, Key=name[1:])["Body"].read()
            for name in server.names()
        }
    assert len(contents) > 20
    here = [path for folder in (bend.folder, scratch) for path in folder.rglob("*")]
    contents |= {str(path): path.read_bytes() for path in here if path.is_file()}
    assert any("session_" in name for name in contents), "expected Ray's own logs among them"
    assert [name for name, content in contents.items() if SECRET.encode() in content] == []
