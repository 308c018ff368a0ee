"""Encoded images become pixels, once, or an error that says which image and why.

Images are untrusted: only formats whose decoders are part of Pillow itself are opened, and an
image that claims more pixels than ``MAX_PIXELS`` is refused before it is decoded.

Shape letters: N images of a source, M of them wanted, C channels, H rows, W columns.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bend_ray.errors import DataError

Mode = Literal["grey", "rgb"]
OpenImage = Callable[[], Image.Image]
ReadRows = Callable[[NDArray[np.int64]], Iterator[tuple[str, OpenImage]]]

# Not EPS, for one, which Pillow has Ghostscript interpret.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 2**26
"""An image of 8192 x 8192; Pillow itself only warns, and at more."""

_PILLOW = {"grey": "L", "rgb": "RGB"}
_MODES: dict[str, Mode] = {"1": "grey", "L": "grey", "LA": "grey", "RGB": "rgb", "RGBA": "rgb"}
_MODES |= {"P": "rgb", "PA": "rgb", "RGBX": "rgb", "CMYK": "rgb", "YCbCr": "rgb"}


@dataclass(frozen=True)
class Source:
    """Labelled images that are not decoded yet.

    Attributes:
        labels_N: the class of each.
        class_names: one a class.
        read: ascending rows to (where the image is, in words; what opens it) for each.
    """

    labels_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    read: ReadRows


@dataclass(frozen=True)
class Look:
    """What images of one data set have in common.

    Attributes:
        image_size: height and width all images are brought to; None to take them as they are.
        mode: what all images are converted to; None to take them as they are.
        shape: ``(C, H, W)`` that earlier images had, where there were any.
    """

    image_size: int | None = None
    mode: Mode | None = None
    shape: tuple[int, ...] | None = None


def open_bytes(content: bytes) -> Image.Image:
    """The image encoded in ``content``; only its header is read."""
    return Image.open(io.BytesIO(content), formats=FORMATS)


def decode(source: Source, rows_M: NDArray[np.int64], look: Look) -> NDArray[np.uint8]:
    """Pixels ``(M, C, H, W)`` of the wanted images, in the order of ``rows_M``.

    Raises:
        DataError: an image that cannot be decoded, is too large, or is not like the first.
    """
    order_M = np.argsort(rows_M)
    pixels_MCHW = np.empty((0, 0, 0, 0), dtype=np.uint8)
    shape, first = look.shape, "the training images"
    for slot, (where, open_image) in zip(order_M, source.read(rows_M[order_M]), strict=True):
        pixels_CHW = _pixels(where, open_image, look)
        shape, first = (pixels_CHW.shape, where) if shape is None else (shape, first)
        if pixels_CHW.shape != shape:
            raise _unlike(shape, first, pixels_CHW.shape, where)
        if not len(pixels_MCHW):
            pixels_MCHW = np.empty((len(rows_M), *shape), dtype=np.uint8)
        pixels_MCHW[slot] = pixels_CHW
    return pixels_MCHW


def _pixels(where: str, open_image: OpenImage, look: Look) -> NDArray[np.uint8]:
    """One image as ``(C, H, W)``."""
    image = _decoded(where, open_image)
    found = _MODES.get(image.mode)
    if found is None:
        raise DataError(
            f"dataset: expected grey or colour images of 8 bits, {where} has Pillow's mode "
            f"{image.mode}; convert it, for example to PNG of 8 bits"
        )
    image = image.convert(_PILLOW[look.mode or found])
    if look.image_size is not None and image.size != (look.image_size, look.image_size):
        size = (look.image_size, look.image_size)
        # The largest centred square, then one antialiased resize.
        image = ImageOps.fit(image, size, method=Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _decoded(where: str, open_image: OpenImage) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = open_image()
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(
                f"dataset: expected images of at most {MAX_PIXELS:,} pixels, {where} has "
                f"{width} x {height}; shrink or remove it"
            )
        image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            f"dataset: expected images of at most {MAX_PIXELS:,} pixels, {where} has more; "
            "shrink or remove it"
        ) from None
    except DataError:
        raise
    except Exception as error:
        # Pillow raises whatever the parser of a broken image raises: SyntaxError, struct.error.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"dataset: cannot decode {where}: {reason}; expected {', '.join(FORMATS)}; "
            "replace or remove the image"
        ) from None
    return image


def _unlike(expected: tuple[int, ...], first: str, got: tuple[int, ...], where: str) -> DataError:
    channels = {1: "grey", 3: "colour"}
    if expected[0] != got[0]:
        return DataError(
            f"dataset: expected images of one mode, got {channels[expected[0]]} ({first}) and "
            f"{channels[got[0]]} ({where}); set dataset.mode to grey or rgb to convert them"
        )
    return DataError(
        f"dataset: expected images of one size, got {expected[2]} x {expected[1]} ({first}) and "
        f"{got[2]} x {got[1]} ({where}); set dataset.image_size to resize them"
    )


def checked_labels(
    labels_N: NDArray[np.int64], num_classes: int, where: Callable[[int], str]
) -> NDArray[np.int64]:
    """The labels, all in range.

    Args:
        labels_N: of a source.
        num_classes: they must be below.
        where: a row in words.

    Raises:
        DataError: the first that is not.
    """
    wrong = np.flatnonzero((labels_N < 0) | (labels_N >= num_classes))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"dataset: expected labels from 0 to {num_classes - 1}, {where(row)} has "
            f"{labels_N[row]}; remove what is not labelled, or name all classes"
        )
    return labels_N
