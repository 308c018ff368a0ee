"""Connecting to a cluster, or starting one here, and what is sent there.

An address is asked first whether a cluster answers: Ray itself tries for up to fourteen minutes,
whatever answers.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import ray
import ray.cloudpickle
import ray.data
from ray.exceptions import AuthenticationError

from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import ClusterError
from bend_ray.imported import code_of, imported_in
from bend_ray.process.computing import usable_cores, usable_memory
from bend_ray.process.environment import cluster_to_join, variable
from bend_ray.runtime.nodes import SPARE_CPUS
from bend_ray.storage.masking import cause, masked, utf8

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 4.0
ANSWER_SECONDS = 10.0
"""Until an answer to a question that takes a healthy cluster a millisecond."""

UNAUTHENTICATED = (
    "the cluster asks for its token: put that into ~/.ray/auth_token, or into RAY_AUTH_TOKEN"
)
_DASHBOARD = "{}:// is a dashboard's, for `bend submit`"
_CLIENT = "{}:// is Ray Client's, through which Ray trains nothing: use `bend submit`"
_MEANT = {"http": _DASHBOARD, "https": _DASHBOARD, "ray": _CLIENT}
STORE_SHARE = 0.3
"""Of memory, that objects may take: data sets, and what workers and trainings hand over."""
LEAST_STORE_BYTES = 100 * 2**20
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Ray keeps objects
SHORT = "/tmp"  # noqa: S108 - where Ray is without TMPDIR
LONGEST_FOLDER = 103 - len("/ray/session_2026-01-31_12-00-00_000000_4194304/sockets/plasma_store")
"""Bytes in the path of it: a socket's path has 103 at most on macOS, on Linux 107."""

_started_here = False
"""Whether the cluster that this process is connected to was started by it."""


def _keep_to_ourselves() -> None:
    """Have Ray leave stdout to results, and the store's credentials out of its dashboard and logs.

    It writes what workers print and what befalls nodes to stdout, the latter even where
    ``log_to_driver`` is off: that goes to stderr, and only if asked to. It notes the command line
    of this driver, which names the store: that is masked. Both are private to Ray, so another may
    have neither.
    """
    worker, utils = ray._private.worker, ray._private.utils
    if (show := getattr(worker, "print_to_stdstream", None)) is not None:

        def to_stderr(data: dict[str, Any], ignore_prefix: bool) -> None:
            if logger.isEnabledFor(logging.DEBUG):
                show(data | {"is_err": True}, ignore_prefix)

        worker.print_to_stdstream = to_stderr
    if (entrypoint := getattr(utils, "get_entrypoint_name", None)) is not None:
        utils.get_entrypoint_name = lambda: utf8(masked(entrypoint()))


def connect(address: str | None, config: PipelineConfig | None = None) -> bool:
    """Join the cluster at ``address`` or RAY_ADDRESS, or start one on this machine.

    Workers can import the code of the user's own that ``config`` names. Gives whether the cluster
    is our own: one machine, this one, and this process its head. ClusterError where none answers,
    ConfigError where there is no such code.
    """
    global _started_here
    if not ray.is_initialized():
        with importable(config) as code:
            _started_here = _connect(address, code)
    else:
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "local", "auto", here):
            raise ClusterError(
                f"address: expected the cluster that this process is in, {here}, got "
                f"{masked(str(address))}; call ray.shutdown() before you join another"
            )
        # It takes no files any more: code travels with the config, as functions do.
        for each in imported_in(config) if config is not None else ():
            if each.files():
                each.hold()
                top = each.target.partition(":")[0].partition(".")[0]
                ray.cloudpickle.register_pickle_by_value(sys.modules[top])
    set_up_data()
    return _started_here


def _connect(address: str | None, code: dict[str, Any]) -> bool:
    _keep_to_ourselves()
    quiet = {
        "log_to_driver": logger.isEnabledFor(logging.DEBUG),
        "logging_level": logging.WARNING,
        "namespace": "bend",
        **code,
    }
    if (join := cluster_to_join(address)) is not None:
        named = f"--address {join}" if address else f"RAY_ADDRESS={join}"
        check_address(join, named)
        try:
            ray.init(address=join, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise no_answer(named, cause(error)) from None
        return False
    logger.info("ray          starting on this machine")
    try:
        shared = float(shutil.disk_usage(SHARED_MEMORY).free)
    except OSError:  # not on Linux
        shared = math.inf
    try:
        with _short_paths():
            ray.init(
                address="local",
                num_cpus=usable_cores() + SPARE_CPUS,
                object_store_memory=object_store_bytes(usable_memory(), shared),
                include_dashboard=True,  # Ray Train asks its State API
                **quiet,
            )
    except Exception as error:  # Ray raises nothing narrower when a process of it is too slow.
        raise ClusterError(
            f"expected Ray to start on this machine, got: {cause(error)}; it may be too busy or "
            "short of memory: run again, or give --address of a cluster"
        ) from error
    return True


def object_store_bytes(memory: float, shared: float) -> int:
    """What objects may take on a machine with so many bytes of memory, and of it shared.

    What shared memory has no room for Ray would keep in files, at a disk's speed.
    """
    return int(max(LEAST_STORE_BYTES, min(STORE_SHARE * memory, 0.9 * shared)))


@contextmanager
def _short_paths() -> Iterator[None]:
    """Within, a folder for temporary files in whose path there is room for one of a socket.

    Batch systems make long ones.
    """
    named = {name: path for name in ("RAY_TMPDIR", "TMPDIR") if (path := variable(name))}
    if all(len(os.fsencode(path)) <= LONGEST_FOLDER for path in named.values()):
        yield
        return
    logger.info("ray          uses %s: the path of %s is too long", SHORT, " and ".join(named))
    os.environ.update(dict.fromkeys(named, SHORT))
    try:
        yield
    finally:
        os.environ.update(named)


def set_up_data() -> None:
    """Make Ray Data quiet and its order that of its parts: stages say what is going on.

    For every process that runs stages: the one that connected, and workers that do.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    for noisy in ("exceptions", "_internal.execution.streaming_executor_state"):
        logging.getLogger(f"ray.data.{noisy}").setLevel(logging.CRITICAL)
    # It also warns that its progress bars are off, which is what the lines below ask for.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Its own wrapping loses what was wrapped on the way to the driver.
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True


def check_address(address: str, named: str) -> None:
    """Refuse within seconds an address, given as is ``named``, at which no cluster can be joined.

    ClusterError where nothing answers, or something else than what the address says.
    """
    if address == "auto":
        # Private, so another Ray may have none: of the cluster last started here, running or not.
        look_up = getattr(ray._private.services, "get_ray_address_from_environment", None)
        try:
            found: str | None = look_up and look_up("auto", None)
        except ConnectionError:
            found = None
        if found is None:
            return
        address, named = found, f"{named}, which is {found}"
    scheme, separator, _ = address.rpartition("://")
    host, _, port = address.rpartition(":")
    is_port = re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16
    if separator or not (host and is_port):
        hint = f"; {_MEANT[scheme].format(scheme)}" if scheme in _MEANT else ""
        raise ClusterError(f"{named}: expected HOST:PORT as in 10.0.0.1:6379, or auto{hint}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise no_answer(named, cause(error)) from None
    _check_service(address, named)


def no_answer(named: str, got: str) -> ClusterError:
    """That no cluster answers, with what did."""
    return ClusterError(
        f"{named}: expected a Ray cluster to answer, got: {got}; check the address, or leave it "
        "out to start one on this machine"
    )


def _check_service(host_port: str, named: str) -> None:
    """Ask what listens whether it is what the address says."""
    try:
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
    except ImportError:  # private, so another Ray may have none
        return
    try:
        # With Ray's certificates, and with the token that there is.
        opened = init_grpc_channel(host_port, [("grpc.enable_http_proxy", 0)])
    except (RuntimeError, AuthenticationError) as error:
        raise no_answer(named, f"no question: {cause(error)}") from None
    asked = gcs_service_pb2.GetInternalConfigRequest()  # costs nothing
    try:
        with opened as channel:
            gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).GetInternalConfig(
                asked, timeout=ANSWER_SECONDS
            )
    except grpc.RpcError as error:
        if (answer := _instead(error)) is not None:
            raise no_answer(
                named,
                f"{answer}; a cluster's port is 6379 unless it was started with another, 8265 is "
                "its dashboard's, for `bend submit`",
            ) from None
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise ClusterError(f"{named}: {UNAUTHENTICATED}") from None


def _instead(error: Any) -> str | None:
    """What it is that answered, if not a cluster; other errors come from the service itself."""
    code, details = error.code(), str(error.details())
    if "HTTP/2" in details or "http2 header" in details:
        return "a web server"
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return f"nothing ({' '.join(details.split())})"
    return "something that is not Ray" if code == grpc.StatusCode.UNIMPLEMENTED else None


def gather(files: Mapping[str, Path], folder: Path) -> None:
    """Copy files into a folder, below which each is called as it is to be."""
    for name, file in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


@contextmanager
def importable(config: PipelineConfig | None) -> Iterator[dict[str, Any]]:
    """What ``ray.init`` takes so that workers can import the code that a config names."""
    files = code_of(config) if config is not None else {}
    if not files:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="bend-code-") as folder:
        gather(files, Path(folder))
        yield {"runtime_env": {"py_modules": [str(each) for each in Path(folder).iterdir()]}}
