"""What Ray reads in its environment when it is first imported, and which cluster is meant."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from bend_ray.process.environment import set_defaults, variable

_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = Path("~/.ray/auth_token")


def cluster_to_join(address: str | None) -> str | None:
    """The address given, else RAY_ADDRESS; None for a cluster of our own, which is ``local``."""
    found = address or variable("RAY_ADDRESS")
    return None if found == "local" else found


def prepare_environment(address: str | None) -> None:
    """Set what Ray reads when it is first imported, to join a cluster; what is set stays."""
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else a driver under `uv run` makes every worker start through `uv run`, in 10 s and more.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # The old Parquet reader gives its first batch in 0.1-0.4 s, the new one in 2.7-8 s.
        "RAY_DATA_USE_DATASOURCE_V2": "0",
        # As of a pool's pieces: what was killed three times for its memory will not fit.
        "RAY_task_oom_retries": "2",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    }
    set_defaults(defaults)
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
