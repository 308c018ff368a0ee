"""Addresses at which no cluster can be joined are refused within seconds, with what was meant."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
import ray

from bend_ray.errors import ClusterError
from bend_ray.process.computing import usable_cores
from bend_ray.process.environment import cluster_to_join
from bend_ray.runtime import cluster
from bend_ray.runtime.cluster import check_address

WHERE = "--address x"


def refusal(given: str) -> str:
    with pytest.raises(ClusterError) as raised:
        check_address(given, WHERE)
    message = str(raised.value)
    assert message.startswith(WHERE)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def web() -> Iterator[str]:
    """A plain web server, as a dashboard is one."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_web_server_is_no_cluster(web: str) -> None:
    message = refusal(web)
    assert "got: a web server; a cluster's port is 6379 unless" in message
    assert "8265 is its dashboard's, for `bend submit`" in message


def test_what_never_answers_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert "got: nothing (Deadline Exceeded)" in refusal(f"127.0.0.1:{mute.getsockname()[1]}")


def test_another_service_of_the_same_protocol_is_no_cluster() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert "got: something that is not Ray" in refusal(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("127.0.0.1:9", "Connection refused"),
        ("ray://127.0.0.1:9", "or auto; ray:// is Ray Client's, through which Ray trains nothing"),
        ("127.0.0.1", "expected HOST:PORT as in 10.0.0.1:6379, or auto"),
        (":6379", "expected HOST:PORT"),
        ("head:", "expected HOST:PORT"),
        ("head:\u00b2", "expected HOST:PORT"),
        ("http://127.0.0.1:8265", "or auto; http:// is a dashboard's, for `bend submit`"),
        ("anyscale://cluster", "expected HOST:PORT"),
        ("127.0.0.1:99999", "expected HOST:PORT"),
    ],
)
def test_what_is_no_address_is_told(given: str, told: str) -> None:
    assert told in refusal(given)


@pytest.mark.ray
def test_a_cluster_is_known_at_its_own_port_and_at_no_other(cluster: None) -> None:
    own = ray.get_runtime_context().gcs_address
    check_address(own, WHERE)
    dashboard = ray._private.worker.get_dashboard_url()
    assert "got: a web server" in refusal(dashboard)


@pytest.mark.ray
def test_our_own_cluster_has_as_many_cores_as_we_may_use(cluster: None) -> None:
    from bend_ray.runtime.nodes import SPARE_CPUS

    assert ray.cluster_resources()["CPU"] == usable_cores() + SPARE_CPUS


def test_a_variable_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS=127\.0\.0\.1:9: expected a Ray cluster"):
        cluster.connect(None)


def test_an_own_cluster_is_nothing_or_local(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", variable)
        assert cluster_to_join(None) is cluster_to_join("local") is None
        assert cluster_to_join("auto") == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "a:1")
    assert (cluster_to_join(None), cluster_to_join("local")) == ("a:1", None)


def test_a_folder_too_long_for_sockets_is_left_out_while_ray_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    longest = "/tmp/" + (cluster.LONGEST_FOLDER - 5) * "x"
    monkeypatch.setenv("RAY_TMPDIR", "")
    for path, within in ((longest, longest), (f"{longest}x", "/tmp"), (f"{longest}ü", "/tmp")):
        monkeypatch.setenv("TMPDIR", path)
        with cluster._short_paths():
            assert os.environ["TMPDIR"] == within
        assert os.environ["TMPDIR"] == path


def test_a_socket_of_ray_has_room_in_the_longest_folder() -> None:
    folder = Path("/tmp", (cluster.LONGEST_FOLDER - 5 - 12) * "x" + f"{os.getpid():012d}")
    name = f"{folder}/ray/session_2026-01-31_12-00-00_000000_4194304/sockets/plasma_store"
    assert len(name) <= 103
    assert len(str(folder)) == cluster.LONGEST_FOLDER
