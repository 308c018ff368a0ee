"""``POST /predict``: one image, as a file or as pixels, and what the bag thinks of it."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from bend_ray.export.card import Card
from bend_ray.serve.pictures import MEDIA_TYPES, pixels_of
from bend_ray.serve.queries import Question, parse_object, pixels_of_json, stop_of
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.service import Service
from bend_ray.serve.voting import Answers

_QUERY = {"stop_when_decided", "confidence", "member_labels"}


class Prediction(BaseModel):
    """The bag's answer about one image."""

    label: str
    """Name of the most probable class."""
    probabilities: dict[str, float]
    """Of each class, by the vote and the temperature."""
    votes: dict[str, int]
    """How many members chose each class."""
    predictive_entropy: float
    """All uncertainty: entropy of ``probabilities``, in nats."""
    mutual_information: float
    """Disagreement: mutual information of label and member, in nats, in the members' own softmaxes,
    which the temperature has not touched: compare it between images, not with the entropy."""
    members_used: int
    """Members that were asked."""
    members: int
    """Members of the bag."""
    member_labels: list[str] = Field(default_factory=list)
    """Each asked member's class, in voting order, where ``member_labels`` was asked for."""
    model_version: str
    """Fingerprint of the evaluation that chose the bag."""


def add_predict(api: FastAPI, service: Service) -> None:
    """Add the route."""
    refusal = {"description": "What was expected, and what came"}

    @api.post(
        "/predict",
        tags=["people"],
        summary="Ask the bag about one image",
        responses={
            200: {"model": Prediction},
            **dict.fromkeys((400, 401, 413, 415, 422, 503), refusal),
        },
        openapi_extra={"requestBody": _body()},
    )
    async def predict(
        request: Request,
        stop_when_decided: Annotated[
            bool | None, Query(description="Stop when the members left cannot change the label.")
        ] = None,
        confidence: Annotated[
            float | None,
            Query(gt=0, le=1, description="Stop when the label has this probability."),
        ] = None,
        member_labels: Annotated[bool, Query(description="Add each asked member's class.")] = False,
    ) -> JSONResponse:
        if unknown := sorted(set(request.query_params) - _QUERY):
            raise Refusal(422, f"?{unknown[0][:64]}: expected one of {', '.join(sorted(_QUERY))}")
        card = service.card()
        stop = stop_of(stop_when_decided, confidence, service.settings.stop)
        pixels = await _pixels(request, card, service.settings.max_image_pixels)
        answers = await service.ask(card, Question(pixels[None], stop))
        return JSONResponse(_prediction(card, answers, member_labels))


async def _pixels(request: Request, card: Card, max_pixels: int) -> NDArray[np.uint8]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = parse_object(await request.body())
        if set(body) != {"pixels"}:
            keys = ", ".join(sorted(body)[:5])[:64] or "no key"
            raise Refusal(422, f"expected an object with pixels and nothing else, got {keys}")
        return pixels_of_json(body["pixels"], card)
    if kind == "multipart/form-data":
        return pixels_of(await _upload(request), card, max_pixels)
    if kind in MEDIA_TYPES:
        return pixels_of(await request.body(), card, max_pixels)
    raise Refusal(
        415,
        f"Content-Type: expected {', '.join(MEDIA_TYPES)}, multipart/form-data with a file, or "
        f"application/json, got {kind[:64] or 'none'}",
    )


async def _upload(request: Request) -> bytes:
    """The one file of a form."""
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            uploads = [value for value in form.values() if isinstance(value, UploadFile)]
            if not uploads:
                raise Refusal(422, "expected one file in the form, got none")
            return await uploads[0].read()
    except HTTPException as error:
        raise Refusal(400, f"expected a form with one file, got: {error.detail}") from None


def _prediction(card: Card, answers: Answers, member_labels: bool) -> dict[str, Any]:
    names = card.class_names
    fields: dict[str, Any] = {
        "label": names[int(answers.labels_B[0])],
        "probabilities": dict(zip(names, answers.probs_BC[0].tolist(), strict=True)),
        "votes": dict(zip(names, answers.votes_BC[0].tolist(), strict=True)),
        "predictive_entropy": float(answers.entropy_B[0]),
        "mutual_information": float(answers.information_B[0]),
        "members_used": int(answers.used_B[0]),
        "members": len(card.members),
        "model_version": card.model_version,
    }
    if member_labels:
        fields["member_labels"] = [names[c] for c in answers.choices_BE[0].tolist() if c >= 0]
    return fields


def _body() -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    pixels = {"type": "array", "items": {"type": "array", "items": {}}}
    return {
        "required": True,
        "content": {
            **{kind: {"schema": file} for kind in MEDIA_TYPES},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": file},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["pixels"],
                    "properties": {"pixels": pixels},
                    "additionalProperties": False,
                }
            },
        },
    }
