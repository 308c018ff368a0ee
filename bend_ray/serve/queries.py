"""What clients send, turned into questions, or into a refusal that says what was expected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from pydantic_core import from_json

from bend_ray.artifacts.manifest import first_problem
from bend_ray.export.card import Card
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.settings import text_bytes
from bend_ray.serve.voting import Stop
from bend_ray.spec import Spec

Given = TypeVar("Given", bound=Spec)


@dataclass(frozen=True)
class Question:
    """Images to be answered, checked against the bag they are for.

    Attributes:
        pixels_BCHW: raw, uint8.
        stop: when the vote about them may stop.
        keep_members: whether every member's softmax is wanted.
    """

    pixels_BCHW: NDArray[np.uint8]
    stop: Stop
    keep_members: bool = False

    def __len__(self) -> int:
        return len(self.pixels_BCHW)


class Stops(Spec):
    """When to stop, as a request says it."""

    stop_when_decided: bool | None = None
    confidence: Annotated[float, Field(gt=0, le=1)] | None = None

    def or_else(self, default: Stop) -> Stop:
        """What it says, or what the deployment does."""
        if self.stop_when_decided is None and self.confidence is None:
            return default
        return Stop(bool(self.stop_when_decided), self.confidence)


def given(what: type[Given], value: Mapping[str, Any], status: int) -> Given:
    """What a client gives, if it is what is expected.

    Raises:
        Refusal: with ``status``, it is not.
    """
    try:
        return what.model_validate(value)
    except ValidationError as error:
        known = ", ".join(what.model_fields)
        told = f"{first_problem(error)[:300]}; expected of {known}"
    raise Refusal(status, told)


def check_size(content: bytes, card: Card, images: int) -> None:
    """Refuse more bytes than so many images of the bag's can need.

    Raises:
        Refusal: it is more.
    """
    if len(content) > (most := text_bytes(card, images)):
        raise Refusal(413, f"expected a body of at most {most} bytes, got {len(content)}")


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object of a text.

    Raises:
        Refusal: it is none.
    """
    try:
        value = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"expected JSON, got what does not parse: {error}") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"expected a JSON object, got {_kind(value)}")
    return value


def pixels_of_json(value: Any, card: Card) -> NDArray[np.uint8]:
    """One image ``(channels, height, width)`` from nested lists of whole numbers.

    A grey image may leave out its one channel.

    Raises:
        Refusal: another shape, or other values.
    """
    array = whole_numbers(value, "pixels")
    if card.image_shape[0] == 1 and array.ndim == 2:
        array = array[None]
    if array.shape != card.image_shape:
        raise Refusal(
            422,
            f"pixels: expected shape {list(card.image_shape)} (channels, height, width), got "
            f"{list(array.shape)}",
        )
    return in_range(array, "pixels", card)


def whole_numbers(value: Any, where: str) -> NDArray[Any]:
    """Nested lists as an array.

    Raises:
        Refusal: they are ragged, or hold anything but numbers.
    """
    if not isinstance(value, list):
        raise Refusal(422, f"{where}: expected a list of whole numbers, got {_kind(value)}")
    try:
        array = np.array(value)
    except (ValueError, OverflowError, RecursionError):
        raise Refusal(422, f"{where}: expected lists of equal lengths, got ragged ones") from None
    if array.size and _holds_truth(value):
        # Among numbers, numpy makes them numbers.
        raise Refusal(422, f"{where}: expected whole numbers, got true or false")
    return array


def _holds_truth(value: Any) -> bool:
    return any(map(_holds_truth, value)) if isinstance(value, list) else isinstance(value, bool)


def in_range(array: NDArray[Any], where: str, card: Card) -> NDArray[np.uint8]:
    """Pixels as uint8: whole numbers on the scale of the training images.

    Raises:
        Refusal: one that is not.
    """
    is_whole = array.dtype.kind == "f" and np.array_equal(array, np.trunc(array))
    if array.size and not is_whole and array.dtype.kind not in "iu":
        raise Refusal(422, f"{where}: expected whole numbers, got others")
    brightest = card.decoding.pixel_max
    if array.size and not (array.min() >= 0 and array.max() <= brightest):
        raise Refusal(
            422,
            f"{where}: expected pixels from 0 to {brightest}, as the training images have "
            f"them, got {array.min()} to {array.max()}",
        )
    return np.ascontiguousarray(array, dtype=np.uint8)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")
