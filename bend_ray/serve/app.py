"""The HTTP interface over a bag: for people, for OIP clients, and for Prometheus.

``openapi.json`` describes it.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
import python_multipart
from numpy.typing import NDArray
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from bend_ray.errors import DataError
from bend_ray.export.card import IMAGES, Card
from bend_ray.serve import queries
from bend_ray.serve.answering import MIDDLE, SMALL, Answering
from bend_ray.serve.meters import CONTENT_TYPE
from bend_ray.serve.oip import Answered, OpenInference
from bend_ray.serve.pictures import MEDIA_TYPES, notes_on, pixels_of
from bend_ray.serve.queries import Refusal
from bend_ray.version import __version__

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # what strangers send is no news

HEADER_LENGTH = "Inference-Header-Content-Length"
_MODEL = "/v2/models/{name}"

Endpoint = Callable[[Request], Awaitable[Response]]


class PredictQuery(queries.Wants):
    """What ``/predict`` can be told beside the examples."""

    member_labels: bool = False
    """Add each asked member's class."""
    seen: bool = False
    """Add the inputs that the members saw."""


def make_app(service: Answering, metrics: Callable[[], bytes]) -> ASGIApp:
    """The interface, to be put behind a ``Guard``; ``metrics`` is what Prometheus is told."""
    protocol = OpenInference(service)

    def known(request: Request) -> Card:
        return protocol.known(request.path_params["name"], request.path_params.get("version"))

    def says(what: Callable[[Request], Any]) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            return JSONResponse(what(request))

        return endpoint

    def count(request: Request) -> Response:  # in a thread: Ray's agents are asked
        return Response(metrics(), media_type=CONTENT_TYPE)

    async def predict(request: Request) -> Response:
        return Response(to_json(await _predict(request, service)), media_type="application/json")

    async def infer(request: Request) -> Response:
        card, content = known(request), await request.body()
        queries.check_size(content, card, service.settings.max_batch_size)
        head, tail = _split(content, request.headers.get(HEADER_LENGTH))
        body = await service.read(len(head), queries.parse_object, head)
        asked, outputs = await protocol.infer(card, body, tail)
        own = {"model_name": protocol.name, "model_version": card.model_version}
        return _written(own if asked.id is None else own | {"id": asked.id}, outputs)

    draw, docs = _page("page.html", "text/html"), _page("docs.html", "text/html")

    async def front(request: Request) -> Response:
        card = service.card() if service.bag is not None else None
        shows = card is None or card.decoding is not None or card.columns
        return await (draw if shows else docs)(request)

    get: dict[str, Endpoint] = {
        "/": front,
        "/docs": docs,
        "/openapi.json": _page("openapi.json", "application/json"),
        "/about": says(lambda _: _about(service.card())),
        "/v2": says(lambda _: protocol.server()),
        "/v2/health/live": says(lambda _: {"live": True}),
        "/v2/health/ready": says(lambda _: {"ready": bool(service.card())}),
    }
    post: dict[str, Endpoint] = {
        "/predict": predict,
        "/v2/repository/index": says(lambda _: protocol.index()),
    }
    for base in (_MODEL, f"{_MODEL}/versions/{{version}}"):
        get[base] = says(lambda r: protocol.metadata(known(r)))
        get[f"{base}/ready"] = says(lambda r: {"name": protocol.name, "ready": bool(known(r))})
        get[f"{base}/config"] = says(lambda r: protocol.config(known(r)))
        get[f"{base}/stats"] = says(lambda r: protocol.statistics(known(r)))
        post[f"{base}/infer"] = infer
    # They are looked for in this order.
    routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()]
    routes += [Route(path, endpoint) for path, endpoint in get.items()]
    routes.append(Route("/metrics", count))
    # Redirected, a request would be led to whatever host it names.
    return Router(routes, redirect_slashes=False)


def _page(name: str, kind: str) -> Endpoint:
    content = (files("bend_ray.serve") / name).read_text(encoding="utf-8")
    content = content.replace('"version": ""', f'"version": "{__version__}"')

    async def page(request: Request) -> Response:
        return Response(content, media_type=kind)

    return page


def _about(card: Card) -> dict[str, Any]:
    told = {"dataset", "task", "class_names", "inputs", "decoding", "scores", "model_version"}
    return card.model_dump(mode="json", include=told) | {"members": len(card.members)}


async def _predict(request: Request, service: Answering) -> dict[str, Any]:
    """What the bag thinks of one picture, or of the examples in a JSON text."""
    query = queries.given(PredictQuery, dict(request.query_params), strict=False)
    card, content = service.card(), await request.body()
    content_type = request.headers.get("content-type", "")
    readers: dict[str, Callable[..., queries.Inputs]] = {"application/json": queries.inputs_of_json}
    if card.columns:
        advice = "; curl sends a file as it is with --data-binary @FILE, not with -d"
        readers["text/csv"] = partial(queries.inputs_of_csv, advice=advice)
    reader = readers.get(_media_type(content_type))
    if reader:
        queries.check_size(content, card, service.settings.max_batch_size)
        inputs = await service.read(len(content), reader, content, card)
    else:
        inputs = {IMAGES: (await _pixels(content_type, content, card, service))[None]}
    card, answers = await service.ask(card, inputs, query)
    said = [
        prediction(card, _row(answers, row), _row(inputs, row), query)
        for row in range(len(answers["entropy"]))
    ]
    return {"predictions": said} if reader else said[0]


def _row(values: Mapping[str, NDArray[Any]], row: int) -> dict[str, Any]:
    return {name: each[row] for name, each in values.items()}


async def _pixels(
    content_type: str, content: bytes, card: Card, service: Answering
) -> NDArray[np.uint8]:
    kind = _media_type(content_type)
    if card.decoding is None or kind not in (*MEDIA_TYPES, "multipart/form-data"):
        known = (*MEDIA_TYPES, "multipart/form-data with a file") if card.decoding else ()
        expected = ", ".join((*known, *(["text/csv"] if card.columns else []), "application/json"))
        raise Refusal(415, f"Content-Type: expected {expected}, got {kind[:64] or 'none'}")
    if kind == "multipart/form-data":
        content = await service.read(len(content), _upload, content_type, content)
    most = service.settings.fitted_to(card).max_image_pixels
    # Even a header may take long to read.
    cost = max(SMALL + 1, len(content))
    pixels = await service.read(cost, pixels_of, content, card, most, MIDDLE)
    if pixels is None:
        pixels = await service.read(MIDDLE + 1, pixels_of, content, card, most)
    assert pixels is not None
    return pixels


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _upload(content_type: str, content: bytes) -> bytes:
    """The one file of a form."""
    found: list[bytes] = []

    def take(file: python_multipart.multipart.File) -> None:
        file.file_object.seek(0)
        found.append(file.file_object.read())
        file.close()

    headers = {"Content-Type": content_type.encode("latin-1")}
    try:
        python_multipart.parse_form(headers, io.BytesIO(content), lambda field: None, take)
    except Exception as error:  # of its own, and whatever a charset makes Python raise
        raise Refusal(400, f"expected a form with one file, got: {str(error)[:200]}") from None
    if len(found) != 1:
        raise DataError(f"expected one file in the form, got {len(found) or 'none'}")
    return found[0]


def prediction(
    card: Card, one: Mapping[str, Any], own: Mapping[str, Any], query: PredictQuery
) -> dict[str, Any]:
    """The answer about one example, as people are told it."""
    said = card.task.told(one, card.class_names) | {
        "predictive_entropy": one["entropy"].item(),
        "mutual_information": one["mutual_information"].item(),
        "members_used": one["members_used"].item(),
        "members": len(card.members),
        "model_version": card.model_version,
        "notes": notes_on(own, card),
    }
    if query.member_labels:
        said["member_labels"] = [
            card.class_names[c] for c in one["member_labels"].tolist() if c >= 0
        ]
    if query.seen:
        shown = {n: np.asarray(v).tolist() for n, v in own.items()}
        # A number that is missing is not one that JSON has.
        said["seen"] = {n: None if v != v else v for n, v in shown.items()}
    return said


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


def _written(own: dict[str, str], outputs: list[Answered]) -> Response:
    written, tail = [], []
    for each in outputs:
        shape = list(each.values.shape)
        output: dict[str, Any] = {"name": each.name, "datatype": each.datatype, "shape": shape}
        if each.binary:
            tail.append(each.content())
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = each.values.flatten().tolist()
        written.append(output)
    head = json.dumps(own | {"outputs": written}).encode()
    if not tail:
        return Response(head, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(head))}
    return Response(head + b"".join(tail), headers=headers, media_type="application/octet-stream")
