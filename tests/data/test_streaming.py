"""Images that stay in their files: the same as resident ones, and what goes wrong with them."""

from __future__ import annotations

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import some, write, write_folder
from numpy.typing import NDArray

from bend_ray.data import inputs
from bend_ray.data.datasets import ImageFiles, ImageFolder, ImageParquet
from bend_ray.data.examples import Examples, pieces
from bend_ray.data.inputs import Corrupted, Corruption
from bend_ray.data.streaming import Room, Streamed, Windows, Work, by_threads
from bend_ray.errors import DataError
from bend_ray.networks.recipe import Recipe

BYTES = 3 * 6 * 6
"""Of an image of ``image_files``."""
NUM_TRAIN, WINDOW = 40, 8


def folder(root: Path, **options: Any) -> ImageFolder:
    if not root.exists():
        write_folder(root / "train", range(NUM_TRAIN + 6))
        write_folder(root / "test", range(100, 105))
    known = {"root": str(root), "num_validation": 6, "window": WINDOW}
    return ImageFolder(**known | options)


def parquet(root: Path, **options: Any) -> ImageParquet:
    if not root.exists():
        root.mkdir()
        write(root / "train.parquet", some(NUM_TRAIN + 6))
        write(root / "test.parquet", some(5, first=100))
    paths = {part: str(root / f"{part}.parquet") for part in ("train", "test")}
    return ImageParquet(**{**paths, "num_validation": 6, "window": WINDOW} | options)


def streamed(spec: ImageFiles) -> ImageFiles:
    """The same data set, with room for two windows and no more."""
    return spec.model_copy(update={"memory": 2 * WINDOW * BYTES / 1e9})


@pytest.mark.parametrize("make", [folder, parquet])
def test_streamed_parts_are_the_resident_ones(tmp_path: Path, make: Any) -> None:
    resident = make(tmp_path / "set").load()
    other = streamed(make(tmp_path / "set")).load()
    assert isinstance(resident.train, Examples)
    assert isinstance(other.train, Streamed)
    assert other.input_shape == resident.input_shape
    for name in ("train", "validation", "test"):
        one, same = getattr(resident, name), getattr(other, name)
        assert torch.equal(one.labels_N, same.labels_N)
        assert torch.equal(one.inputs, torch.cat([*pieces(same)]))
        index = [3, 0, 4]
        assert torch.equal(one.take(index), same.take(index))
    for one, same in zip(resident.statistics, other.statistics, strict=True):
        assert torch.equal(one, same)
    assert torch.equal(
        torch.cat([resident.train.windows.order(e, NUM_TRAIN) for e in range(3)]),
        torch.cat([other.train.windows.order(e, NUM_TRAIN) for e in range(3)]),
    )


@pytest.mark.parametrize("name", ["gaussian_noise", "rotate", "elastic"])
def test_what_is_corrupted_as_it_is_asked_for_is_the_same(
    name: Corruption, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "BLOCK", 4)
    whole = Corrupted(corruption=name).of(folder(tmp_path / "set").load())
    stream = Corrupted(corruption=name).of(streamed(folder(tmp_path / "set")).load())
    assert isinstance(stream, Streamed)
    assert torch.equal(whole.labels_N, stream.labels_N)
    assert torch.equal(whole.inputs, torch.cat([*pieces(stream, most=3)]))
    assert torch.equal(whole.take([21, 0, 7]), stream.take([21, 0, 7]))


def test_what_is_streamed_is_told_and_is_no_other_data_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from bend_ray.config.schema import identity

    spec = folder(tmp_path / "set")
    with caplog.at_level(logging.INFO):
        streamed(spec).load()
    assert "streamed, in windows of 8 images" in caplog.text
    assert identity(spec) == identity(streamed(spec))
    assert identity(spec) != identity(spec.model_copy(update={"window": 9}))


def test_the_room_of_the_machine_decides_where_the_config_does_not(tmp_path: Path) -> None:
    spec = folder(tmp_path / "set")
    assert isinstance(spec.load(Room(46 * BYTES)).train, Examples)
    assert isinstance(spec.load(Room(45 * BYTES)).train, Streamed)


@given(
    num_images=st.integers(1, 60),
    run=st.integers(1, 7),
    batch_size=st.integers(1, 8),
    more=st.integers(0, 20),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_pass_meets_every_image_once_and_runs_whole(
    num_images: int, run: int, batch_size: int, more: int, seed: int
) -> None:
    runs_N = torch.arange(num_images) // run
    windows = Windows(batch_size + 1 + more, seed, runs_N)
    sizes = Recipe(batch_size=batch_size).batch_sizes(num_images)
    by_window = windows.sizes(sizes)
    assert [size for each in by_window for size in each] == sizes
    assert max(map(sum, by_window)) <= windows.images + 1
    order = windows.order(2, num_images)
    assert sorted(order.tolist()) == list(range(num_images))
    changes = int((runs_N[order].diff() != 0).sum())
    assert changes == int(runs_N[-1])
    assert torch.equal(order, Windows(1, seed, runs_N).order(2, num_images))
    if num_images > 20 * run:
        assert not torch.equal(order, windows.order(3, num_images))


def test_images_are_decoded_ahead_and_come_in_order() -> None:
    begun: list[int] = []

    def work(number: int) -> NDArray[np.uint8]:
        begun.append(number)
        return np.full(1, number, np.uint8)

    stream = by_threads(work, 50)
    assert next(stream)[0] == 0
    assert 0 < len(begun) < 50
    assert [int(each[0]) for each in stream] == list(range(1, 50))
    stream.close()


def test_a_stream_that_is_left_decodes_no_more() -> None:
    begun: list[int] = []

    def work(number: int) -> NDArray[np.uint8]:
        begun.append(number)
        return np.zeros(1, np.uint8)

    stream = by_threads(work, 1000)
    next(stream)
    stream.close()
    assert len(begun) < 100


def refused(spec: ImageFiles) -> str:
    with pytest.raises(DataError) as caught:
        spec.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_room_that_holds_no_two_windows_is_refused(tmp_path: Path) -> None:
    spec = folder(tmp_path / "set", memory=(2 * WINDOW - 1) * BYTES / 1e9)
    message = refused(spec)
    assert message.startswith("dataset.memory: expected 1.7e-06 GB at least, for two windows of 8")
    assert message.endswith("raise it, or lower dataset.window")


def test_duplicates_cannot_be_refused_in_what_is_not_read(tmp_path: Path) -> None:
    spec = streamed(folder(tmp_path / "set", duplicates="refuse"))
    assert refused(spec).startswith("dataset.duplicates: expected tell where images are streamed")


def test_a_window_without_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match=r"^dataset.window: expected a batch of 50 images at least"):
        Windows(49).sizes([50, 50, 7])


def test_an_image_that_vanishes_is_named(tmp_path: Path) -> None:
    dataset = streamed(folder(tmp_path / "set")).load()
    windows = torch.arange(NUM_TRAIN).split(WINDOW)
    assert len([*dataset.train.stream(windows)]) == len(windows)
    gone = sorted((tmp_path / "set" / "train").rglob("*.png"))[7]
    gone.unlink()
    with pytest.raises(DataError, match=rf"^dataset: cannot read .*{gone.name}: .*[Nn]o such file"):
        [*dataset.train.stream(windows), *dataset.validation.stream([torch.arange(6)])]


def test_an_image_that_becomes_another_size_is_named(tmp_path: Path) -> None:
    dataset = streamed(folder(tmp_path / "set")).load()
    for path in (tmp_path / "set" / "train").rglob("*.png"):
        from PIL import Image

        Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(DataError, match=r"expected images of one size, got 6 x 6 .* and 9 x 9"):
        [*dataset.train.stream([torch.arange(8)])]


def test_a_stream_that_ends_early_is_told(tmp_path: Path) -> None:
    def cut(work: Work, count: int) -> Generator[NDArray[np.uint8]]:
        yield from (work(number) for number in range(count - 1))

    spec = streamed(folder(tmp_path / "set"))
    dataset = spec.load(Room(0.0, ahead=cut))
    with pytest.raises(DataError, match=r"^dataset: expected 40 images of a stream, it ended"):
        [*dataset.train.stream(torch.arange(NUM_TRAIN).split(WINDOW))]
