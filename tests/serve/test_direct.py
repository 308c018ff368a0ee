"""``bend serve --direct`` as other people's clients, and people who mean harm, speak to it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from inprocess import client
from serving import Load, Serving, free_port

from bend_ray.serve.bag import Bag
from bend_ray.serve.settings import Stop
from bend_ray.serve.wire import Protocol

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

INFER = "/v2/models/bag/infer"
BODY = json.dumps({"instances": [[[3] * 8] * 8]}).encode()
JSON = {"Content-Type": "application/json"}
JAVA = """
import java.net.URI; import java.net.http.*; import java.nio.file.*;
public class Ask {
  public static void main(String[] given) throws Exception {
    var body = HttpRequest.BodyPublishers.ofFile(Path.of(given[1]));
    var asked = HttpRequest.newBuilder(URI.create(given[0] + "/predict"))
        .header("Content-Type", "application/json").POST(body).build();
    var client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_2).build();
    for (int i = 0; i < 2; i++)
      System.out.println(client.send(asked, HttpResponse.BodyHandlers.ofString()).statusCode());
  }
}
"""


@pytest.fixture(scope="module")
def serving(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    running = Serving(tmp_path_factory.mktemp("direct"), folder, "--direct", grpc=True)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def ask(
    url: str, content: bytes | None = BODY, method: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, content, JSON | named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return (
                response.status,
                {k.lower(): v for k, v in response.headers.items()},
                response.read(),
            )
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def talk(port: int, *parts: bytes, pause: float = 0.3) -> bytes:
    """All that a connection says to these bytes, until it closes or is still."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        said = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
            connection.settimeout(1)
            while got := connection.recv(2**16):
                said += got
        except OSError:
            pass
        return said


def post(content: bytes, *headers: str) -> bytes:
    lines = ["POST /predict HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(content)}", "", ""]).encode() + content


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")


def test_an_offered_upgrade_is_passed_over_and_smuggles_nothing(serving: Serving) -> None:
    head, body = post(BODY, *UPGRADE).split(b"\r\n\r\n")
    assert talk(serving.port, head + b"\r\n\r\n", body).startswith(b"HTTP/1.1 200")
    hidden = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    said = talk(serving.port, post(b"", *UPGRADE)[:-5] + b"%d\r\n\r\n" % len(hidden), hidden)
    assert said.count(b"HTTP/1.1 ") == 1


@pytest.mark.skipif(shutil.which("javac") is None, reason="needs a JDK")
def test_javas_own_client(serving: Serving, tmp_path: Path) -> None:
    (tmp_path / "Ask.java").write_text(JAVA)
    (tmp_path / "body.json").write_bytes(BODY)
    command = ["java", str(tmp_path / "Ask.java"), serving.url, str(tmp_path / "body.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["200", "200"], done.stderr


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000, 431),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (post(b"0\r\n\r\n", "Transfer-Encoding: chunked"), 400),
        (post(b"", "Content-Length: 5"), 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n", 400),
        (b"GET /v2 HTTP/9.9\r\nHost: x\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)
def test_requests_that_are_none(serving: Serving, sent: bytes, status: int) -> None:
    said = talk(serving.port, sent)
    head, _, body = said.partition(b"\r\n\r\n")
    got = int(head.split()[1])
    assert 400 <= got < 600
    assert got in (status, 400), said
    assert json.loads(body)["error"]
    assert ask(f"{serving.url}/v2", None)[0] == 200


def test_methods_paths_and_headers(serving: Serving) -> None:
    for path in ("/v2", "/", "/v2/models/bag", "/openapi.json", "/metrics"):
        status, headers, content = ask(serving.url + path, None)
        assert status == 200
        bare = ask(serving.url + path, None, "HEAD")
        assert (bare[0], bare[2]) == (200, b"")
        assert path == "/metrics" or bare[1]["content-length"] == headers["content-length"]
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
    for path, method, allowed in (("/predict", "GET", "POST"), ("/v2", "PUT", "GET")):
        status, headers, content = ask(serving.url + path, None, method)
        assert (status, allowed in headers["allow"]) == (405, True)
        assert json.loads(content)["error"]
    status, headers, content = ask(f"{serving.url}/v2/", None, Host="evil.example")
    assert (status, "location" in headers) == (404, False)
    assert json.loads(content)["error"]


def test_codings(serving: Serving) -> None:
    plain = json.loads(ask(f"{serving.url}/predict")[2])
    raw = zlib.compressobj(wbits=-15)
    bare = raw.compress(BODY) + raw.flush()
    for coding, content in (
        ("gzip", gzip.compress(BODY)),
        ("GZIP", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
        ("deflate", zlib.compress(BODY)),
        ("Deflate", bare),
        ("identity", BODY),
    ):
        status, _, said = ask(f"{serving.url}/predict", content, Content_Encoding=coding)
        assert (status, json.loads(said)) == (200, plain), coding
    for content, status in (
        (gzip.compress(bytes(2**26)), 413),
        (gzip.compress(BODY)[:-9], 400),
        (b"junk", 400),
    ):
        assert ask(f"{serving.url}/predict", content, Content_Encoding="gzip")[0] == status
    refused = ask(f"{serving.url}/predict", BODY, Content_Encoding="br")
    assert (refused[0], refused[1]["accept-encoding"]) == (415, "gzip, deflate")


@pytest.mark.parametrize("path", ["/predict", INFER])
@pytest.mark.parametrize(
    "content",
    [
        b'{"\\ud800":1}',
        b'{"inputs":[{"name":"\\ud800","datatype":"UINT8","shape":[1],"data":[]}]}',
        b'{"instances":["\\udfff"]}',
        b'{"instances":[1e999]}',
        b'{"instances":[[]]}',
        b"\xef\xbb\xbf{}",
        '{"instances":[]}'.encode("utf-16"),
        b'{"a":1,"a":2}',
        b"[" * 10_000,
    ],
)
def test_texts_that_no_text_holds(serving: Serving, path: str, content: bytes) -> None:
    for charset in ("", "; charset=utf-16", "; charset=nonsense", '; charset="\xff"'):
        kind = f"application/json{charset}"
        status, _, said = ask(serving.url + path, content, Content_Type=kind)
        assert 400 <= status < 500, said
        assert json.loads(said)["error"]


def test_who_takes_no_answers_is_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bend_ray.serve.wire.SEND_SECONDS", 0.2)
    app = client(folder).app
    quiet: dict[str, Any] = {"log_config": None, "log_level": "critical", "access_log": False}
    config = uvicorn.Config(
        app, port=free_port(), http=Protocol, lifespan="off", ws="none", **quiet
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    with socket.create_connection(("127.0.0.1", config.port)) as connection:
        connection.settimeout(30)
        with pytest.raises(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2**20)
    server.should_exit = True
    thread.join()


def test_slow_senders_harm_nobody_and_are_dropped(serving: Serving) -> None:
    head = post(bytes(500))[:-500]
    slow = [socket.create_connection(("127.0.0.1", serving.port)) for _ in range(200)]
    mute = [socket.create_connection(("127.0.0.1", serving.port)) for _ in range(50)]
    for connection in slow:
        connection.sendall(head + b"a")
    for connection in mute[:25]:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
    for _ in range(3):
        assert ask(f"{serving.url}/v2/health/live", None)[0] == 200
        assert ask(f"{serving.url}/predict")[0] == 200
    for connection in slow:
        connection.settimeout(30)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    for connection in mute:
        connection.settimeout(30)
        assert connection.recv(100)[:12] in (b"", b"HTTP/1.1 408")
    for connection in slow + mute:
        connection.close()


def test_who_hangs_up_is_counted_as_such(serving: Serving) -> None:
    def count(status: str) -> float:
        text = ask(f"{serving.url}/metrics", None)[2].decode()
        wanted = f'bend_requests_total{{route="/predict",status="{status}"}}'
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(wanted))

    before = count("499"), count("500")
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", serving.port)) as connection:
            connection.sendall(post(b"x" * 500)[:-100])
            time.sleep(0.1)
    deadline = time.monotonic() + 20
    while count("499") < before[0] + 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (count("499"), count("500")) == (before[0] + 5, before[1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritons_http_client_with_compression(
    serving: Serving, bag: Bag, images: np.ndarray, compression: str | None
) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(serving.url.removeprefix("http://"))
    asked = triton.InferInput("images", list(images.shape), "UINT8")
    asked.set_data_from_numpy(images)
    said = client.infer("bag", [asked], request_compression_algorithm=compression)
    expected = bag.answer({"images": images}, [Stop()] * len(images))
    np.testing.assert_array_equal(said.as_numpy("label"), expected["label"])
    best = [triton.InferRequestedOutput("probabilities", class_count=2)]
    rows = client.infer("bag", [asked], outputs=best).as_numpy("probabilities")
    assert [row[0].split(b":")[2].decode() for row in rows] == [
        bag.card.class_names[label] for label in expected["label"]
    ]
    assert client.get_model_config("bag")["max_batch_size"] == 32
    assert client.get_model_repository_index()[0]["state"] == "READY"
    assert client.get_inference_statistics("bag")["model_stats"][0]["inference_count"] >= 6
    client.close()


@pytest.mark.parametrize("datatype", ["UINT8", "FP32", "INT32"])
def test_tritons_grpc_client(serving: Serving, bag: Bag, images: np.ndarray, datatype: str) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    client = triton.InferenceServerClient(f"127.0.0.1:{serving.grpc_port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bag", bag.card.model_version)
    assert client.get_server_metadata().name == "bend_ray"
    assert list(client.get_model_metadata("bag").inputs[0].shape) == [-1, 1, 8, 8]
    assert client.get_model_config("bag").config.max_batch_size == 32
    assert client.get_model_repository_index().models[0].name == "bag"
    kind = {"UINT8": np.uint8, "FP32": np.float32, "INT32": np.int32}[datatype]
    asked = triton.InferInput("images", list(images.shape), datatype)
    asked.set_data_from_numpy(images.astype(kind))
    said = client.infer("bag", [asked], request_id="7")
    expected = bag.answer({"images": images}, [Stop()] * len(images))
    assert said.get_response().id == "7"
    np.testing.assert_array_equal(said.as_numpy("label"), expected["label"])
    np.testing.assert_allclose(said.as_numpy("probabilities"), expected["probabilities"], atol=1e-6)
    statistics = client.get_inference_statistics("bag").model_stats[0]
    assert statistics.inference_count >= len(images)
    wrong = triton.InferInput("images", [1, 1, 8, 9], "UINT8")
    wrong.set_data_from_numpy(np.zeros((1, 1, 8, 9), np.uint8))
    with pytest.raises(triton.InferenceServerException, match=r"shape \[n, 1, 8, 8\]") as refused:
        client.infer("bag", [wrong])
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(triton.InferenceServerException, match="expected the model bag"):
        client.get_model_metadata("other")
    client.close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """Of 127.0.0.1, and its key."""
    pair = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    files = ["-out", str(pair[0]), "-keyout", str(pair[1])]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return pair


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_tls_a_token_and_an_end_under_load(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    monkeypatch.setenv("BEND_SERVE_TOKEN", "secret")
    cert, key = certificate(tmp_path)
    tls = ("--certfile", str(cert), "--keyfile", str(key))
    serving = Serving(tmp_path, folder, "--direct", "--host", "0.0.0.0", *tls, grpc=True)
    try:
        assert "with BEND_SERVE_TOKEN alone" in serving.wait_ready()
        context = ssl.create_default_context(cafile=str(cert))
        url = f"https://127.0.0.1:{serving.port}/predict"
        for token, status in (("secret", 200), ("wrong", 401)):
            headers = JSON | {"Authorization": f"bearer {token}"}
            request = urllib.request.Request(url, BODY, headers)
            try:
                with urllib.request.urlopen(request, timeout=20, context=context) as response:
                    got, security = response.status, response.headers["strict-transport-security"]
                assert security
            except urllib.error.HTTPError as error:
                got = error.code
            assert got == status
        pair: Any = {"ssl": True, "root_certificates": str(cert)}
        client = triton.InferenceServerClient(f"127.0.0.1:{serving.grpc_port}", **pair)
        with pytest.raises(triton.InferenceServerException, match="authorization"):
            client.get_model_metadata("bag")
        said = client.get_model_metadata("bag", headers={"authorization": "Bearer secret"})
        assert said.name == "bag"
        client.close()
    finally:
        assert serving.stop() == 0


def test_what_was_asked_before_the_end_is_answered(folder: Path, tmp_path: Path) -> None:
    serving = Serving(tmp_path, folder, "--direct")
    serving.wait_ready()
    with Load(serving.url, clients=8) as load:
        deadline = time.monotonic() + 30
        while sum(load.answers.values()) < 50 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(serving.process.pid, signal.SIGTERM)
        assert serving.process.wait(timeout=60) == 0
    told = [failure for failure in load.failures() if "refused" not in failure]
    closed = ("503", "reset", "Broken pipe")
    assert [each for each in told if not any(word in each for word in closed)] == []
    assert load.answers[folder.name] >= 50


def test_others_are_not_let_in_without_a_token(folder: Path, tmp_path: Path) -> None:
    serving = Serving(tmp_path, folder, "--direct", "--host", "0.0.0.0")
    assert serving.process.wait(timeout=60) == 2
    assert "expected BEND_SERVE_TOKEN" in serving.said()


def test_chunks_that_never_end_are_given_as_long_as_any_body(serving: Serving) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{"
    with socket.create_connection(("127.0.0.1", serving.port)) as connection:
        connection.sendall(head)
        connection.settimeout(30)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_body_that_is_too_large_is_refused_and_read_no_further(serving: Serving) -> None:
    """Who sends on is told all the same, and others are answered meanwhile."""
    large = b"0," * 2**22
    with socket.create_connection(("127.0.0.1", serving.port)) as connection:
        connection.sendall(post(large)[:-1000])
        assert ask(f"{serving.url}/predict")[0] == 200
        connection.settimeout(30)
        said = connection.recv(2**16)
        assert said.startswith(b"HTTP/1.1 413")
        while connection.recv(2**16):
            pass
