"""Which token Ray is told to look for."""

import os
import sys
from pathlib import Path

import pytest

from bend_ray.process.environment import prepare_environment


@pytest.mark.parametrize(
    ("address", "file", "variable", "mode"),
    [
        ("10.0.0.1:6379", True, None, "token"),
        ("10.0.0.1:6379", False, "ab", "token"),
        ("10.0.0.1:6379", False, None, None),
        (None, False, None, "token"),
    ],
)
def test_ray_looks_for_a_token_where_there_is_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    file: bool,
    variable: str | None,
    mode: str | None,
) -> None:
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k != "ray"})
    if file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("ab")
    if variable:
        os.environ["RAY_AUTH_TOKEN"] = variable
    prepare_environment(address)
    assert os.environ.get("RAY_AUTH_MODE") == mode
    own = os.environ.get("RAY_AUTH_TOKEN")
    assert own == variable if address else len(own or "") == 64


def test_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "ab"})
    prepare_environment("10.0.0.1:6379")
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
