"""An image file becomes pixels in one way, whoever reads it, or an error that says why not.

Training, evaluation and serving call ``pixels_of``; what they may differ in stands in a
``Decoding``, which an exported bag has in its card. Images are untrusted: only formats whose
decoders are part of Pillow itself are opened, and one that claims more pixels than it may is
refused before it is decoded.

Shape letters: M images of a source that are wanted, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bend_ray.data.examples import PLAIN, Decoding
from bend_ray.data.sources import Source
from bend_ray.errors import DataError
from bend_ray.process.lazy import PIL

Mode = Literal["grey", "rgb"]

# Not EPS, for one, which Pillow has Ghostscript interpret.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 2**26
"""An image of 8192 x 8192; Pillow itself only warns, and at more."""

_PILLOW = {"grey": "L", "rgb": "RGB"}
_MODES: dict[str, Mode] = {
    **dict.fromkeys(("1", "L", "LA"), "grey"),
    **dict.fromkeys(("RGB", "RGBA", "P", "PA", "RGBX", "CMYK", "YCbCr"), "rgb"),
}
# Of other formats nobody knows where in the 16 bits the brightness stands.
_DEEP = {("PNG", "I;16"), ("PNG", "I"), ("PPM", "I")}
_ORIENTATION = 274
"""Of EXIF; from 5 on an image lies on its side."""


class UnreadableError(ValueError):
    """An image that cannot be used; the message is one line and names no file.

    ``too_large``: it has more pixels than it may.
    """

    def __init__(self, message: str, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


@dataclass(frozen=True)
class Look:
    """What the pixels of one data set have in common.

    Images are brought to ``size`` (width, height) and ``mode``, None to take them as they are;
    ``shape`` is the ``(C, H, W)`` that earlier ones had, where there were any.
    """

    size: tuple[int, int] | None = None
    mode: Mode | None = None
    decoding: Decoding = PLAIN
    shape: tuple[int, ...] | None = None


def pixels_of(
    encoded: bytes | PIL.Image.Image, look: Look, max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """The pixels ``(C, H, W)`` of an image, as a person sees it.

    In this order: turned as its EXIF orientation says; 16 bits of grey cut to the upper 8;
    transparency laid on the background; converted to grey (ITU-R 601 luma) or colour; the largest
    centred part of the wanted proportions resized; scaled to ``pixel_max``. Of an animation it is
    the first frame; colour profiles are not applied.

    UnreadableError where it cannot be decoded, has another depth, or, by its header, more than
    ``max_pixels``, None for ``MAX_PIXELS``.
    """
    image = open_image(encoded, max_pixels or MAX_PIXELS)
    with _parsing(max_pixels or MAX_PIXELS):
        image.load()
    channels = _channels(image, look.mode)
    # EXIF that does not parse says nothing.
    with suppress(Exception):
        image = PIL.ImageOps.exif_transpose(image)
    image = _opaque(image, look.decoding.background).convert(_PILLOW[channels])
    if look.size is not None and image.size != look.size:
        shrinks = image.width >= look.size[0] and image.height >= look.size[1]
        box = look.decoding.resampling == "box" and shrinks
        resampling = PIL.Image.Resampling.BOX if box else PIL.Image.Resampling.BILINEAR
        image = PIL.ImageOps.fit(image, look.size, method=resampling)
    pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
    if look.decoding.pixel_max != 255:
        pixels = np.rint(pixels * (look.decoding.pixel_max / 255)).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _channels(image: PIL.Image.Image, wanted: Mode | None) -> Mode:
    is_deep = (image.format, image.mode) in _DEEP
    if (found := "grey" if is_deep else _MODES.get(image.mode)) is None:
        raise UnreadableError(
            f"expected grey or colour of 8 bits, got Pillow's mode {image.mode}; convert it, for "
            "example to PNG of 8 bits"
        )
    return wanted or found


def _opaque(image: PIL.Image.Image, background: str) -> PIL.Image.Image:
    if image.mode.startswith("I"):
        # 16 bits of grey as 8, with the one value that may stand for transparent.
        values, clear = np.asarray(image), image.info.get("transparency")
        image = PIL.Image.fromarray((values >> 8).astype(np.uint8))
        if clear is not None:
            opaque = np.where(values == clear, 0, 255).astype(np.uint8)
            image = PIL.Image.merge("LA", [image, PIL.Image.fromarray(opaque)])
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, background), image)
    return image


def open_image(encoded: bytes | PIL.Image.Image, max_pixels: int) -> PIL.Image.Image:
    """An image of which only the header is read; UnreadableError where it is none, or too large."""
    if isinstance(encoded, PIL.Image.Image):
        return encoded
    with _parsing(max_pixels), warnings.catch_warnings():
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        image = PIL.Image.open(io.BytesIO(encoded), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise _too_large(max_pixels, f"{image.width} x {image.height}")
    return image


@contextmanager
def _parsing(max_pixels: int) -> Iterator[None]:
    try:
        yield
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError):
        raise _too_large(max_pixels, "more") from None
    except Exception as error:
        # Pillow raises whatever the parser of a broken image raises: SyntaxError, struct.error.
        reason = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, PIL.UnidentifiedImageError):  # it quotes a buffer's address
            reason = "something else"
        raise UnreadableError(f"expected an image as {', '.join(FORMATS)}, got: {reason}") from None


def _too_large(max_pixels: int, got: str) -> UnreadableError:
    return UnreadableError(f"expected at most {max_pixels:,} pixels, got {got}", too_large=True)


def decode(
    source: Source, rows_M: NDArray[np.int64], look: Look
) -> tuple[NDArray[np.uint8], list[bytes]]:
    """The wanted images of a source, in the order of ``rows_M``.

    Returns pixels ``(M, C, H, W)``, and what tells one image file from another. DataError where one
    cannot be decoded, or is not like the first.
    """
    order_M = np.argsort(rows_M)
    pixels_MCHW = np.empty((0, 0, 0, 0), dtype=np.uint8)
    digests = [b""] * len(rows_M)
    shape, first = look.shape, "the training images"
    for slot, (where, encoded) in zip(order_M, source.read(rows_M[order_M]), strict=True):
        with _named(where):
            pixels_CHW = pixels_of(encoded, look)
        shape, first = (pixels_CHW.shape, where) if shape is None else (shape, first)
        _check_alike(shape, first, pixels_CHW.shape, where)
        if not len(pixels_MCHW):
            pixels_MCHW = np.empty((len(rows_M), *shape), dtype=np.uint8)
        pixels_MCHW[slot], digests[slot] = pixels_CHW, _digest(encoded)
    return pixels_MCHW, digests


def survey(source: Source, look: Look) -> list[bytes]:
    """What tells each image file of a source from others; of images only headers are decoded.

    DataError where one is none, or not like those that were decoded.
    """
    digests = []
    assert look.shape is not None
    for where, encoded in source.read(np.arange(len(source.labels_N))):
        with _named(where):
            image = open_image(encoded, MAX_PIXELS)
            channels = 1 if _channels(image, look.mode) == "grey" else 3
        width, height = look.size or image.size
        # Asked only where it matters: a PNG is decoded to tell it. Of a TIFF Pillow has heeded it.
        if look.size is None and width != height and image.format != "TIFF":
            with suppress(Exception):
                if int(image.getexif().get(_ORIENTATION, 1)) in range(5, 9):
                    width, height = height, width
        _check_alike(look.shape, "the training images", (channels, height, width), where)
        digests.append(_digest(encoded))
    return digests


def _digest(encoded: bytes | PIL.Image.Image) -> bytes:
    content = encoded if isinstance(encoded, bytes) else encoded.tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


@contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except UnreadableError as error:
        advice = "shrink or remove it" if error.too_large else "replace or remove it"
        raise DataError(f"dataset: cannot use {where}: {error}; {advice}") from None


def _check_alike(expected: tuple[int, ...], first: str, got: tuple[int, ...], where: str) -> None:
    if expected == got:
        return
    kind, knob = "size", "dataset.image_size to resize them"
    words = [f"{width} x {height}" for _, height, width in (expected, got)]
    if expected[0] != got[0]:
        kind, knob = "mode", "dataset.mode to grey or rgb to convert them"
        words = [{1: "grey", 3: "colour"}[each[0]] for each in (expected, got)]
    raise DataError(
        f"dataset: expected images of one {kind}, got {words[0]} ({first}) and {words[1]} "
        f"({where}); set {knob}"
    )
