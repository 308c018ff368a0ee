"""The interface for people and for machines: what it answers, and how it refuses."""

from __future__ import annotations

import io
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inprocess import client
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from PIL import Image
from starlette.testclient import TestClient

from bend_ray.serve.bag import Bag
from bend_ray.serve.settings import ServeSettings, Stop

INFER = "/v2/models/bag/infer"


def picture(pixels_CHW: np.ndarray, kind: str = "PNG", scale: int = 1) -> bytes:
    """Digits' pixels as a file of brightness 0 to 255, each pixel a square of ``scale``."""
    grey = np.rint(pixels_CHW[0] * (255 / 16)).astype(np.uint8)
    grey = np.kron(grey, np.ones((scale, scale), np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, kind)
    return buffer.getvalue()


def check_prediction(said: dict[str, Any], bag: Bag, pixels_CHW: np.ndarray) -> None:
    expected = bag.answer({"images": pixels_CHW[None]}, [Stop()])
    names = bag.card.class_names
    assert said["label"] == names[int(expected["label"][0])]
    np.testing.assert_allclose(
        [said["probabilities"][name] for name in names], expected["probabilities"][0], atol=1e-6
    )
    assert [said["votes"][name] for name in names] == expected["votes"][0].tolist()
    assert said["predictive_entropy"] == pytest.approx(expected["entropy"][0])
    assert said["mutual_information"] == pytest.approx(expected["mutual_information"][0])
    assert (said["members_used"], said["members"]) == (9, 9)
    assert said["model_version"] == bag.card.model_version


def test_pixels_files_and_forms_are_answered_alike(
    http: TestClient, bag: Bag, images: np.ndarray
) -> None:
    image = images[0]
    asked: list[dict[str, Any]] = [
        {"json": {"instances": [image.tolist()]}},
        {"json": {"instances": [image[0].tolist()]}},
        {"content": picture(image), "headers": {"Content-Type": "image/png"}},
        {"content": picture(image, scale=5), "headers": {"Content-Type": "image/png"}},
        {"files": {"file": ("a.png", picture(image), "image/png")}},
    ]
    for arguments in asked:
        done = http.post("/predict", **arguments)
        assert done.status_code == 200, done.text
        said = done.json()
        check_prediction(said["predictions"][0] if "json" in arguments else said, bag, image)
    jpeg = {"content": picture(image, "JPEG"), "headers": {"Content-Type": "image/jpeg"}}
    assert http.post("/predict", **jpeg).status_code == 200


def test_members_can_be_seen_and_can_be_spared(
    http: TestClient, bag: Bag, images: np.ndarray
) -> None:
    body = {"instances": [images[0].tolist()]}
    said = http.post("/predict?member_labels=true", json=body).json()["predictions"][0]
    assert len(said["member_labels"]) == 9
    counts = {name: said["member_labels"].count(name) for name in bag.card.class_names}
    assert counts == said["votes"]
    for query in ("confidence=0.01", "stop_when_decided=true"):
        early = http.post(f"/predict?{query}", json=body).json()["predictions"][0]
        assert early["members_used"] <= 9
        if query.startswith("stop"):
            assert early["label"] == said["label"]
        else:
            assert early["members_used"] == 3


@pytest.mark.slow
def test_the_deployment_decides_where_the_request_does_not(folder: Path) -> None:
    eager = client(folder, ServeSettings(confidence=0.01, groups=9))
    body = {"instances": [[[0] * 8] * 8]}
    assert eager.post("/predict", json=body).json()["predictions"][0]["members_used"] == 1
    patient = eager.post("/predict?stop_when_decided=false", json=body).json()["predictions"][0]
    assert patient["members_used"] == 9


def infer_body(images: np.ndarray, **more: Any) -> dict[str, Any]:
    tensor = {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(images.shape),
        "data": images.flatten().tolist(),
    }
    return {"inputs": [tensor], **more}


def test_open_inference_protocol_in_json(http: TestClient, bag: Bag, images: np.ndarray) -> None:
    done = http.post(INFER, json=infer_body(images, id="7"))
    assert done.status_code == 200, done.text
    said = done.json()
    assert (said["model_name"], said["id"]) == ("bag", "7")
    assert said["model_version"] == bag.card.model_version
    outputs = {output["name"]: output for output in said["outputs"]}
    expected = bag.answer({"images": images}, [Stop()] * 6)
    assert outputs["label"]["data"] == expected["label"].tolist()
    assert outputs["probabilities"]["shape"] == [6, 10]
    np.testing.assert_allclose(
        outputs["probabilities"]["data"], expected["probabilities"].flatten(), atol=1e-6
    )
    assert "member_probabilities" not in outputs
    nested = infer_body(images, outputs=[{"name": "member_probabilities"}])
    nested["inputs"][0]["data"] = images.tolist()
    (members,) = http.post(INFER, json=nested).json()["outputs"]
    assert members["shape"] == [6, 9, 10]


def test_open_inference_protocol_in_binary(http: TestClient, bag: Bag, images: np.ndarray) -> None:
    body = infer_body(images, parameters={"binary_data_output": True})
    del body["inputs"][0]["data"]
    body["inputs"][0]["parameters"] = {"binary_data_size": images.size}
    head = json.dumps(body).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    done = http.post(INFER, content=head + images.tobytes(), headers=headers)
    assert done.status_code == 200, done.text
    length = int(done.headers["inference-header-content-length"])
    tail = done.content[length:]
    for output in json.loads(done.content[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        if output["name"] == "probabilities":
            got = np.frombuffer(tail[:size], "<f4").reshape(output["shape"])
            expected = bag.answer({"images": images}, [Stop()] * 6)["probabilities"]
            np.testing.assert_allclose(got, expected, atol=1e-6)
        tail = tail[size:]
    assert tail == b""


def test_models_and_health(http: TestClient, bag: Bag) -> None:
    version = bag.card.model_version
    for base in ("/v2/models/bag", f"/v2/models/bag/versions/{version}"):
        assert http.get(base).json()["inputs"][0]["shape"] == [-1, 1, 8, 8]
        assert http.get(f"{base}/ready").json() == {"name": "bag", "ready": True}
    assert http.get("/v2/models/other").status_code == 404
    assert http.get("/v2/models/bag/versions/other").status_code == 404
    assert "binary_tensor_data" in http.get("/v2").json()["extensions"]
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}


def test_before_a_bag_is_loaded_it_lives_but_is_not_ready() -> None:
    http = client(None)
    assert http.get("/v2/health/live").status_code == 200
    for answer in (http.get("/v2/health/ready"), http.post("/predict", json={"instances": []})):
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"


def test_a_request_is_a_span_below_its_clients(folder: Path) -> None:
    seen = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(seen))
    trace.set_tracer_provider(provider)
    http = client(folder)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    http.get("/v2/models/bag/config", headers={"traceparent": parent})
    http.get("/v2/models/other")
    known, unknown = seen.get_finished_spans()
    assert known.name == "GET /v2/models/{name}/config"
    assert known.parent is not None
    assert format(known.context.trace_id, "032x") == parent[3:35]
    assert format(known.parent.span_id, "016x") == parent[36:52]
    assert known.attributes is not None
    assert known.attributes["http.response.status_code"] == 200
    assert unknown.parent is None
    assert unknown.attributes is not None
    assert unknown.attributes["http.response.status_code"] == 404


def test_pages_need_nothing_from_elsewhere(http: TestClient) -> None:
    for path in ("/", "/docs"):
        page = http.get(path)
        assert page.status_code == 200
        assert "://" not in page.text
        assert "default-src 'self'" in page.headers["content-security-policy"]
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/predict", "/v2/models/{name}/infer", "/metrics"} <= set(paths)


def test_requests_batches_and_members_are_counted(http: TestClient, images: np.ndarray) -> None:
    http.post(INFER, json=infer_body(images))
    http.post("/predict", json={})
    text = http.get("/metrics").text
    assert 'bend_requests_total{route="/v2/models/{name}/infer",status="200"} 1.0' in text
    assert 'bend_request_seconds_count{route="/v2/models/{name}/infer"} 1.0' in text
    assert 'bend_requests_total{route="/predict",status="422"} 1.0' in text
    assert "bend_batch_examples_sum 6.0" in text
    assert "bend_answer_entropy_nats_count 6.0" in text
    assert "bend_members_used_sum 54.0" in text
    assert "bend_requests_ongoing 0.0" in text


def test_no_other_site_may_read_the_answers(http: TestClient) -> None:
    asked = http.post(
        "/predict", json={"instances": [[[0] * 8] * 8]}, headers={"Origin": "http://x.y"}
    )
    assert not [name for name in asked.headers if name.startswith("access-control")]


def test_a_token_is_asked_for_everywhere_but_at_the_door(folder: Path) -> None:
    http = client(folder, token="secret")
    body = {"json": {"instances": [[[0] * 8] * 8]}}
    for path in ("/v2/health/live", "/v2/health/ready", "/", "/docs"):
        assert http.get(path).status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
        refused = http.post("/predict", headers=headers, **body)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert http.get("/metrics", headers=headers).status_code == 401
    allowed = http.post("/predict", headers={"Authorization": "Bearer secret"}, **body)
    assert allowed.status_code == 200


def test_the_board_asks_for_metrics_that_there_are(http: TestClient, images: np.ndarray) -> None:
    http.post(INFER, json=infer_body(images))
    told = set(re.findall(r"^# TYPE (\S+)", http.get("/metrics").text, re.MULTILINE))
    board = json.loads((files("bend_ray.serve") / "grafana.json").read_text())
    asked = re.findall(
        r"\(ray_\)\?(bend_\w+?)(?:_bucket|_sum|_count)?\"",
        json.dumps(board["panels"]).replace('\\"', '"'),
    )
    assert set(asked) <= told
    assert len(set(asked)) >= 10
