"""Classes are names: parts and shards that name them otherwise are mapped, or refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pytest
from fuzzing import fuzzed
from hypothesis import given
from hypothesis import strategies as st
from image_files import Row, encoded, pixels_of, some, write

from bend_ray.data.datasets import ImageFolder, ImageParquet
from bend_ray.data.examples import Examples, Parts
from bend_ray.errors import DataError

NAMES = ("cat", "dog", "eel", "fox")


def named_rows(animals: list[int], names: list[str], first: int) -> list[Row]:
    """Examples that know their animal: their first pixel is 4 i + animal."""
    images = [
        (encoded(pixels_of(4 * (first + i) + animal)), animal) for i, animal in enumerate(animals)
    ]
    return [(content, names.index(NAMES[animal])) for content, animal in images]


def animals_of(dataset: Parts, part: Examples) -> list[tuple[str, str]]:
    """What each image is, and what the data set calls it."""
    first = part.inputs[:, 0, 0, 0].tolist()
    return [
        (NAMES[pixel % 4], dataset.class_names[label])
        for pixel, label in zip(first, part.labels_N.tolist(), strict=True)
    ]


orders = st.permutations(NAMES)
animals = st.lists(st.integers(0, 3), min_size=2, max_size=6)


@given(
    shards=st.lists(st.tuples(orders, animals), min_size=2, max_size=3),
    test=st.tuples(orders, animals),
)
@fuzzed(30)
def test_every_image_keeps_its_class_whatever_its_file_calls_it(
    tmp_path: Path, shards: list[tuple[list[str], list[int]]], test: tuple[list[str], list[int]]
) -> None:
    for old in (tmp_path / "train").glob("*"):
        old.unlink()
    for number, (names, its) in enumerate(shards):
        write(tmp_path / f"train/{number}.parquet", named_rows(its, names, 6 * number), names)
    write(tmp_path / "test.parquet", named_rows(test[1], test[0], 30), test[0])
    spec = ImageParquet(
        train=str(tmp_path / "train"), test=str(tmp_path / "test.parquet"), num_validation=1
    )
    if len({animal for _, its in shards for animal in its}) < 2:
        with pytest.raises(DataError, match="two classes at least"):
            spec.load()
        return
    dataset = spec.load()
    assert sorted(dataset.class_names) == sorted(NAMES)
    for part in (dataset.train, dataset.validation, dataset.test):
        assert all(animal == called for animal, called in animals_of(dataset, part))


def parquet(
    tmp_path: Path, train_rows: list[Row], test_rows: list[Row], **names: list[str]
) -> ImageParquet:
    return ImageParquet(
        train=write(tmp_path / "train.parquet", train_rows, names.get("train")),
        test=write(tmp_path / "test.parquet", test_rows, names.get("test")),
        num_validation=1,
    )


def test_classes_that_the_training_part_lacks_are_refused_unless_they_have_no_image(
    tmp_path: Path,
) -> None:
    rows = some(6)
    spec = parquet(tmp_path, rows, rows, train=["a", "b", "c"], test=["c", "b", "a", "z"])
    assert spec.load().class_names == ("a", "b", "c")
    spec = parquet(
        tmp_path, rows, [(rows[0][0], 3)], train=["a", "b", "c"], test=["c", "b", "a", "z"]
    )
    with pytest.raises(DataError, match=r"got z besides .*test\.parquet row 0.*are a, b, c"):
        spec.load()


def test_names_are_never_matched_with_numbers(tmp_path: Path) -> None:
    rows = some(6)
    spec = parquet(tmp_path, rows, rows, train=["a", "b", "c"])
    with pytest.raises(
        DataError, match=r"test part .*as names, .*got numbers alone; .*class_names"
    ):
        spec.load()
    told = spec.model_copy(update={"class_names": ("c", "b", "a")}).load()
    assert told.class_names == ("a", "b", "c")
    # The test part's class 0 is then called c.
    assert [told.class_names[label] for label in told.test.labels_N] == [
        "c",
        "b",
        "a",
        "c",
        "b",
        "a",
    ]
    folder = tmp_path / "shards{}"
    write(folder / "0.parquet", rows, ["a", "b", "c"])
    write(folder / "1.parquet", rows)
    with pytest.raises(
        DataError, match=r"1\.parquet to give its classes as names, as .*0\.parquet does"
    ):
        spec.model_copy(update={"train": str(folder)}).load()
    write(folder / "0.parquet", rows)
    write(folder / "1.parquet", rows, ["a", "b", "c"])
    with pytest.raises(DataError, match=r"1\.parquet to give its classes as numbers alone"):
        spec.model_copy(update={"train": str(folder)}).load()


def test_labels_that_are_texts_or_truth_values_are_names(tmp_path: Path) -> None:
    for values, arrow, names in (
        (["pear", "apple", "pear", "fig"], pa.string(), ("apple", "fig", "pear")),
        (
            ["pear", "apple", "pear", "fig"],
            pa.dictionary(pa.int8(), pa.string()),
            ("apple", "fig", "pear"),
        ),
        ([True, False, True, True], pa.bool_(), ("false", "true")),
    ):
        rows = [(content, value) for (content, _), value in zip(some(4), values, strict=True)]
        train = write(tmp_path / "train.parquet", rows, label=arrow)
        dataset = ImageParquet(train=train, test=train, num_validation=1).load()
        assert dataset.class_names == names
        said = [dataset.class_names[label] for label in dataset.test.labels_N]
        assert said == [str(value).lower() for value in values]


def test_numbers_that_are_not_0_to_c_are_mapped_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "bend_ray")
    rows = [(content, [7, 3, 40][label]) for content, label in some(9)]  # type: ignore[index]
    dataset = parquet(tmp_path, rows, rows).load()
    assert dataset.class_names == ("3", "7", "40")
    assert [dataset.class_names[label] for label in dataset.test.labels_N[:3]] == ["7", "3", "40"]
    assert "labels 3, 7, 40 are the classes" in caplog.text
    caplog.clear()
    parquet(tmp_path, some(9), some(9)).load()
    assert "are the classes" not in caplog.text


def test_classes_without_an_image_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a", "b", "c", "d"]
    parquet(tmp_path, some(9), [some(1)[0]], train=names, test=names).load()
    assert "the train part has no example of 1 of 4 classes: d" in caplog.text
    assert "the test part has no example of 3 of 4 classes: b, c, d" in caplog.text


def test_one_class_alone_is_refused(tmp_path: Path) -> None:
    rows = [(content, 1) for content, _ in some(6)]
    for names in ({}, {"train": ["a", "b"], "test": ["a", "b"]}):
        with pytest.raises(
            DataError, match="two classes at least, those of the training part are all"
        ):
            parquet(tmp_path, rows, rows, **names).load()
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        for index, (content, _) in enumerate(rows):
            (tmp_path / part / "only" / f"{index}.png").write_bytes(content or b"")
    with pytest.raises(DataError, match="are all only"):
        ImageFolder(root=str(tmp_path), num_validation=1).load()


def test_images_that_two_parts_share_are_told_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = some(12)
    spec = parquet(tmp_path, rows, [*some(3, 50), *rows[:2]])
    dataset = spec.load()
    shared = set(dataset.train.inputs[:, 0, 0, 0].tolist()) & {0, 1}
    assert f"{len(shared)} of 5 examples of the test part are in the train part too" in caplog.text
    refusing = spec.model_copy(update={"duplicates": "refuse"})
    with pytest.raises(DataError, match="examples of the test part are in the"):
        refusing.load()
    assert len(
        parquet(tmp_path, rows, some(3, 50)).model_copy(update={"duplicates": "refuse"}).load().test
    )
    with pytest.raises(
        DataError, match=r"content\.test: expected files of digest .* changed since"
    ):
        _ = dataset.test
