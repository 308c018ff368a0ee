"""``bend status`` and ``bend report`` of somebody else's store, from a laptop."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from evaluations import commit
from object_store import BUCKET, object_store

from bend_ray.artifacts.store import Store
from bend_ray.cli.main import cli
from bend_ray.config.reading import load_config

STORE = f"s3://{BUCKET}/runs"


@pytest.mark.slow
def test_a_run_in_a_bucket_is_told_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    rivals = ["evaluation.rivals=[{kind: originals_bag}]"]
    with object_store(monkeypatch):
        commit(load_config(None, rivals), Store(STORE), ordinary=None)
        told = CliRunner().invoke(cli, ["status", "--store", STORE, "--set", *rivals])
        assert [line.split()[2] for line in told.output.splitlines()] == ["committed"] * 6
        told = CliRunner().invoke(cli, ["report", "--store", STORE])
        assert told.exception is None
        assert told.output.startswith(f"{STORE}/report/")
