"""Arrays of a user become those of a few types, parts that are drawn once, and come back alike."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from fuzzing import damaged, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_st
from numpy.typing import NDArray

from bend_ray.data.arrays import Arrays
from bend_ray.data.datasets import ArrayFiles
from bend_ray.data.examples import Parts
from bend_ray.errors import DataError

N = 60
LABELS_N = np.arange(N) % 3
INPUTS_NF = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)


def saved(path: Path, **arrays: Any) -> str:
    """A file of arrays."""
    np.savez(path, **arrays)
    return str(path)


def loaded(path: Path, **options: Any) -> Parts:
    return ArrayFiles(train=str(path), **options).load()


shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
# numpy cuts off what ends in NUL.
words = st.text(st.characters(exclude_characters="\0"), max_size=3)
kinds = st.sampled_from(["f2", "f4", "f8", ">f4", "u1", "i2", "i8", ">i4", "u2", "?"])


@given(data=st.data(), shape=shapes, kind=kinds, count=st.integers(1, 7))
@fuzzed(40)
def test_arrays_of_any_type_and_shape_come_back_alike(
    tmp_path: Path, data: st.DataObject, shape: tuple[int, ...], kind: str, count: int
) -> None:
    finite = st.floats(allow_nan=False, allow_infinity=False, width=16)
    elements = finite if "f" in kind else arrays_st.from_dtype(np.dtype(kind))
    values = data.draw(arrays_st.arrays(kind, (count, *shape), elements=elements))
    labels = data.draw(st.lists(words, min_size=count, max_size=count))
    arrays = Arrays.of({"b": values, "a": values}, labels)
    path = tmp_path / "a.safetensors"
    path.write_bytes(arrays.to_bytes())
    again = ArrayFiles(train=str(path))._open("train")
    assert list(again.inputs) == ["a", "b"]
    assert again.inputs["a"].dtype in (np.float32, np.uint8, np.int64)
    np.testing.assert_array_equal(again.inputs["a"], values)
    assert [again.class_names[code] for code in again.labels_N] == [str(x) for x in labels]
    assert again.to_bytes() == arrays.to_bytes()


@given(labels=arrays_st.arrays(np.int64, 9, elements=st.integers(0, 2**62)))
@fuzzed(20)
def test_any_numbers_as_labels_are_classes_in_their_order(labels: NDArray[np.int64]) -> None:
    arrays = Arrays.of({"x": np.zeros((9, 1))}, labels)
    assert [int(arrays.class_names[code]) for code in arrays.labels_N] == labels.tolist()
    assert [*map(int, arrays.class_names)] == sorted(set(labels.tolist()))


def test_statistics_are_those_of_the_training_part_alone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, size=(N, 2, 3, 3), dtype=np.uint8)
    saved(tmp_path / "a.npz", pixels=pixels, reals=INPUTS_NF, labels=LABELS_N)
    # A test part of another scale, which must not count.
    saved(tmp_path / "t.npz", pixels=pixels // 9, reals=INPUTS_NF * 9, labels=LABELS_N)
    parts = loaded(tmp_path / "a.npz", test=str(tmp_path / "t.npz"))
    order = np.random.default_rng(0).permutation(N)
    rows, others = order[N // 5 :], order[: N // 5]
    np.testing.assert_array_equal(parts.train.inputs["reals"], INPUTS_NF[rows])
    np.testing.assert_array_equal(parts.validation.inputs["reals"], INPUTS_NF[others])
    for name, given_ in (("pixels", pixels), ("reals", INPUTS_NF)):
        axes = (0, 2, 3)[: given_.ndim - 1]
        seen = given_[rows].astype(np.float64)
        mean_C, std_C = seen.mean(axis=axes), seen.std(axis=axes, ddof=1)
        trailing = (-1,) + (1,) * (given_.ndim - 2)
        for part in (parts.train, parts.test):
            expected = (part.inputs[name].numpy() - mean_C.reshape(trailing)) / std_C.reshape(
                trailing
            )
            normalised = parts.normalise(part.inputs)[name]
            np.testing.assert_allclose(normalised, expected, rtol=1e-4, atol=1e-4)


@given(
    count=st.integers(6, 200),
    num_validation=st.none() | st.integers(1, 3),
    num_train=st.none() | st.integers(2, 3),
    seed=st.integers(0, 9),
)
@fuzzed(20)
def test_a_split_is_a_permutation(
    tmp_path: Path, count: int, num_validation: int | None, num_train: int | None, seed: int
) -> None:
    # Two classes, each of which may be missing in a few that are drawn.
    saved(tmp_path / "a.npz", inputs=np.arange(count), labels=np.arange(count) % 2)
    options = {"num_validation": num_validation, "num_train": num_train, "split_seed": seed}
    try:
        parts = loaded(tmp_path / "a.npz", **options)
    except DataError as error:
        told = str(error)
    else:
        told = ""
    if told:
        assert "two training examples" in told or "two classes" in told
        return
    both = [*parts.train.inputs.tolist(), *parts.validation.inputs.tolist()]
    assert len(set(both)) == len(both)
    assert len(parts.validation) == (num_validation or count // 5)
    assert len(parts.train) == (num_train or count - len(parts.validation))
    for part in (parts.train, parts.validation):
        assert part.labels_N.tolist() == [row % 2 for row in part.inputs.tolist()]


def test_parts_are_matched_by_the_names_of_classes(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "emu"])
    saved(tmp_path / "a.npz", x=INPUTS_NF, y=names[LABELS_N])
    saved(tmp_path / "t.npz", x=INPUTS_NF[:4], y=np.array(["emu", "dog", "emu", "dog"]))
    parts = loaded(tmp_path / "a.npz", test=str(tmp_path / "t.npz"))
    assert parts.class_names == ("cat", "dog", "emu")
    assert parts.test.labels_N.tolist() == [2, 1, 2, 1]


def test_files_of_a_part_may_lack_classes_of_others(tmp_path: Path) -> None:
    for number, labels in enumerate(([7, 9], [9, 3])):
        rows = np.arange(20, dtype=np.float32)[:, None] + 100 * number
        saved(tmp_path / f"p{number}.npz", x=rows, label=np.resize(labels, 20))
    parts = loaded(tmp_path / "p*.npz")
    assert parts.class_names == ("3", "7", "9")
    told = {row: parts.class_names[code] for row, code in zip(*every(parts), strict=True)}
    assert (told[0.0], told[1.0], told[100.0], told[101.0]) == ("7", "9", "9", "3")


def every(parts: Parts) -> tuple[list[float], list[int]]:
    """First number and label of each example."""
    both = (parts.train, parts.validation)
    rows = [row for part in both for row in part.inputs[:, 0].tolist()]
    return rows, [code for part in both for code in part.labels_N.tolist()]


WRONG: dict[str, tuple[Any, Any, str]] = {
    "nan": (np.where(INPUTS_NF > 1, np.nan, INPUTS_NF), LABELS_N, "finite numbers, got nan or inf"),
    "inf": (INPUTS_NF.astype(np.float64) * 1e300, LABELS_N, "finite numbers"),
    "masked": (np.ma.masked_greater(INPUTS_NF, 1), LABELS_N, "finite numbers"),
    "masked labels": (INPUTS_NF, np.ma.masked_greater(LABELS_N, 1), "whole numbers or texts"),
    "complex": (INPUTS_NF + 1j, LABELS_N, "numbers, got complex64"),
    "dates": (np.full((N, 1), np.datetime64("2020")), LABELS_N, "numbers, got datetime64"),
    "spans": (np.full((N, 1), np.timedelta64(1, "s")), LABELS_N, "numbers, got timedelta64"),
    "texts": (["a"] * N, LABELS_N, "numbers, got <U1"),
    "objects": ([{}] * N, LABELS_N, "got dict"),
    "nothing": ([None] * N, LABELS_N, "got NoneType"),
    "ragged": ([[1, 2], [3]] * (N // 2), LABELS_N, "rows of several shapes"),
    "no features": (INPUTS_NF[:, :0], LABELS_N, "a row of numbers an example"),
    "a number": (5, LABELS_N, "a row of numbers an example"),
    "empty": ([], [], "examples, got none"),
    "fewer labels": (INPUTS_NF, LABELS_N[:-1], "got 59 labels and 60 of x"),
    "one-hot": (INPUTS_NF, np.eye(3)[LABELS_N], "give the argmax"),
    "endless": (INPUTS_NF, [*INPUTS_NF[1:, 0], np.inf], "expected finite targets"),
    "missing labels": (INPUTS_NF, [*LABELS_N[1:], np.nan], "whole numbers or texts, got nan"),
    "not labelled": (INPUTS_NF, LABELS_N - 1, "labels from 0 on, here row 0 has -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_learnt_from_is_refused_in_a_line(name: str) -> None:
    inputs, labels, message = WRONG[name]
    with pytest.raises(DataError, match=f"^here.*{message}|^dataset.*{message}") as caught:
        Arrays.of({"x": inputs}, labels, where="here")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (INPUTS_NF, np.zeros(N), "two classes at least"),
        (INPUTS_NF, np.arange(N), "got 48 of 60 classes"),
        (INPUTS_NF[:3], LABELS_N[:3], "got 2 of 3 classes"),
        (INPUTS_NF[:1], LABELS_N[:1], "at least 2 examples"),
    ],
)
def test_too_few_examples_of_classes_are_refused(
    tmp_path: Path, inputs: Any, labels: Any, message: str
) -> None:
    saved(tmp_path / "a.npz", inputs=inputs, labels=labels)
    with pytest.raises(DataError, match=message):
        loaded(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"x": INPUTS_NF[:, :3], "y": LABELS_N}, r"x \(4,\) float32, got x \(3,\) float32"),
        ({"z": INPUTS_NF, "y": LABELS_N}, "got z"),
        ({"x": (INPUTS_NF * 9).astype(int), "y": LABELS_N}, "got x .* int64"),
        ({"x": INPUTS_NF, "y": LABELS_N + 2}, r"got 3 besides \(row 1\)"),
        ({"x": INPUTS_NF, "y": np.array(["0", "1"] * 30)}, "as numbers alone"),
        ({"x": INPUTS_NF}, "labels called labels or label or y or target, got x"),
    ],
)
def test_a_test_part_unlike_the_training_part_is_refused(
    tmp_path: Path, test: dict[str, Any], message: str
) -> None:
    saved(tmp_path / "a.npz", x=INPUTS_NF, y=LABELS_N)
    saved(tmp_path / "t.npz", **test)
    with pytest.raises(DataError, match=message):
        loaded(tmp_path / "a.npz", test=str(tmp_path / "t.npz"))


def as_npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=INPUTS_NF, labels=LABELS_N)
    return stream.getvalue()


def as_safetensors(names: Any = ("a", "b", "c")) -> bytes:
    arrays = {"x": INPUTS_NF, "labels": LABELS_N}
    return safetensors.numpy.save(arrays, {"class_names": json.dumps(names)})


@given(data=st.data(), content=st.sampled_from([as_npz(), as_safetensors()]))
@fuzzed(60)
def test_any_file_of_arrays_is_read_or_refused_in_a_line(
    tmp_path: Path, data: st.DataObject, content: bytes
) -> None:
    path = tmp_path / ("a.npz" if content[:2] == b"PK" else "a.safetensors")
    path.write_bytes(data.draw(damaged(content) | st.binary(max_size=30)))
    try:
        parts = loaded(path)
    except DataError as error:
        told = str(error)
    else:
        told = ""
        assert len(parts.train)
    assert told.isprintable()


@pytest.mark.parametrize("names", [3, ["a", "a", "b"], ["a", "b"], {"a": 1}, None, [[1], [2], [3]]])
def test_class_names_that_are_none_are_refused_or_not_taken(tmp_path: Path, names: Any) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(as_safetensors(names))
    try:
        told = ", ".join(loaded(path).class_names)
    except DataError as error:
        told = str(error)
    assert told.isprintable()


def test_arrays_that_run_code_are_not_read(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    saved(tmp_path / "a.npz", x=np.array([Runs()] * N), labels=LABELS_N)
    with pytest.raises(DataError, match="without objects"):
        loaded(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()
