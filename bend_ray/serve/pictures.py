"""Pictures of strangers: checked before they are decoded, and made what the bag was trained on."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bend_ray.export.card import Card
from bend_ray.serve.refusals import Refusal

FORMATS = ("PNG", "JPEG")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def pixels_of(content: bytes, card: Card, max_pixels: int) -> NDArray[np.uint8]:
    """The pixels ``(channels, height, width)`` of an encoded picture.

    The largest centred part of the right proportions, resized; transparent parts are black; and
    its brightness on the scale of the training images.

    Args:
        content: of a PNG or a JPEG file.
        card: what images the bag expects.
        max_pixels: a larger picture is refused by its header alone.

    Raises:
        Refusal: it is not such a file, or too large.
    """
    image = _decoded(content, max_pixels)
    channels, height, width = card.image_shape
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), method=_filter(image, width, height))
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if pixels.shape[0] != channels:
        raise Refusal(415, f"the model takes {channels} channels, which no picture file has")
    if card.pixel_max == 255:
        return np.ascontiguousarray(pixels)
    return np.rint(pixels * (card.pixel_max / 255)).astype(np.uint8)


def _filter(image: Image.Image, width: int, height: int) -> Image.Resampling:
    # Shrinking averages all pixels of an area, which is how small training images were made.
    shrinks = image.width >= width and image.height >= height
    return Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR


def _decoded(content: bytes, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise _too_large(max_pixels, f"{image.width} x {image.height}")
        if image.mode not in _MODES:
            raise Refusal(415, f"expected a picture of 8 bits a channel, got mode {image.mode}")
        image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_large(max_pixels, "far more") from None
    except Refusal:
        raise
    except Exception as error:
        # Pillow raises whatever the parser of a broken file raises: SyntaxError, struct.error.
        raise Refusal(
            415,
            f"expected a whole PNG or JPEG file, got one that Pillow cannot read: "
            f"{type(error).__name__}",
        ) from None
    return image


def _too_large(max_pixels: int, got: str) -> Refusal:
    return Refusal(413, f"expected a picture of at most {max_pixels} pixels, got {got}")
