"""One way from bytes to pixels: formats x modes x sizes x metadata, as training and serving see."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import write
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bend_ray.data.datasets import Digits, ImageFolder, ImageParquet
from bend_ray.data.decoding import Look, UnreadableError, pixels_of
from bend_ray.data.examples import Decoding, Parts
from bend_ray.ensemble.votes import SoftVote
from bend_ray.export.folder import guide
from bend_ray.serve import pictures

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
    "WEBP": ("L", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"),
    "PPM": ("1", "L", "RGB"),
}
EVERY = [(form, mode) for form, modes in MODES.items() for mode in modes]
SIZES = ((9, 9), (7, 12), (16, 10))
ORIENTATION = 0x0112


def picture(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth enough to be worth resizing, with half-transparent parts where a mode has them."""
    generator = np.random.default_rng(seed)
    shape = (size[1], size[0], 4)
    noise = generator.integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA")
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 2**16, shape[:2], dtype=np.uint16))
    return image.convert(mode) if mode in ("LA", "RGBA") else image.convert("RGB").convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def metadata(kind: str, form: str) -> dict[str, Any]:
    """What a phone (orientation, thumbnail data) or a drawing program (colour key, dpi) adds."""
    if kind == "phone" and form in ("JPEG", "PNG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        return {"exif": exif}
    if kind == "drawing" and form == "PNG":
        return {"dpi": (300, 300), "transparency": b"\x00\x80"}
    return {}


def learnt(tmp_path: Path, content: bytes, **options: Any) -> list[Parts]:
    """The same file as a row of Parquet and as a file of a folder."""
    rows = [(content, 0), (content, 1)] * 2
    train, test = write(tmp_path / "a.parquet", rows), write(tmp_path / "b.parquet", rows)
    for part, label, index in itertools.product(("train", "test"), "ab", "01"):
        path = tmp_path / "root" / part / label / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return [
        ImageParquet(train=train, test=test, num_validation=1, **options).load(),
        ImageFolder(root=str(tmp_path / "root"), num_validation=1, **options).load(),
    ]


def of_the_guide(card: Any) -> Callable[[Path], NDArray[np.uint8]]:
    """What an export's README tells to do, without us."""
    code = re.search(
        r"## An image file as input\n.*?```python\n(.*?)```",
        guide(card),
        re.DOTALL,
    )
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names["pixels_of"]  # type: ignore[no-any-return]


def card_of(dataset: Parts) -> Any:
    said = {"model_version": "v", "bend_ray": "0", "created": "", "temperature": 1.0}
    shape = dataset.input_shape
    return SimpleNamespace(
        **said,
        image_shape=shape,
        inputs={
            "images": SimpleNamespace(shape=shape, dtype="uint8", low=0, high=255, column=None)
        },
        onnx=None,
        decoding=dataset.decoding,
        task=dataset.task,
        columns={},
        class_names=dataset.class_names,
        members=[0],
        vote=SoftVote(),
        scores=None,
        architecture=SimpleNamespace(kind="other", model_dump_json=lambda: "{}"),
    )


@pytest.mark.parametrize("kind", ["plain", "phone", "drawing"])
@pytest.mark.parametrize(("form", "mode"), EVERY)
def test_training_evaluation_serving_and_the_guide_see_the_same_pixels(
    tmp_path: Path, form: str, mode: str, kind: str
) -> None:
    options = metadata(kind, form) if mode in ("L", "P", "RGB") or kind == "phone" else {}
    if mode != "P":
        options.pop("transparency", None)
    for size, image_size, channels in zip(SIZES, (None, 8, 12), ("grey", "rgb", None), strict=True):
        content = encoded(picture(mode, size), form, **options)
        for dataset in learnt(tmp_path, content, image_size=image_size, mode=channels):
            expected = dataset.train.inputs[0].numpy()
            np.testing.assert_array_equal(dataset.test.inputs[0].numpy(), expected)
            card = card_of(dataset)
            np.testing.assert_array_equal(pictures.pixels_of(content, card, 10**6), expected)
            path = tmp_path / f"asked.{form.lower()}"
            path.write_bytes(content)
            np.testing.assert_array_equal(of_the_guide(card)(path), expected)


def seen(content: bytes, **options: Any) -> NDArray[np.uint8]:
    return pixels_of(content, Look(**options))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photo_stands_as_its_camera_was_held(orientation: int, form: str) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255  # the upper left is bright
    turn = {1: [], 2: [0], 3: [0, 1], 4: [1], 5: [4], 6: [2], 7: [6], 8: [3]}
    image = Image.fromarray(upright)
    # Stored so that the orientation undoes it.
    undo = {0: 0, 1: 1, 2: 2, 3: 4, 4: 5, 6: 6}
    for step in turn[orientation]:
        image = image.transpose(Image.Transpose({3: 4, 2: 2, 4: 5, 6: 6}.get(step, undo[step])))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"lossless": True} if form == "WEBP" else {}
    content = encoded(image, form, exif=exif, **lossless)
    told = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert told.size == (32, 16)
    np.testing.assert_allclose(seen(content)[0], upright[..., 0], atol=40)


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("black", 0)])
def test_transparent_parts_are_the_background(background: str, value: int) -> None:
    ink = np.zeros((8, 8, 4), dtype=np.uint8)
    ink[2:6, 2:6] = (200, 100, 0, 255)
    decoding = Decoding(background=background)  # type: ignore[arg-type]
    expected = np.full((3, 8, 8), value, dtype=np.uint8)
    expected[:, 2:6, 2:6] = np.array([200, 100, 0])[:, None, None]
    np.testing.assert_array_equal(
        seen(encoded(Image.fromarray(ink), "PNG"), decoding=decoding), expected
    )
    clear_grey = Image.merge("LA", [Image.new("L", (4, 4), 7), Image.new("L", (4, 4), 0)])
    assert (seen(encoded(clear_grey, "PNG"), decoding=decoding) == value).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 50, 60, 70])
    keyed = encoded(palette, "GIF", transparency=1)
    assert (seen(keyed, decoding=decoding) == value).all()
    assert seen(encoded(palette, "GIF"))[:, 0, 0].tolist() == [50, 60, 70]


def test_16_bits_of_grey_are_as_bright_as_8() -> None:
    deep = np.array([[0, 255, 256], [2**15, 65279, 65535]], dtype=np.uint16)
    assert seen(encoded(Image.fromarray(deep), "PNG"))[0].tolist() == [[0, 0, 1], [128, 254, 255]]
    keyed = encoded(Image.fromarray(deep), "PNG", transparency=65535)
    assert seen(keyed, decoding=Decoding(background="black"))[0, 1].tolist() == [128, 254, 0]
    rows = deep.astype(">u2").tobytes()
    assert seen(b"P5 3 2 65535\n" + rows)[0].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_digits_are_shrunk_as_they_were_made() -> None:
    """scikit-learn's images are counts of ink in 4x4 areas of 32x32 scans."""
    scan = np.random.default_rng(0).integers(0, 2, (32, 32), dtype=np.uint8)
    counts = scan.reshape(8, 4, 8, 4).sum(axis=(1, 3))
    look = Look((8, 8), "grey", Digits().load().decoding)
    got = pixels_of(encoded(Image.fromarray(scan * 255), "PNG"), look)
    assert np.abs(got[0].astype(int) - counts).max() <= 1


@given(
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    wanted=st.none() | st.tuples(st.integers(1, 16), st.integers(1, 16)),
    which=st.sampled_from(EVERY),
    channels=st.sampled_from([None, "grey", "rgb"]),
    pixel_max=st.sampled_from([16, 255]),
    resampling=st.sampled_from(["bilinear", "box"]),
)
@settings(max_examples=100, deadline=None)
def test_any_image_has_the_shape_and_the_scale_that_were_asked_for(
    size: tuple[int, int],
    wanted: tuple[int, int] | None,
    which: tuple[str, str],
    channels: Any,
    pixel_max: int,
    resampling: Any,
) -> None:
    form, mode = which
    content = encoded(picture(mode, size), form)
    look = Look(wanted, channels, Decoding(pixel_max=pixel_max, resampling=resampling))
    got = pixels_of(content, look)
    width, height = wanted or size
    assert got.dtype == np.uint8
    assert got.shape[1:] == (height, width)
    assert channels is None or len(got) == {"grey": 1, "rgb": 3}[channels]
    assert int(got.max()) <= pixel_max


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(30), b"<svg/>"])
def test_what_is_no_image_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(UnreadableError) as told:
        seen(content)
    assert len(str(told.value).splitlines()) == 1
