from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch

from bend_ray.process import lazy

HEAVY = ("torch", "ray", "sklearn", "scipy", "pyarrow", "PIL")


def modules_after(statement: str) -> set[str]:
    """Which heavy libraries a fresh process has imported after a statement."""
    script = f"import sys\n{statement}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_reading_a_config_imports_no_heavy_library() -> None:
    assert (
        modules_after("from bend_ray.config.schema import PipelineConfig; PipelineConfig()")
        == set()
    )


def test_attributes_are_those_of_the_module() -> None:
    assert lazy.torch.Tensor is torch.Tensor
    assert lazy.torch.optim.AdamW is torch.optim.AdamW


def test_a_wrong_name_fails_as_it_does_in_the_module() -> None:
    with pytest.raises(AttributeError, match="tensr"):
        getattr(lazy.torch, "tensr")  # noqa: B009


@pytest.mark.parametrize("travel", [copy.copy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_that_travels_is_the_module(travel: object) -> None:
    assert travel(lazy.torch) is torch  # type: ignore[operator]
