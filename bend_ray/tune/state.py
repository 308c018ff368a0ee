"""Ray Tune's own state of a search, in the study's artifact: may it be read, is it whole."""

from __future__ import annotations

import json
import os

from bend_ray.artifacts.store import Artifact
from bend_ray.errors import StoreError

RAY = "ray"
"""The folder of that, and of Tune's TensorBoard files."""

_EXPERIMENT = f"{RAY}/experiment_state"
_STOP = b"."
"""The last byte of every pickle."""


def refuse_strangers(artifact: Artifact) -> None:
    """Refuse a state that somebody else has written: to read it is to run what it holds.

    On object stores nobody can tell whose a file is.

    Raises:
        StoreError: with whose it is.
    """
    if artifact.filesystem.type_name != "local":
        return
    for entry in artifact.list_files(f"{RAY}/"):
        owner = os.stat(artifact.child(entry.name)).st_uid
        if owner != os.getuid():
            raise StoreError(
                f"{artifact!r}: expected Ray Tune's state to be written by user {os.getuid()}, "
                f"got {entry.name} of user {owner}; it is pickled, and would run what it holds: "
                f"search in a store of your own, or delete {RAY}/ there to begin anew"
            )


def can_go_on(artifact: Artifact) -> bool:
    """Whether Ray Tune's state is whole, and no trial ended in an error.

    Tune writes over the store file by file: one that a full disk or a SIGKILL cut off reads as a
    search without points. Begun anew, a search finds all stages made that its trials had made.

    Raises:
        StoreError: the store cannot be read.
    """
    names = [entry.name for entry in artifact.list_files(f"{RAY}/")]
    tops = [name for name in names if name.count("/") == 1]
    states = sorted(name for name in tops if name.startswith(_EXPERIMENT))
    if not states:
        return False
    try:
        trials = json.loads(artifact.read_bytes(states[-1]))["trial_data"]
        errors = any(json.loads(trial)["status"] == "ERROR" for trial, _ in trials)
    except (ValueError, KeyError, TypeError):
        return False
    pickles = [name for name in tops if name.endswith(".pkl")]
    whole = trials and not errors
    return bool(whole) and all(artifact.read_bytes(name).endswith(_STOP) for name in pickles)
