"""The HTTP interface over a ``Service``: for people, for OIP clients, and for Prometheus."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from bend_ray.export.card import Card
from bend_ray.serve import oip
from bend_ray.serve.guard import App, Guard
from bend_ray.serve.meters import CONTENT_TYPE
from bend_ray.serve.predict import add_predict
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.service import Service
from bend_ray.version import __version__


def make_app(service: Service, token: str | None = None) -> App:
    """The interface, guarded.

    Args:
        service: that answers.
        token: that requests must bear; None: everybody is welcome.
    """
    api = FastAPI(
        title="bend_ray",
        version=__version__,
        description="A bag of classifiers drawn from noise.",
        docs_url=None,
        redoc_url=None,
    )
    _add_errors(api)
    _add_pages(api, service)
    _add_health(api, service)
    _add_models(api, service)
    add_predict(api, service)
    return Guard(api, service.meters, service.settings.max_body_bytes, token)


def refused(status: int, message: str) -> JSONResponse:
    """A refusal as a response; OIP's error object, everywhere."""
    headers = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse({"error": message}, status, headers)


def _add_errors(api: FastAPI) -> None:
    @api.exception_handler(Refusal)
    async def refusal(request: Request, error: Refusal) -> JSONResponse:
        return refused(error.status, error.message)

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return refused(404, "expected one of the paths that /docs lists")
        return refused(error.status_code, str(error.detail))

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return refused(422, f"{where}: {first['msg']}")


def _add_pages(api: FastAPI, service: Service) -> None:
    def page(name: str) -> str:
        return (files("bend_ray.serve") / name).read_text(encoding="utf-8")

    index, docs = page("page.html"), page("docs.html")

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def draw() -> str:
        return index

    @api.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def document() -> str:
        return docs

    @api.get("/metrics", tags=["operations"], summary="Counts, as Prometheus reads them")
    async def metrics() -> Response:
        return Response(service.meters.text(), media_type=CONTENT_TYPE)


def _add_health(api: FastAPI, service: Service) -> None:
    tags: list[Any] = ["open inference protocol"]

    @api.get("/v2", tags=tags, summary="The server")
    async def server() -> dict[str, Any]:
        return {"name": "bend_ray", "version": __version__, "extensions": oip.EXTENSIONS}

    @api.get("/v2/health/live", tags=tags, summary="Whether the server runs")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @api.get("/v2/health/ready", tags=tags, summary="Whether the bag is loaded and warm")
    async def ready() -> dict[str, bool]:
        service.card()
        return {"ready": True}


def _add_models(api: FastAPI, service: Service) -> None:
    tags: list[Any] = ["open inference protocol"]
    problems: dict[int | str, dict[str, Any]] = {
        status: {"description": "What was expected, and what came"}
        for status in (400, 401, 404, 413, 415, 422, 503)
    }

    def known(name: str, version: str | None) -> Card:
        card = service.card()
        if name != service.settings.name:
            raise Refusal(404, f"expected the model {service.settings.name}")
        if version not in (None, card.model_version):
            raise Refusal(404, f"expected version {card.model_version} of the model")
        return card

    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        return oip.model_metadata(name, known(name, version))

    async def ready(name: str, version: str | None = None) -> dict[str, Any]:
        known(name, version)
        return {"name": name, "ready": True}

    async def infer(name: str, request: Request, version: str | None = None) -> Response:
        card = known(name, version)
        settings = service.settings
        parsed = oip.parse_request(
            await request.body(),
            request.headers.get(oip.HEADER_LENGTH),
            card,
            settings.stop,
            settings.max_batch_size,
        )
        answers = await service.ask(card, parsed.question)
        body, headers = oip.write_response(name, card, parsed, answers)
        return Response(body, headers=headers)

    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        api.get(base, tags=tags, responses=problems, summary="The model")(metadata)
        api.get(f"{base}/ready", tags=tags, responses=problems, summary="Its readiness")(ready)
        api.post(
            f"{base}/infer",
            tags=tags,
            responses=problems,
            summary="Ask the bag about images",
            openapi_extra={"requestBody": _infer_body()},
        )(infer)


def _infer_body() -> dict[str, Any]:
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"type": "string", "const": oip.INPUT},
            "datatype": {"type": "string", "const": "UINT8"},
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
