"""Pictures of strangers, made what the bag was trained on, by the way of the training itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import PngImagePlugin

from bend_ray.data.columns import iso
from bend_ray.data.decoding import FORMATS, MAX_PIXELS, Look, UnreadableError, open_image
from bend_ray.data.decoding import pixels_of as decoded
from bend_ray.errors import BendError, DataError
from bend_ray.export.card import IMAGES, Card, Input
from bend_ray.serve.bag import Bag
from bend_ray.serve.queries import Refusal, inputs_of_csv
from bend_ray.serve.settings import Stop
from bend_ray.storage.masking import printable

MEDIA_TYPES = (*(f"image/{name.lower()}" for name in FORMATS), "image/x-portable-anymap")
"""Content types of pictures; what a file is, its first bytes say."""
LONGEST_SIDE = 8192
# Texts in a PNG, which nobody reads, may be a hundred times as long as what is sent.
PngImagePlugin.MAX_TEXT_MEMORY = 2**20


def look_of(card: Card) -> Look:
    """How a picture becomes what the bag was trained on."""
    if card.decoding is None:
        takes = "CSV, or JSON" if card.columns else "JSON"
        raise Refusal(415, f"the model takes no pictures; send {takes}")
    channels, height, width = card.image_shape
    if channels not in (1, 3):
        raise Refusal(415, f"the model takes {channels} channels, which no picture file has")
    return Look((width, height), "grey" if channels == 1 else "rgb", card.decoding)


def pixels_of(
    content: bytes, card: Card, max_pixels: int, at_once: int | None = None
) -> NDArray[np.uint8] | None:
    """The pixels ``(channels, height, width)`` of a picture file.

    One of more than ``max_pixels`` is refused by its header alone. One of more than ``at_once`` is
    not decoded, and None returned.
    """
    look = look_of(card)
    try:
        width, height = open_image(content, max_pixels).size
        if max(width, height) > max(LONGEST_SIDE, 16 * max(card.image_shape)):
            raise UnreadableError(
                f"expected sides of at most {LONGEST_SIDE}, got {width} x {height}", too_large=True
            )
        if at_once is not None and width * height > at_once:
            return None
        return decoded(content, look, max_pixels)
    except UnreadableError as error:
        raise Refusal(413 if error.too_large else 415, f"picture: {error}") from None


def notes_on(inputs: Mapping[str, NDArray[Any]], card: Card) -> list[str]:
    """What of an example is unlike the training part, so that an answer may mean little."""
    if card.decoding is not None:
        return _on_pixels(inputs[IMAGES], card, card.inputs[IMAGES])
    notes = []
    for name, own in card.inputs.items():
        values, column = np.asarray(inputs[name]), own.column
        if column and (values.item() == "" or values.item() != values.item()):
            if not column.missing:
                notes.append(f"{name}: no training example lacked it")
        elif column and column.kind == "category":
            if values.item() not in column.levels:
                notes.append(f"{name}: no training example had {printable(values.item())}")
        elif values.size and ((values < own.low) | (values > own.high)).any():
            show = iso if column and column.kind == "date" else "{:g}".format
            span = f"{show(own.low)} to {show(own.high)}"
            notes.append(f"{name}: some numbers are outside of the training part's, {span}")
    return notes


def _on_pixels(pixels_CHW: NDArray[Any], card: Card, own: Input) -> list[str]:
    assert card.decoding is not None
    brightest, mean = card.decoding.pixel_max, float(pixels_CHW.mean())
    spread = float(pixels_CHW.std())
    if spread == 0:
        return ["every pixel is the same"]
    notes, stds, means = [], own.std or (0.0,), own.mean or (brightest / 2,)
    usual = math.sqrt(sum(std**2 for std in stds) / len(stds))
    if spread < usual / 4:
        notes.append("the contrast is far below that of the training images")
    # How far the mean may be from the usual one before its opposite is the nearer of the two.
    expected = sum(means) / len(means)
    if abs(brightest - mean - expected) < abs(mean - expected) / 2:
        kind = "light on dark" if expected < brightest / 2 else "dark on light"
        notes.append(f"it looks inverted: the training images are {kind}")
    return notes


def lines(export: str | Path, paths: Sequence[Path]) -> Iterator[str]:
    """What an exported bag says about picture files, or rows of CSV; DataError for none."""
    bag = Bag.load(export)
    for path in paths:
        is_table = path.suffix.lower() == ".csv" and bool(bag.card.columns)
        try:
            content = path.read_bytes()
            if is_table:
                inputs = inputs_of_csv(content, bag.card)
            else:
                pixels = pixels_of(content, bag.card, MAX_PIXELS)
                assert pixels is not None
                inputs = {IMAGES: pixels[None]}
        except OSError as error:
            raise DataError(f"{path}: cannot read it: {error.strerror}") from None
        except BendError as error:
            raise DataError(f"{path}: {error}") from None
        for row in range(len(next(iter(inputs.values())))):
            own = {n: v[row : row + 1] for n, v in inputs.items()}
            said = {n: v[0] for n, v in bag.answer(own, [Stop()]).items()}
            notes = notes_on({n: v[0] for n, v in own.items()}, bag.card)
            where = f"{path} row {row + 1}" if is_table else f"{path}"
            yield (
                f"{where}: {bag.card.task.line(said, bag.card.class_names)}, entropy "
                f"{said['entropy']:.3f}, disagreement {said['mutual_information']:.3f} nats"
                + "".join(f"; {note}" for note in notes)
            )
