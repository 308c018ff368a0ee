"""Variables of the environment, and what Ray reads in it: which cluster is meant, by what token.

One that is empty is not set, for us and for what we call.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

_READ = (
    *("AWS_", "AZURE_", "BEND_", "GOOGLE_", "MALLOC_", "MLFLOW_", "RAY_", "TUNE_", "WANDB_"),
    *("GLIBC_TUNABLES", "HOME", "TMPDIR"),
)
"""How the names begin of what we read, or Ray, pyarrow and a tracking service in our processes.

Not CUDA_VISIBLE_DEVICES: empty, it says that there are none.
"""
_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else a driver under `uv run` makes every worker start through `uv run`, in 10 s and more.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # The old Parquet reader gives its first batch in 0.1-0.4 s, the new one in 2.7-8 s.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    # As of a pool's pieces: what was killed three times for its memory will not fit.
    "RAY_task_oom_retries": "2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
}
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = Path("~/.ray/auth_token")


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


def cluster_to_join(address: str | None) -> str | None:
    """The address given, else RAY_ADDRESS; None for a cluster of our own, which is ``local``."""
    found = address or variable("RAY_ADDRESS")
    return None if found == "local" else found


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is first imported, to join a cluster; what is set stays."""
    set_defaults(_RAY)
    if variable("RAY_AUTH_MODE") is not None or "ray" in sys.modules:
        return
    if cluster_to_join(address) is None:
        # A token that lives as long as this process: nobody else on this host gets in, and
        # nothing is written to the home directory.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif any(map(variable, _TOKENS)) or _TOKEN_FILE.expanduser().is_file():
        # Ray looks for a token only where it is told to.
        os.environ["RAY_AUTH_MODE"] = "token"
