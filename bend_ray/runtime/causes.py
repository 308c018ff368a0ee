"""What Ray raises, in one line: of a creation that failed its cause, of memory its gigabytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import ray.exceptions

from bend_ray.errors import BendError, ClusterError

LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.RuntimeEnvSetupError,
)
"""What a call raises whose actor, or the node that held its result, is gone, or never came to be.

Ray's memory monitor is one that kills; a full disk keeps processes from starting.
"""

_CLUSTERS_OWN = (
    ray.exceptions.ObjectStoreFullError,
    ray.exceptions.OutOfDiskError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.RaySystemError,
    ray.exceptions.RpcError,
)
"""What a call raises where the cluster itself has a problem, not a worker or its code."""


def told(error: BaseException) -> str:
    """An error of Ray's in one line."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        held = [float(each) for each in re.findall(r"actual memory used=([\d.]+)GB", text)]
        if held and (node := re.search(r"was ([\d.]+)GB used / ([\d.]+)GB limit", text)):
            return (
                f"a process that held {max(held):g} GB was killed, as {node[1]} of its node's "
                f"{node[2]} GB were used"
            )
    if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.RuntimeEnvSetupError):
        # Before come wrappers, and the traceback of a constructor.
        return lines[-1].partition(" Some common causes include")[0]
    return lines[0]


@contextmanager
def our_errors() -> Iterator[None]:
    """Around calls of Ray: a worker's ``BendError`` comes out, however deep Ray has wrapped it.

    ClusterError where workers died more often than they may, or the cluster fails.
    """
    try:
        yield
    except ray.exceptions.RayError as error:
        raised = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        ours = within(error)
        if ours is None and isinstance(raised, (*LOST, ray.exceptions.WorkerCrashedError)):
            ours = died_too_often(raised)
        if ours is None and isinstance(raised, _CLUSTERS_OWN):
            ours = ClusterError(
                f"expected the cluster to work, got: {told(raised)}; what was finished is kept: "
                "mend it and run again"
            )
        if ours is None:
            raise
        # Ray Data adds lines of its own to a message.
        raise type(ours)(str(ours).partition("\n")[0]) from None


def died_too_often(error: Exception, where: str = "") -> ClusterError:
    """The error where workers died more often than they may, the last time of ``error``."""
    for_memory = isinstance(error, ray.exceptions.OutOfMemoryError)
    advice = "give it nodes with more memory, or less to hold, and " if for_memory else ""
    return ClusterError(
        f"workers died again and again{where}: {told(error)}; what they had finished is kept: "
        f"{advice}run again"
    )


def within(error: BaseException | None) -> BendError | None:
    """The ``BendError`` an error was made from, if there is one."""
    while error is not None:
        # A RayTaskError also is what it wraps, but its message is the worker's traceback.
        if isinstance(error, BendError) and not isinstance(error, ray.exceptions.RayTaskError):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None
