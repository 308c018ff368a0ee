"""Variables of the environment: one that is empty is not set, for us and for what we call."""

from __future__ import annotations

import os
from collections.abc import Mapping

_READ = (
    *("AWS_", "AZURE_", "BEND_", "GOOGLE_", "MALLOC_", "MLFLOW_", "RAY_", "TUNE_", "WANDB_"),
    *("GLIBC_TUNABLES", "HOME", "TMPDIR"),
)
"""How the names begin of what we read, or Ray, pyarrow and a tracking service in our processes.

Not CUDA_VISIBLE_DEVICES: empty, it says that there are none.
"""


def variable(name: str) -> str | None:
    """A variable's value; None where it is empty."""
    return os.environ.get(name) or None


def set_defaults(values: Mapping[str, str]) -> None:
    """Set variables that are not set."""
    for name, value in values.items():
        if variable(name) is None:
            os.environ[name] = value


def forget_empty() -> None:
    """Unset empty variables, also for libraries that would take nothing for a value."""
    for name in [name for name, value in os.environ.items() if not value]:
        if name.startswith(_READ):
            del os.environ[name]
