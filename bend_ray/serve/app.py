"""The HTTP interface over a bag: for people, for OIP clients, and for Prometheus."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from bend_ray import __version__
from bend_ray.serve import oip
from bend_ray.serve.answering import Answering
from bend_ray.serve.guard import App
from bend_ray.serve.meters import CONTENT_TYPE
from bend_ray.serve.oip import Inferred, OpenInference
from bend_ray.serve.predict import add_predict
from bend_ray.serve.queries import check_size, parse_object
from bend_ray.serve.refusals import Refusal

HEADER_LENGTH = "Inference-Header-Content-Length"


def make_app(service: Answering, metrics: Callable[[], bytes]) -> App:
    """The interface, to be put behind a ``Guard``.

    Args:
        service: that answers.
        metrics: what Prometheus is told.
    """
    api = FastAPI(
        title="bend_ray",
        version=__version__,
        description="A bag of classifiers drawn from noise.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would lead to whatever host the request names
    )
    _add_errors(api)
    _add_pages(api, service, metrics)
    protocol = OpenInference(service)
    _add_server(api, protocol)
    _add_models(api, protocol)
    add_predict(api, service)
    return api


def refused(status: int, message: str, headers: Any = None) -> JSONResponse:
    """A refusal as a response; OIP's error object, everywhere."""
    return JSONResponse({"error": message}, status, headers)


def _add_errors(api: FastAPI) -> None:
    @api.exception_handler(Refusal)
    async def refusal(request: Request, error: Refusal) -> JSONResponse:
        return refused(error.status, error.message, error.headers)

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return refused(404, "expected one of the paths that /docs lists")
        headers = {**(error.headers or {})}
        if headers.get("Allow") == "GET":
            headers["Allow"] = "GET, HEAD"
        return refused(error.status_code, str(error.detail), headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return refused(422, f"{where}: {first['msg']}")


def _add_pages(api: FastAPI, service: Answering, metrics: Callable[[], bytes]) -> None:
    def page(name: str) -> str:
        return (files("bend_ray.serve") / name).read_text(encoding="utf-8")

    index, docs = page("page.html"), page("docs.html")

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def draw() -> str:
        return index

    @api.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def document() -> str:
        return docs

    @api.get("/about", tags=["people"], summary="What the bag knows")
    async def about() -> dict[str, Any]:
        card = service.card()
        asked = {"dataset", "class_names", "image_shape", "decoding", "scores", "model_version"}
        told = card.model_dump(mode="json", include=asked)
        return {**told, "members": len(card.members), "pixel_mean": card.pixel_mean}

    @api.get("/metrics", tags=["operations"], summary="Counts, as Prometheus reads them")
    def count() -> Response:
        return Response(metrics(), media_type=CONTENT_TYPE)


_TAGS: list[Any] = ["open inference protocol"]


def _add_server(api: FastAPI, protocol: OpenInference) -> None:
    @api.get("/v2", tags=_TAGS, summary="The server")
    async def server() -> dict[str, Any]:
        return protocol.server()

    @api.get("/v2/health/live", tags=_TAGS, summary="Whether the server runs")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @api.get("/v2/health/ready", tags=_TAGS, summary="Whether the bag is loaded and warm")
    async def ready() -> dict[str, bool]:
        protocol.service.card()
        return {"ready": True}

    @api.post("/v2/repository/index", tags=_TAGS, summary="The models that there are")
    async def index() -> list[dict[str, str]]:
        return protocol.index()


def _add_models(api: FastAPI, protocol: OpenInference) -> None:
    problems: dict[int | str, dict[str, Any]] = {
        status: {"description": "What was expected, and what came"}
        for status in (400, 401, 404, 408, 413, 415, 422, 503)
    }

    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return protocol.metadata(protocol.known(name, version))

    async def ready(name: str, version: str | None = None) -> dict[str, Any]:
        protocol.known(name, version)
        return {"name": name, "ready": True}

    async def config(name: str, version: str | None = None) -> dict[str, Any]:
        return protocol.config(protocol.known(name, version))

    async def statistics(name: str, version: str | None = None) -> dict[str, Any]:
        return protocol.statistics(protocol.known(name, version))

    async def infer(name: str, request: Request, version: str | None = None) -> Response:
        card, content = protocol.known(name, version), await request.body()
        check_size(content, card, protocol.service.settings.max_batch_size)
        head, tail = _split(content, request.headers.get(HEADER_LENGTH))
        body = await protocol.service.read(len(head), parse_object, head)
        return _written(name, await protocol.infer(card, body, tail))

    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        for path, told, get in (
            ("", "The model", metadata),
            ("/ready", "Its readiness", ready),
            ("/config", "Its configuration, with the batch limit", config),
            ("/stats", "What the replica that is asked has done", statistics),
        ):
            api.get(f"{base}{path}", tags=_TAGS, responses=problems, summary=told)(get)
        api.post(
            f"{base}/infer",
            tags=_TAGS,
            responses=problems,
            summary="Ask the bag about images",
            openapi_extra={"requestBody": _infer_body()},
        )(infer)


def _split(content: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """The JSON of a request, and what is behind it."""
    if header_length is None:
        return content, b""
    valid = header_length.isascii() and header_length.isdigit() and len(header_length) < 12
    if not valid or int(header_length) > len(content):
        raise Refusal(
            400,
            f"{HEADER_LENGTH}: expected a number of bytes, at most the {len(content)} of the body, "
            f"got {header_length[:20]!r}",
        )
    return content[: int(header_length)], content[int(header_length) :]


def _written(name: str, inferred: Inferred) -> Response:
    written, tail = [], []
    for each in inferred.outputs:
        output: dict[str, Any] = {"name": each.name, "datatype": each.datatype, "shape": each.shape}
        if each.binary:
            tail.append(each.content())
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = each.values.flatten().tolist()
        written.append(output)
    body: dict[str, Any] = {"model_name": name, "model_version": inferred.card.model_version}
    if inferred.request_id is not None:
        body["id"] = inferred.request_id
    head = json.dumps(body | {"outputs": written}).encode()
    if not tail:
        return Response(head, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(head + b"".join(tail), headers=headers, media_type="application/octet-stream")


def _infer_body() -> dict[str, Any]:
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"type": "string", "const": oip.INPUT},
            "datatype": {"type": "string", "enum": list(oip.DATATYPES)},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "data": {"type": "array", "items": {}},
        },
    }
    parameters = {
        "type": "object",
        "properties": {
            "stop_when_decided": {"type": "boolean"},
            "confidence": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "binary_data_output": {"type": "boolean"},
        },
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": parameters,
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": tensor},
            "outputs": {"type": "array", "items": {"type": "object"}},
        },
    }
    return {"required": True, "content": {"application/json": {"schema": schema}}}
