"""``POST /predict``: one image, as a file or as pixels, and what the bag thinks of it."""

from __future__ import annotations

import io
from typing import Annotated, Any

import numpy as np
import python_multipart
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from bend_ray.export.card import Card
from bend_ray.serve.answering import MIDDLE, SMALL, Answering
from bend_ray.serve.pictures import MEDIA_TYPES, most_pixels, notes_on, pixels_of
from bend_ray.serve.queries import Question, check_size, parse_object, pixels_of_json, stop_of
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.voting import Answers

_QUERY = {"stop_when_decided", "confidence", "member_labels", "seen"}


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
    notes: list[str] = Field(default_factory=list)
    """What of the image is unlike the training images: an answer about it may mean little."""
    pixels: list[list[list[int]]] | None = None
    """What the members saw, by channel, row and column, where ``seen`` was asked for."""
    model_version: str
    """Fingerprint of the evaluation that chose the bag."""


def add_predict(api: FastAPI, service: Answering) -> None:
    """Add the route."""
    refusal = {"description": "What was expected, and what came"}

    @api.post(
        "/predict",
        tags=["people"],
        summary="Ask the bag about one image",
        responses={
            200: {"model": Prediction},
            **dict.fromkeys((400, 401, 408, 413, 415, 422, 503), refusal),
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
        seen: Annotated[bool, Query(description="Add the pixels that the members saw.")] = False,
    ) -> JSONResponse:
        if unknown := sorted(set(request.query_params) - _QUERY):
            raise Refusal(422, f"?{unknown[0][:64]}: expected one of {', '.join(sorted(_QUERY))}")
        card = service.card()
        stop = stop_of(stop_when_decided, confidence, service.settings.stop)
        content_type = request.headers.get("content-type", "")
        pixels = await _pixels(content_type, await request.body(), card, service)
        answers = await service.ask(card, Question(pixels[None], stop))
        fields = prediction(card, answers, 0)
        if member_labels:
            chosen = [c for c in answers.choices_BE[0].tolist() if c >= 0]
            fields["member_labels"] = [card.class_names[c] for c in chosen]
        if seen:
            fields["pixels"] = pixels.tolist()
        return JSONResponse(fields | {"notes": notes_on(pixels, card)})


async def _pixels(
    content_type: str, content: bytes, card: Card, service: Answering
) -> NDArray[np.uint8]:
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        check_size(content, card, service.settings.max_batch_size)
        return await service.read(len(content), _of_json, content, card)
    if kind == "multipart/form-data":
        content = await service.read(len(content), _upload, content_type, content)
    elif kind not in MEDIA_TYPES:
        raise Refusal(
            415,
            f"Content-Type: expected {', '.join(MEDIA_TYPES)}, multipart/form-data with a file, "
            f"or application/json, got {kind[:64] or 'none'}",
        )
    most = most_pixels(card, service.settings.max_image_pixels)
    # Even a header may take long to read.
    cost = max(SMALL + 1, len(content))
    pixels = await service.read(cost, pixels_of, content, card, most, MIDDLE)
    if pixels is None:
        pixels = await service.read(most + MIDDLE, pixels_of, content, card, most)
    assert pixels is not None
    return pixels


def _of_json(content: bytes, card: Card) -> NDArray[np.uint8]:
    body = parse_object(content)
    if set(body) != {"pixels"}:
        keys = ", ".join(sorted(body)[:5])[:64] or "no key"
        raise Refusal(422, f"expected an object with pixels and nothing else, got {keys}")
    return pixels_of_json(body["pixels"], card)


def _upload(content_type: str, content: bytes) -> bytes:
    """The one file of a form."""
    files: list[bytes] = []

    def take(file: python_multipart.multipart.File) -> None:
        file.file_object.seek(0)
        files.append(file.file_object.read())
        file.close()

    headers = {"Content-Type": content_type.encode("latin-1")}
    try:
        python_multipart.parse_form(headers, io.BytesIO(content), lambda field: None, take)
    except Exception as error:  # of its own, and whatever a charset makes Python raise
        raise Refusal(400, f"expected a form with one file, got: {str(error)[:200]}") from None
    if len(files) != 1:
        raise Refusal(422, f"expected one file in the form, got {len(files) or 'none'}")
    return files[0]


def prediction(card: Card, answers: Answers, row: int) -> dict[str, Any]:
    """One image's answer, as people are told it."""
    names = card.class_names
    return {
        "label": names[int(answers.labels_B[row])],
        "probabilities": dict(zip(names, answers.probs_BC[row].tolist(), strict=True)),
        "votes": dict(zip(names, answers.votes_BC[row].tolist(), strict=True)),
        "predictive_entropy": float(answers.entropy_B[row]),
        "mutual_information": float(answers.information_B[row]),
        "members_used": int(answers.used_B[row]),
        "members": len(card.members),
        "model_version": card.model_version,
    }


def _body() -> dict[str, Any]:
    file = {"type": "string", "format": "binary"}
    pixels = {"type": "array", "items": {"type": "array", "items": {}}}
    form = {"type": "object", "required": ["file"], "properties": {"file": file}}
    numbers = {"type": "object", "required": ["pixels"], "properties": {"pixels": pixels}}
    kinds = {
        **dict.fromkeys(MEDIA_TYPES, file),
        "multipart/form-data": form,
        "application/json": numbers | {"additionalProperties": False},
    }
    return {"required": True, "content": {kind: {"schema": of} for kind, of in kinds.items()}}
