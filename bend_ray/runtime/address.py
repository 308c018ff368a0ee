"""A cluster's address: what may be one, and whether Ray answers there.

Ray itself tries for up to fourteen minutes, whatever answers.
"""

from __future__ import annotations

import re
import socket
from typing import Any

import grpc
import ray
from ray.exceptions import AuthenticationError

from bend_ray.errors import ClusterError

CONNECT_SECONDS = 4.0
ANSWER_SECONDS = 10.0
"""Until an answer to a question that takes a healthy cluster a millisecond."""

UNAUTHENTICATED = (
    "the cluster asks for its token: put that into ~/.ray/auth_token, or into RAY_AUTH_TOKEN"
)
_REFUSED = "a refusal of the token"
_MEANT = {
    "http": "http:// is a dashboard's, for `bend submit`",
    "https": "https:// is a dashboard's, for `bend submit`",
    "ray": "ray:// is Ray Client's, through which Ray trains nothing: use `bend submit`",
}


def check_address(address: str, named: str) -> None:
    """Refuse within seconds an address at which no cluster can be joined.

    Args:
        address: ``host:port`` or ``auto``.
        named: how it was given, for the message.

    Raises:
        ClusterError: nothing answers there, or something else than what the address says.
    """
    if address == "auto":
        found = _running_here()
        if found is None:
            return
        address, named = found, f"{named}, which is {found}"
    scheme, separator, _ = address.rpartition("://")
    host, _, port = address.rpartition(":")
    is_port = re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16
    if separator or not (host and is_port):
        hint = f"; {_MEANT[scheme]}" if scheme in _MEANT else ""
        raise ClusterError(f"{named}: expected HOST:PORT as in 10.0.0.1:6379, or auto{hint}")
    _check_connection(host.strip("[]"), int(port), named)
    _check_service(address, named)


def no_answer(named: str, got: str) -> ClusterError:
    """That no cluster answers, with what did."""
    reason = got.strip().partition("\n")[0]
    return ClusterError(
        f"{named}: expected a Ray cluster to answer, got: {reason}; check the address, or leave it "
        "out to start one on this machine"
    )


def _running_here() -> str | None:
    """The address of the cluster that was last started on this machine, running or not."""
    look_up = getattr(ray._private.services, "get_ray_address_from_environment", None)
    if look_up is None:  # private, so another Ray may have none
        return None
    try:
        found: str | None = look_up("auto", None)
    except ConnectionError:
        return None
    return found


def _check_connection(host: str, port: int, named: str) -> None:
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise no_answer(named, str(error) or type(error).__name__) from None


def _check_service(host_port: str, named: str) -> None:
    """Ask what listens whether it is what the address says."""
    try:
        from ray._private.grpc_utils import init_grpc_channel
    except ImportError:  # private, so another Ray may have none
        return
    try:
        # With Ray's certificates, and with the token that there is.
        opened = init_grpc_channel(host_port, [("grpc.enable_http_proxy", 0)])
    except (RuntimeError, AuthenticationError) as error:
        raise no_answer(named, f"no question: {error}") from None
    with opened as channel:
        answer = _answer(channel)
    if answer == _REFUSED:
        raise ClusterError(f"{named}: {UNAUTHENTICATED}")
    if answer is not None:
        raise no_answer(
            named,
            f"{answer}; a cluster's port is 6379 unless it was started with another, 8265 is its "
            "dashboard's, for `bend submit`",
        )


def _answer(channel: Any) -> str | None:
    """What comes instead of a cluster's answer to a question that costs nothing; None if it is."""
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    asked = gcs_service_pb2.GetInternalConfigRequest()
    try:
        gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel).GetInternalConfig(
            asked, timeout=ANSWER_SECONDS
        )
    except grpc.RpcError as error:
        details = str(error.details())
        if "HTTP/2" in details or "http2 header" in details:
            return "a web server"
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return f"nothing ({details})"
        # Others come from the service itself.
        refusals = {
            grpc.StatusCode.UNIMPLEMENTED: "something that is not Ray",
            grpc.StatusCode.UNAUTHENTICATED: _REFUSED,
        }
        return refusals.get(error.code())
    return None
