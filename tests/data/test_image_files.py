"""Data sets of encoded images: Parquet, folders and torchvision, on files written here."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_files import Row, encoded, pixels_of, some, write, write_folder
from object_store import BUCKET, object_store
from PIL import Image

from bend_ray.data import decoding
from bend_ray.data.datasets import ImageFolder, ImageParquet, Torchvision
from bend_ray.data.examples import Examples
from bend_ray.errors import DataError

DATASETS = os.environ.get("BEND_DATASETS")


def parquet(tmp_path: Path, rows: Sequence[Row], **options: Any) -> ImageParquet:
    train = write(tmp_path / "train.parquet", rows)
    test = str(tmp_path / "test.parquet")
    if not Path(test).exists():
        write(Path(test), some(4, first=100))
    return ImageParquet(**{"train": train, "test": test, "num_validation": 2} | options)


def indices(part: Examples) -> list[int]:
    return part.inputs[:, 0, 0, 0].tolist()


def assert_is(part: Examples, expected: Sequence[int]) -> None:
    """Every image is pixel for pixel the one of its index, with its label."""
    assert sorted(indices(part)) == sorted(expected)
    for pixels, label, index in zip(part.inputs, part.labels_N, indices(part), strict=True):
        np.testing.assert_array_equal(pixels.permute(1, 2, 0), pixels_of(index))
        assert label == index % 3


def test_parts_are_exact_disjoint_and_of_the_seed(tmp_path: Path) -> None:
    spec = parquet(tmp_path, some(20), num_validation=6)
    dataset, again = spec.load(), spec.load()
    assert (len(dataset.train), len(dataset.validation)) == (14, 6)
    assert_is(dataset.train, sorted(set(range(20)) - set(indices(dataset.validation))))
    assert_is(dataset.validation, sorted(set(range(20)) - set(indices(dataset.train))))
    assert_is(dataset.test, [100, 101, 102, 103])
    assert torch.equal(dataset.train.inputs, again.train.inputs)
    other = spec.model_copy(update={"split_seed": 1}).load()
    assert set(indices(other.validation)) != set(indices(dataset.validation))
    fewer = spec.model_copy(update={"num_train": 5}).load()
    assert indices(fewer.train) == indices(dataset.train)[:5]
    assert indices(fewer.validation) == indices(dataset.validation)


def test_a_folder_of_files_and_a_validation_part_are_read_whole(tmp_path: Path) -> None:
    for name, first in (("a/0", 0), ("a/1", 10), ("b/2", 20)):
        write(tmp_path / f"train/{name}.parquet", some(10, first), names=["x", "y", "z"])
    write(tmp_path / "validation.parquet", some(5, 50), names=["x", "y", "z"])
    write(tmp_path / "test.parquet", some(4, first=100), names=["x", "y", "z"])
    spec = parquet(
        tmp_path,
        [],
        train=f"file://{tmp_path}/train",
        validation=str(tmp_path / "validation.parquet"),
    )
    dataset = spec.load()
    assert_is(dataset.train, range(30))
    assert_is(dataset.validation, range(50, 55))
    assert dataset.class_names == ("x", "y", "z")


def test_without_names_classes_are_numbered_to_the_largest_label(tmp_path: Path) -> None:
    assert parquet(tmp_path, some(5)).load().class_names == ("0", "1", "2")


def test_no_pixel_of_the_test_part_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", [(encoded(pixels_of(100))[:-60], 0)])
    dataset = parquet(tmp_path, some(5)).load()
    with pytest.raises(DataError, match=r"cannot use .*test\.parquet row 0"):
        _ = dataset.test


def test_what_is_wrong_with_the_test_part_is_told_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_bytes(b"not Parquet at all")
    spec = parquet(tmp_path, some(5))
    with pytest.raises(DataError, match=r"cannot read .*test\.parquet as Parquet"):
        spec.load()
    for row, message in (
        ((encoded(pixels_of(100)), -1), r"from 0 on, .*test\.parquet row 0 has -1"),
        ((encoded(pixels_of(100)), 7), r"classes of the training part in the test part, got 7"),
        ((LARGE, 0), r"6 x 6 \(the training images\) and 9 x 9"),
        ((GREY, 0), r"colour \(the training images\) and grey"),
        ((b"no image", 0), r"cannot use .*test\.parquet row 0"),
    ):
        write(tmp_path / "test.parquet", [row])
        with pytest.raises(DataError, match=message):
            spec.load()


def test_a_data_set_travels_without_its_test_part_and_reads_it_there(tmp_path: Path) -> None:
    dataset = parquet(tmp_path, some(8)).load()
    kept = dataset.test
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(dataset, protocol=5, buffer_callback=buffers.append)
    assert (
        sum(buffer.raw().nbytes > 0 for buffer in buffers) == 4
    )  # pixels and labels of two parts, by reference
    read_only = [memoryview(bytes(buffer.raw())).toreadonly() for buffer in buffers]
    there = pickle.loads(content, buffers=read_only)
    assert "test" not in vars(there)
    assert torch.equal(there.train.inputs, dataset.train.inputs)
    assert torch.equal(there.test.inputs, kept.inputs)
    (tmp_path / "test.parquet").unlink()
    assert pickle.loads(content, buffers=read_only).with_test(kept).test is kept


def test_other_columns_can_be_named(tmp_path: Path) -> None:
    spec = parquet(tmp_path, some(5))
    for path in (spec.train, spec.test):
        pq.write_table(pq.read_table(path).rename_columns(["img", "fine_label"]), path)
    with pytest.raises(DataError, match=r"columns image and label.*got img, fine_label"):
        spec.load()
    named = spec.model_copy(update={"image_column": "img", "label_column": "fine_label"})
    assert len(named.load().test) == 4


GREY, LARGE = encoded(pixels_of(1, channels=1)), encoded(pixels_of(1, size=9))
BROKEN = {
    "mode": (GREY, 0, r"one mode, got colour \(.*row 0.*and grey \(.*row 5 .*dataset\.mode"),
    "size": (LARGE, 0, r"one size, got 6 x 6 \(.*row 0.*and 9 x 9 \(.*row 5 .*image_size"),
    "text": (b"no image", 0, r"cannot use .*train\.parquet row 5 \(5\.png\)"),
    "cut": (encoded(pixels_of(5))[:-60], 0, r"cannot use .* row 5 \(5\.png\)"),
    "absent": (None, 0, r"the image itself in .* row 5 "),
    "high": (LARGE, -1, r"labels from 0 on, .*train\.parquet row 5 has -1"),
    "null": (LARGE, None, r"expected a label, .*train\.parquet row 5 has none"),
    "16 bits": (
        encoded(np.full((6, 6), 999, dtype=np.uint16), "TIFF"),
        0,
        r"row 5 .*8 bits, .*mode I;16",
    ),
}


@pytest.mark.parametrize(("content", "label", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_row_is_named(
    tmp_path: Path, content: bytes | None, label: int | None, message: str
) -> None:
    rows = [*some(5), (content, label), *some(3, 6)]
    with pytest.raises(DataError, match=message):
        parquet(tmp_path, rows).load()


def test_labels_beyond_the_named_classes_and_labels_that_are_no_integers(tmp_path: Path) -> None:
    spec = parquet(tmp_path, some(5))
    write(Path(spec.train), some(5), names=["only", "two"])
    with pytest.raises(DataError, match=r"labels from 0 to 1 \(only, two\), .*row 2 has 2"):
        spec.load()
    write(Path(spec.train), some(5), label=pa.float64())
    with pytest.raises(DataError, match="integers or texts, got double"):
        spec.load()


def test_mixed_images_are_brought_to_one_size_and_mode_when_asked(tmp_path: Path) -> None:
    flat = encoded(np.full((20, 40, 3), 90, dtype=np.uint8))
    rows = [*some(4), (GREY, 1), (flat, 2)]
    dataset = parquet(tmp_path, rows, image_size=5, mode="grey").load()
    assert dataset.input_shape == (1, 5, 5)
    assert dataset.test.inputs.shape == (4, 1, 5, 5)
    all_pixels = torch.cat([dataset.train.inputs, dataset.validation.inputs])
    assert any(bool((image == 90).all()) for image in all_pixels)


@pytest.mark.parametrize("limit", [35, 20])
def test_an_image_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 35)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"train\.parquet row \d.*at most 35 pixels"):
        parquet(tmp_path, some(5)).load()


def test_too_few_images_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least 6 examples.*got 5"):
        parquet(tmp_path, some(5), num_validation=5).load()
    for name in ("train", "test"):
        with pytest.raises(DataError, match=rf"^dataset\.{name}=.*nowhere: .* got none"):
            parquet(tmp_path, some(5), **{name: str(tmp_path / "nowhere")}).load()


def test_folders_of_classes_are_a_data_set(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", range(12))
    write_folder(tmp_path / "test", [31, 34])  # of class b alone
    dataset = ImageFolder(root=str(tmp_path), num_validation=4).load()
    assert dataset.class_names == ("a", "b", "c")
    assert_is(dataset.train, sorted(set(range(12)) - set(indices(dataset.validation))))
    assert_is(dataset.test, [31, 34])
    write_folder(tmp_path / "validation", [41, 42])
    assert_is(ImageFolder(root=str(tmp_path)).load().validation, [41, 42])


def test_broken_folders_say_what_was_expected(tmp_path: Path) -> None:
    spec = ImageFolder(root=str(tmp_path), num_validation=2)
    with pytest.raises(DataError, match=r"folders train and test in .*got none; .*dataset\.root"):
        spec.load()
    write_folder(tmp_path / "train", range(6))
    with pytest.raises(DataError, match=r"folders train and test in .*got train; "):
        spec.load()
    (tmp_path / "test" / "zebra").mkdir(parents=True)
    (tmp_path / "test" / "zebra" / "0.png").write_bytes(encoded(pixels_of(1)))
    with pytest.raises(
        DataError, match=r"got zebra besides .*; those of the training part are a, b, c"
    ):
        spec.load()
    (tmp_path / "test" / "zebra").rename(tmp_path / "test" / "b")
    (tmp_path / "train" / "b" / "001.png").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"cannot use .*b/001\.png \(row 2\)"):
        spec.load()


@pytest.mark.slow
def test_folders_may_be_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "set ü" / "train", range(12))
    write_folder(tmp_path / "set ü" / "test", range(30, 36))
    here = ImageFolder(root=str(tmp_path / "set ü"), num_validation=4).load()
    with object_store(monkeypatch):
        for file in tmp_path.rglob("*.png"):
            key = str(file.relative_to(tmp_path))
            boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())
        root = f"s3://{BUCKET}/set%20%C3%BC?region=us-east-1"
        there = ImageFolder(root=root, num_validation=4).load()
        for name in ("train", "validation", "test"):
            ours, theirs = getattr(there, name), getattr(here, name)
            assert torch.equal(ours.inputs, theirs.inputs)
            assert torch.equal(ours.labels_N, theirs.labels_N)
    assert there.class_names == here.class_names == ("a", "b", "c")


def test_a_validation_folder_may_be_called_val_and_there_is_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", range(6))
    write_folder(tmp_path / "test", range(30, 33))
    write_folder(tmp_path / "Val", [41, 42])
    assert_is(ImageFolder(root=str(tmp_path)).load().validation, [41, 42])
    write_folder(tmp_path / "validation", [41, 42])
    with pytest.raises(
        DataError,
        match="one folder of the validation part",
    ):
        ImageFolder(root=str(tmp_path)).load()


def test_what_a_folder_leaves_out_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bend_ray")
    write_folder(tmp_path / "train", range(6))
    write_folder(tmp_path / "test", range(30, 33))
    gif = encoded(pixels_of(9), "GIF")
    (tmp_path / "train/a/009.gif").write_bytes(gif)
    (tmp_path / "train/a/notes.txt").write_text("")
    (tmp_path / "train/a/Thumbs.db").write_text("")
    (tmp_path / "train/stray.png").write_bytes(encoded(pixels_of(1)))
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    (tmp_path / "train/empty").mkdir()
    dataset = ImageFolder(root=str(tmp_path), num_validation=2).load()
    assert len(dataset.train) + len(dataset.validation) == 7
    assert dataset.class_names == ("a", "b", "c")
    assert ": 1 of .txt" in caplog.text
    assert "1 images in no class's folder" in caplog.text
    assert "without an image in" in caplog.text
    assert caplog.text.count("are no classes: empty") == 1
    caplog.clear()
    assert len(dataset.test) == 3
    assert not caplog.text


MEASURE = """
import sys, pyarrow
from bend_ray.data.datasets import ImageParquet
train, test = sys.argv[1:]
ImageParquet(train=train, test=test, num_train=20, num_validation=5, image_size=8).load()
print(pyarrow.default_memory_pool().max_memory())
"""


@pytest.mark.slow
@pytest.mark.parametrize("rows_a_group", [10, 10_000])
def test_a_few_images_of_a_large_file_take_memory_for_a_batch(
    tmp_path: Path, rows_a_group: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    content = encoded(noise, "PPM")
    images = [{"bytes": content + bytes([n % 256, n >> 8]), "path": ""} for n in range(400)]
    table = pa.table({"image": images, "label": [n % 2 for n in range(400)]})
    train = tmp_path / "train.parquet"
    pq.write_table(
        table,
        train,
        row_group_size=rows_a_group,
        use_dictionary=False,
        write_batch_size=8,
        compression="none",
    )
    assert train.stat().st_size > 140e6
    test = write(tmp_path / "test.parquet", some(2))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(train), test],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60e6


def write_mnist(root: Path) -> None:
    """MNIST as its authors publish it, with 12 training and 6 test images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 12), ("t10k", 6)):
        pixels = np.stack([pixels_of(i, size=28, channels=1) for i in range(count)])
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = bytes(i % 3 for i in range(count))
        head = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big")
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + labels)


def test_a_torchvision_set_is_read_by_name(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    dataset = Torchvision(name="MNIST", root=str(tmp_path), num_validation=4).load()
    assert dataset.input_shape == (1, 28, 28)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (8, 4, 6)
    assert len(dataset.class_names) == 10
    for image, label in zip(dataset.train.inputs, dataset.train.labels_N, strict=True):
        index = int(image[0, 0, 0])
        np.testing.assert_array_equal(image[0], pixels_of(index, size=28, channels=1))
        assert label == index % 3


@pytest.mark.parametrize(
    "name", ["MNIST", "CIFAR10", "CIFAR100", "STL10", "Flowers102", "OxfordIIITPet", "Food101"]
)
def test_torchvision_files_that_are_missing_say_what_to_do(tmp_path: Path, name: Any) -> None:
    with pytest.raises(DataError, match=rf"{name}: expected .*{tmp_path}.*download=true"):
        Torchvision(name=name, root=str(tmp_path)).load()


def test_a_download_without_network_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(DataError, match=r"CIFAR10: .*\(.*unreachable.*check the network"):
        Torchvision(root=str(tmp_path), download=True).load()


@pytest.mark.slow
@pytest.mark.skipif(DATASETS is None, reason="BEND_DATASETS names no folder of real data sets")
@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("mnist", (1, 28, 28), ("0", "1")), ("cifar10", (3, 32, 32), ("airplane", "automobile"))],
)
def test_real_files_are_read(name: str, shape: tuple[int, ...], classes: tuple[str, str]) -> None:
    spec = ImageParquet(
        train=f"{DATASETS}/{name}/train.parquet",
        test=f"{DATASETS}/{name}/test.parquet",
        num_train=300,
        num_validation=100,
    )
    dataset = spec.load()
    assert dataset.input_shape == shape
    assert dataset.class_names[:2] == classes
    assert len(dataset.class_names) == 10
    assert (len(dataset.train), len(dataset.validation)) == (300, 100)
    assert set(dataset.train.labels_N.tolist()) == set(range(10))
    assert len(dataset.test) == 10_000
