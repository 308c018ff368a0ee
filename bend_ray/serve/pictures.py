"""Pictures of strangers, made what the bag was trained on, by the way of the training itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bend_ray.data.decoding import FORMATS, Look, UnreadableError
from bend_ray.data.decoding import pixels_of as decoded
from bend_ray.export.card import Card
from bend_ray.serve.refusals import Refusal

MEDIA_TYPES = (*(f"image/{name.lower()}" for name in FORMATS), "image/x-portable-anymap")
"""Content types of pictures; what a file is, its first bytes say."""


def pixels_of(content: bytes, card: Card, max_pixels: int) -> NDArray[np.uint8]:
    """The pixels ``(channels, height, width)`` of an encoded picture.

    Args:
        content: of a picture file.
        card: what images the bag expects.
        max_pixels: a larger picture is refused by its header alone.

    Raises:
        Refusal: it is not such a file, or too large.
    """
    channels, height, width = card.image_shape
    if channels not in (1, 3):
        raise Refusal(415, f"the model takes {channels} channels, which no picture file has")
    look = Look((width, height), "grey" if channels == 1 else "rgb", card.decoding)
    try:
        return decoded(content, look, max_pixels)
    except UnreadableError as error:
        raise Refusal(413 if error.too_large else 415, f"picture: {error}") from None
