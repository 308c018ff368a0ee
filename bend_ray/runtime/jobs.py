"""``bend`` as a job on a cluster: handed in, followed, and told how it ended.

Ray Jobs starts the job's driver on the cluster's head, where it goes on whatever becomes of the
machine that handed it in. It is given the files that the command line names, the code that
the config names, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import bend_ray
from bend_ray.errors import ClusterError
from bend_ray.runtime.cluster import ANSWER_SECONDS, CONNECT_SECONDS, UNAUTHENTICATED, gather
from bend_ray.storage.masking import cause, masked

RECONNECT_SECONDS = 2.0
MOST_RECONNECTS = 30
STARTING_SECONDS = 180.0
_NOT_YET = "No available agent to submit job"
"""What Ray says while the head's agent is starting, and for good where that found no port."""

logger = logging.getLogger(__name__)


class Jobs:
    """The jobs of a cluster whose dashboard is at ``http://host:port``.

    All that asks it raises ClusterError: nobody answers, or the token is not the cluster's.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        # Ray would let these overrule the address that was given.
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)
        for name in ("", ".dashboard.modules.dashboard_sdk", ".dashboard.modules.job.sdk"):
            logging.getLogger(f"ray{name}").setLevel(logging.WARNING)
        with self._cluster_errors():
            if not address.startswith(("http://", "https://")):
                # To Ray it would be the address of a cluster, which it looks for for minutes.
                raise ValueError("no http:// or https://")
            # Ray waits for an answer for ever.
            requests.get(f"{address}/api/version", timeout=(CONNECT_SECONDS, ANSWER_SECONDS))
            self._client = JobSubmissionClient(address)

    def submit(
        self,
        arguments: Sequence[str],
        files: Mapping[str, Path],
        environment: Mapping[str, str],
        send_package: bool = False,
    ) -> str:
        """Start ``bend ARGUMENTS`` on the cluster; its id.

        ``files`` lie in the job's folder, by their path below it. The ``environment`` can be read
        in the cluster's dashboard. ``send_package`` is for a cluster whose image has no bend_ray.
        """
        with tempfile.TemporaryDirectory(prefix="bend-job-") as folder:
            runtime: dict[str, Any] = {"env_vars": dict(environment)}
            if files or send_package:
                gather(files, Path(folder))
                if send_package:
                    source = Path(bend_ray.__file__).parent
                    skip = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(source, Path(folder, source.name), ignore=skip)
                runtime["working_dir"] = folder
            return self._submitted(
                entrypoint=shlex.join(["python", "-m", "bend_ray", *arguments]),
                runtime_env=runtime,
                metadata={"bend": arguments[0], "bend_version": bend_ray.__version__},
            )

    def _submitted(self, **job: Any) -> str:
        """The id of a job that was handed in; a cluster that has just started gets time."""
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                with self._cluster_errors():
                    submitted: str = self._client.submit_job(**job)
                return submitted
            except ClusterError as error:
                if _NOT_YET not in str(error):
                    raise
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"--address {masked(self.address)}: expected a cluster that takes jobs, got no "
                    f"answer of its head's agent for {STARTING_SECONDS:.0f} s; where another Ray "
                    "cluster of that machine has its port, start the head with "
                    "--dashboard-agent-listen-port=0"
                )
            logger.info("submit       the cluster takes no jobs yet: trying again")
            time.sleep(RECONNECT_SECONDS)

    def follow(self, job: str, show: Callable[[str], None]) -> int:
        """Show what a job prints, from its start, until it ends; its exit code.

        Survives a lost connection.
        """
        return asyncio.run(self._follow(job, show))

    async def _follow(self, job: str, show: Callable[[str], None]) -> int:
        shown = lost = 0
        while True:
            at = 0
            try:
                # Each connection gives the whole log from its start.
                async for text in self._client.tail_job_logs(job):
                    new = text[max(0, shown - at) :]
                    at += len(text)
                    if new:
                        show(new)
                        shown, lost = at, 0
                if (code := self.exit_code(job)) is not None:
                    return code
            except (RuntimeError, OSError, ClusterError) as error:
                if lost == MOST_RECONNECTS:
                    raise self._unreachable(error) from None
            lost += 1
            await asyncio.sleep(RECONNECT_SECONDS)

    def exit_code(self, job: str) -> int | None:
        """None while a job runs; 130 for one that was stopped, as of an interrupted command."""
        with self._cluster_errors():
            details = self._client.get_job_info(job)
        if not details.status.is_terminal():
            return None
        known = {JobStatus.STOPPED: 130, JobStatus.SUCCEEDED: 0}
        code = known.get(details.status, details.driver_exit_code)
        if code is None:  # It never came to a driver: say why, no log does.
            raise ClusterError(f"job {job} could not start: {details.message}")
        return int(code)

    def listed(self) -> list[tuple[str, str, str, str]]:
        """Every job: its id, state, UTC time of its start, and command; the latest first."""
        with self._cluster_errors():
            found = [each for each in self._client.list_jobs() if each.submission_id]
        found.sort(key=lambda each: each.start_time or 0, reverse=True)

        def began(job: Any) -> str:
            return f"{datetime.fromtimestamp((job.start_time or 0) / 1000, UTC):%Y-%m-%d %H:%M}"

        return [(j.submission_id or "", str(j.status), began(j), j.entrypoint) for j in found]

    def stop(self, job: str) -> None:
        """End a job; what it had finished is kept."""
        with self._cluster_errors():
            self._client.stop_job(job)

    @contextmanager
    def _cluster_errors(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            raise ClusterError(f"--address {masked(self.address)}: {UNAUTHENTICATED}") from None
        except (requests.RequestException, ConnectionError, RuntimeError, ValueError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> ClusterError:
        return ClusterError(
            f"--address {masked(self.address)}: expected the dashboard of a Ray cluster, as in "
            f"http://127.0.0.1:8265, got: {cause(error)}"
        )
