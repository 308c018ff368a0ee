"""Wrong requests: 4xx, one sentence about what was expected, and never a fault of the server."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st
from inprocess import client
from PIL import Image
from starlette.testclient import TestClient
from test_app import INFER, infer_body, picture

from bend_ray.errors import ConfigError
from bend_ray.serve.settings import ServeSettings, parse_settings

ZEROS = np.zeros((1, 1, 8, 8), np.uint8)
PNG = {"Content-Type": "image/png"}


def bomb(side: int) -> bytes:
    """A small PNG that says it has ``side`` x ``side`` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff_of_16_bits() -> bytes:
    buffer = io.BytesIO()
    Image.new("I;16", (8, 8)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (bomb(5000), 413, "at most 4,194,304 pixels, got 5000 x 5000"),
        (bomb(2**30), 413, "at most 4,194,304 pixels"),
        (b"no picture", 415, "PNG, JPEG, GIF, BMP, WEBP, TIFF, PPM, got: something else"),
        (tiff_of_16_bits(), 415, "grey or colour of 8 bits"),
        (picture(ZEROS[0])[:40], 415, "expected an image as PNG"),
        (b"", 415, "something else"),
    ],
)
def test_files(http: TestClient, content: bytes, status: int, told: str) -> None:
    for arguments in (
        {"content": content, "headers": PNG},
        {"files": {"file": ("a.png", content, "image/png")}},
    ):
        done = http.post("/predict", **arguments)
        assert done.status_code == status
        assert told in done.json()["error"]


def test_a_misspelt_option_is_not_ignored(http: TestClient) -> None:
    done = http.post("/predict?stop_when_decide=true", json={"instances": [[[0] * 8] * 8]})
    assert done.status_code == 422
    assert "expected of stop_when_decided, confidence" in done.json()["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"instances": [[[0] * 8] * 7]}, 422, "shape [n, 1, 8, 8]"),
        ({"instances": [[[0] * 8] * 7 + [[0]]]}, 422, "rows of several shapes"),
        ({"instances": [[[17] + [0] * 7] + [[0] * 8] * 7]}, 422, "from 0 to 16"),
        ({"instances": [[[-1] + [0] * 7] + [[0] * 8] * 7]}, 422, "from 0 to 16"),
        ({"instances": [[[0.5] * 8] * 8]}, 422, "whole numbers"),
        ({"instances": [[["0"] * 8] * 8]}, 422, "expected numbers"),
        ({"instances": [[[10**30] * 8] * 8]}, 422, "numbers"),
        ({"instances": [[[True] + [0] * 7] + [[0] * 8] * 7]}, 422, "true or false"),
        ({"instances": 3}, 422, "a list"),
        ({"instances": [], "more": 1}, 422, "nothing else, got instances, more"),
        ({"instances": []}, 422, "1 to 32 examples, got 0"),
        ({"instances": [[]]}, 422, "shape [n, 1, 8, 8]"),
        ({"instances": [{"images": 1}, 2]}, 422, "instances[1]: expected an object"),
        ({"instances": [{"pixels": 1}]}, 422, "expected images; missing: images; unknown: pixels"),
        ([1], 400, "a JSON object"),
    ],
)
def test_pixels(http: TestClient, body: Any, status: int, told: str) -> None:
    done = http.post("/predict", json=body)
    assert (done.status_code, told in done.json()["error"]) == (status, True), done.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff", b"[" * 100_000, b'{"instances":NaN}', b"[" * 40 + b"]" * 40, b"9" * 5000],
)
def test_json_that_is_none_or_too_deep(http: TestClient, content: bytes) -> None:
    for path in ("/predict", INFER):
        done = http.post(path, content=content, headers={"Content-Type": "application/json"})
        assert done.status_code == 400
        assert "expected" in done.json()["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "x"}, "inputs: expected images, got x"),
        ({"datatype": "BOOL"}, "datatype: expected UINT8, UINT16, "),
        ({"shape": [1, 8, 8]}, "shape [n, 1, 8, 8]"),
        ({"shape": [True, 1, 8, 8]}, "no boolean"),
        ({"shape": [2**40, 1, 8, 8]}, "shape [n, 1, 8, 8]"),
        ({"shape": [33, 1, 8, 8]}, "1 to 32 of them, got [33, 1"),
        ({"shape": [0, 1, 8, 8], "data": []}, "1 to 32 of them, got [0, 1"),
        ({"data": [0] * 63}, "expected 64 numbers"),
        ({"data": [300] * 64}, "from 0 to 16"),
        ({"data": None}, "list of numbers, got null"),
        ({"parameters": {"binary_data_size": 64}}, "binary_data_size"),
        ({"parameters": []}, "a valid dictionary"),
    ],
)
def test_tensors(http: TestClient, changes: dict[str, Any], told: str) -> None:
    body = infer_body(ZEROS)
    body["inputs"][0] |= changes
    done = http.post(INFER, json=body)
    assert 400 <= done.status_code < 500
    assert told in done.json()["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"inputs": []}, "at least 1 item"),
        ({"outputs": [{"name": "x"}]}, "expected of probabilities, "),
        ({"outputs": [{"name": ["x"]}]}, "outputs.0.name: Input should be"),
        ({"outputs": [{"name": "label", "parameters": {"class": 1}}]}, "parameters.class: Extra"),
        ({"outputs": [{"name": "entropy", "parameters": {"classification": 1}}]}, "alone"),
        ({"parameters": {"sequence_id": 1}}, "parameters.sequence_id: Extra inputs"),
        ({"outputs": 5}, "a valid list"),
        ({"id": 5}, "a valid string"),
        ({"parameters": {"confidence": 2}}, "equal to 1"),
        ({"parameters": {"confidence": "x"}}, "a valid number"),
        ({"parameters": {"stop_when_decided": 1}}, "a valid boolean"),
    ],
)
def test_the_rest_of_an_inference(http: TestClient, more: dict[str, Any], told: str) -> None:
    done = http.post(INFER, json=infer_body(ZEROS) | more)
    assert 400 <= done.status_code < 500
    assert told in done.json()["error"]


@pytest.mark.slow
@pytest.mark.parametrize("length", ["x", "-1", "99999", "1" * 30, "", "²"])
def test_lengths_of_the_binary_header(http: TestClient, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    done = http.post(INFER, content=b"{}", headers=headers)
    assert done.status_code == 400


def test_bodies_that_are_too_large_whether_they_say_so_or_not(folder: Path) -> None:
    http = client(folder, ServeSettings(max_body_bytes=10_000))

    def endless() -> Iterator[bytes]:
        yield from [b"x" * 4096] * 100

    for path in ("/predict", INFER):
        for content in (b"x" * 20_000, endless()):
            assert http.post(path, content=content, headers=PNG).status_code == 413


def test_kinds_of_bodies_queries_and_paths(http: TestClient) -> None:
    assert http.post("/predict", content=b"x").status_code == 415
    assert http.post("/predict", data={"a": "b"}).status_code == 415
    assert http.post("/predict", files={"a": (None, "b")}).status_code == 422
    broken = {"Content-Type": "multipart/form-data"}
    assert http.post("/predict", content=b"x", headers=broken).status_code == 400
    for query in ("confidence=0", "confidence=2", "confidence=nan", "stop_when_decided=perhaps"):
        done = http.post(f"/predict?{query}", json={"instances": [[[0] * 8] * 8]})
        assert done.status_code == 422
        assert done.json()["error"]
    assert http.get("/predict").status_code == 405
    assert http.get("/nowhere").status_code == 404


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"args\.max_queud.*known: name, groups"):
        parse_settings({"max_queud": 1})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@pytest.mark.slow
@fuzzed(50)
@given(data=st.data())
def test_whatever_an_inference_holds_it_is_answered_or_refused(
    http: TestClient, data: st.DataObject
) -> None:
    body: Any = infer_body(ZEROS)
    for _ in range(data.draw(st.integers(1, 3))):
        holder = data.draw(st.sampled_from([body, body["inputs"][0]]))
        keys = ["inputs", "outputs", "id", "parameters", "shape", "data", "datatype", "name"]
        holder[data.draw(st.sampled_from(keys))] = data.draw(json_values)
        if not isinstance(body["inputs"], list) or not body["inputs"]:
            break
        if not isinstance(body["inputs"][0], dict):
            break
    head = json.dumps(body).encode()
    tail = data.draw(st.binary(max_size=80))
    length = data.draw(st.sampled_from([len(head), len(head) + len(tail), 3, 0]))
    headers = {"Inference-Header-Content-Length": str(length)}
    done = http.post(INFER, content=head + tail, headers=headers if tail else {})
    assert done.status_code < 500, done.text
    if done.status_code != 200:
        assert "error" in done.json()


@pytest.mark.slow
@fuzzed(60)
@given(data=st.data())
def test_whatever_a_file_holds_it_is_answered_or_refused(
    http: TestClient, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG"]))
    content = bytearray(picture(ZEROS[0] + 7, kind, scale=2))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    done = http.post("/predict", content=bytes(content), headers=PNG)
    assert done.status_code < 500, done.text
