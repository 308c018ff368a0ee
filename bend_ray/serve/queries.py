"""What clients send as JSON, turned into pixels, or into a refusal that says what was expected."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bend_ray.export.card import Card
from bend_ray.serve.refusals import Refusal
from bend_ray.serve.settings import text_bytes
from bend_ray.serve.voting import Stop

MAX_DEPTH = 32


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


def parse_json(content: bytes) -> Any:
    """The value of a JSON text of moderate depth.

    Raises:
        Refusal: it is none.
    """
    try:
        value = json.loads(content, parse_constant=_no_constant)
    except RecursionError:
        raise Refusal(400, f"expected JSON of at most {MAX_DEPTH} levels, got more") from None
    except ValueError as error:
        # Also UnicodeDecodeError, and an integer of too many digits.
        reason = str(error).partition("\n")[0][:200]
        raise Refusal(400, f"expected JSON, got what does not parse: {reason}") from None
    _check_depth(value)
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for holder in level
            if isinstance(holder, list | dict)
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, list | dict)
        ]
        if not level:
            return
    raise Refusal(400, f"expected JSON of at most {MAX_DEPTH} levels, got more")


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
    value = parse_json(content)
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
    """Nested lists as an array of whole numbers.

    Raises:
        Refusal: ragged lists, or anything but whole numbers in them.
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
    return whole(array, where)


def whole(array: NDArray[Any], where: str) -> NDArray[Any]:
    """The array itself, if its numbers are whole.

    Raises:
        Refusal: they are not, or are no numbers.
    """
    is_whole = array.dtype.kind == "f" and np.array_equal(array, np.trunc(array))
    if array.size and not is_whole and array.dtype.kind not in "iu":
        raise Refusal(422, f"{where}: expected whole numbers, got others")
    return array


def _holds_truth(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_truth, value))
    return isinstance(value, bool)


def in_range(array: NDArray[Any], where: str, card: Card) -> NDArray[np.uint8]:
    """Pixels as uint8, all on the scale of the training images.

    Raises:
        Refusal: one that is not.
    """
    brightest = card.decoding.pixel_max
    if array.size and not (array.min() >= 0 and array.max() <= brightest):
        raise Refusal(
            422,
            f"{where}: expected pixels from 0 to {brightest}, as the training images have "
            f"them, got {array.min()} to {array.max()}",
        )
    return np.ascontiguousarray(array, dtype=np.uint8)


def stop_of(decided: Any, confidence: Any, default: Stop) -> Stop:
    """When to stop, as a request says, or as the deployment does.

    Args:
        decided: true or false; None: not said.
        confidence: above 0 and at most 1; None: not said.
        default: the deployment's.

    Raises:
        Refusal: something else.
    """
    if decided is not None and not isinstance(decided, bool):
        raise Refusal(422, f"stop_when_decided: expected true or false, got {_kind(decided)}")
    if confidence is not None:
        number = isinstance(confidence, int | float) and not isinstance(confidence, bool)
        if not number or not math.isfinite(confidence) or not 0 < confidence <= 1:
            raise Refusal(422, "confidence: expected a number above 0 and at most 1")
        confidence = float(confidence)
    if decided is None and confidence is None:
        return default
    return Stop(bool(decided), confidence)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")
