"""An empty variable is one that is not set."""

from __future__ import annotations

import os

import pytest

from bend_ray.process.environment import forget_empty, set_defaults, variable

EMPTY = ["RAY_ADDRESS", "AWS_ENDPOINT_URL", "BEND_SERVE_TOKEN", "TMPDIR", "HOME", "WANDB_PROJECT"]


def test_what_is_empty_is_unset_for_libraries_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*EMPTY, "CUDA_VISIBLE_DEVICES", "SOMEBODY_ELSES"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    forget_empty()
    assert not {*EMPTY} & set(os.environ)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == os.environ["SOMEBODY_ELSES"] == ""
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_default_takes_the_place_of_an_empty_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_A", "")
    monkeypatch.setenv("RAY_B", "mine")
    set_defaults({"RAY_A": "1", "RAY_B": "1"})
    assert (variable("RAY_A"), variable("RAY_B"), variable("RAY_C")) == ("1", "mine", None)
