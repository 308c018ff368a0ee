"""What people have data in: whatever holds the same examples gives the same file of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encoded, pixels_of
from PIL import Image
from sklearn.datasets import load_iris
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

import bend_ray as bend
from bend_ray.api import _dataset
from bend_ray.data.given import arrays_of, parts_of, spilled
from bend_ray.errors import BendError, ConfigError, DataError

N = 24
NAMES = np.array(["cat", "dog", "emu"])
LABELS_N = np.arange(N) % 3
INPUTS_NF = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
OF_ALL = arrays_of((INPUTS_NF, LABELS_N), "train").to_bytes()
NAMED = arrays_of((INPUTS_NF, NAMES[LABELS_N]), "train").to_bytes()


def in_a_column(package: str) -> Any:
    """A package that not everybody has."""
    return pytest.importorskip(package, reason=f"{package} is not installed")


class Pairs(Dataset[Any]):
    """Items of (input, label), or by name, as somebody's transform gives them."""

    def __init__(self, make: Callable[[int], Any] | None = None) -> None:
        self.make = make or (lambda i: (INPUTS_NF[i], int(LABELS_N[i])))

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class Named(Pairs):
    classes = NAMES.tolist()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(torch.tensor(INPUTS_NF), torch.tensor(LABELS_N), strict=True)


class OldFashioned:
    """The protocol of sequences without a length."""

    def __getitem__(self, index: int) -> Any:
        if index == N:
            raise IndexError
        return INPUTS_NF[index], LABELS_N[index]


tensors = torch.tensor(INPUTS_NF), torch.tensor(LABELS_N)
read_only = INPUTS_NF.copy()
read_only.flags.writeable = False

ALIKE: dict[str, Any] = {
    "tensors": tensors,
    "lists": (INPUTS_NF.tolist(), LABELS_N.tolist()),
    "a list of both": [INPUTS_NF, LABELS_N],
    "pairs": list(zip(INPUTS_NF, LABELS_N, strict=True)),
    "lists of tensors": ([*tensors[0]], [*tensors[1]]),
    "float64": (INPUTS_NF.astype(np.float64), LABELS_N),
    "gradients": (tensors[0].clone().requires_grad_(), tensors[1]),
    "objects": (INPUTS_NF.astype(object), LABELS_N.astype(object)),
    "big-endian": (INPUTS_NF.astype(">f4"), LABELS_N.astype(">i2")),
    "not contiguous": (np.repeat(INPUTS_NF, 2, axis=0)[::2], np.asfortranarray(LABELS_N[:, None])),
    "read-only": (read_only, LABELS_N),
    "labels as floats": (INPUTS_NF, LABELS_N.astype(np.float32)),
    "by name": {"features": INPUTS_NF, "target": LABELS_N},
    "a generator": (pair for pair in zip(INPUTS_NF, LABELS_N, strict=True)),
    "a data set": Pairs(),
    "items by name": Pairs(lambda i: {"x": torch.tensor(INPUTS_NF[i]), "y": tensors[1][i]}),
    "a stream": Stream(),
    "an old data set": OldFashioned(),
    "tensors in a data set": TensorDataset(tensors[0].clone().requires_grad_(), tensors[1]),
    "a subset": Subset(Pairs(lambda i: (INPUTS_NF[i % N], LABELS_N[i % N])), range(N)),
    "a loader": DataLoader(Pairs(), batch_size=5, shuffle=True),
    "a loader of a stream": DataLoader(Stream(), batch_size=5),
}
ALIKE_NAMED: dict[str, Any] = {
    "texts": (INPUTS_NF, NAMES[LABELS_N].tolist()),
    "bytes": (INPUTS_NF, NAMES[LABELS_N].astype("S")),
    "columns of texts": (INPUTS_NF, NAMES[LABELS_N].astype(object)[:, None]),
    "a torchvision set": Named(),
    "of a subset": Subset(Named(), range(N)),
    "of a loader": DataLoader(Named()),
    "of a sampler": DataLoader(Named(), sampler=SubsetRandomSampler(range(N))),
}


def file_of(given: Any) -> bytes:
    return arrays_of(given, "train").to_bytes()


def content(given: Any) -> dict[str, Any]:
    """Inputs, whatever they are called, and the names of the labels."""
    arrays = arrays_of(given, "train")
    (inputs,) = arrays.inputs.values()
    labels = [arrays.class_names[code] for code in arrays.labels_N]
    return {"inputs": inputs.tolist(), "labels": labels, "named": arrays.named}


@pytest.mark.parametrize("name", ALIKE)
def test_the_same_examples_in_anything_are_the_same(name: str) -> None:
    expected = {"inputs": INPUTS_NF.tolist(), "labels": [*map(str, LABELS_N)], "named": False}
    assert content(ALIKE[name]) == expected


@pytest.mark.parametrize("name", ALIKE_NAMED)
def test_classes_are_called_as_they_were(name: str) -> None:
    found = content(ALIKE_NAMED[name])
    # A sampler's are in the order of its own.
    rows = [INPUTS_NF.tolist().index(row) for row in found["inputs"]]
    assert sorted(rows) == list(range(N))
    assert found["labels"] == NAMES[LABELS_N[rows]].tolist()
    assert found["named"]


def test_a_loader_with_a_sampler_of_some_gives_those() -> None:
    loader = DataLoader(Pairs(), sampler=SubsetRandomSampler([3, 5, 8]))
    assert sorted(content(loader)["labels"]) == sorted(map(str, LABELS_N[[3, 5, 8]]))


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_short_floats_are_read_as_they_are(name: str) -> None:
    short = tensors[0].to(getattr(torch, name))
    for given in ((short, LABELS_N), TensorDataset(short, tensors[1])):
        assert content(given)["inputs"] == short.float().tolist()


def test_pixels_and_tokens_keep_their_type() -> None:
    for kind, kept in (("uint8", "uint8"), ("int32", "int64"), ("bool", "float32")):
        values = (np.abs(INPUTS_NF) * 2).astype(kind)
        arrays = arrays_of((values, LABELS_N), "train")
        assert arrays.inputs["inputs"].dtype == kept
        np.testing.assert_array_equal(arrays.inputs["inputs"], values)


def test_pictures_are_what_their_files_would_be(tmp_path: Path) -> None:
    pictures = [Image.fromarray(pixels_of(i)[:, :, ::-1]) for i in range(N)]
    odd = [p.convert(m) for p, m in zip(pictures, ["RGB", "P", "RGBA", "CMYK"] * 6, strict=True)]
    for number, picture in enumerate(pictures):
        folder = tmp_path / str(NAMES[number % 3])
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{number:02}.png")
    expected = np.stack([np.asarray(p).transpose(2, 0, 1) for p in pictures])
    for given in ((pictures, LABELS_N), Pairs(lambda i: (pictures[i], int(LABELS_N[i])))):
        np.testing.assert_array_equal(arrays_of(given, "train").inputs["inputs"], expected)
    assert arrays_of((odd, LABELS_N), "train").inputs["inputs"].shape == expected.shape
    one, other = (ImageFolder(str(tmp_path), transform=t) for t in (None, PILToTensor()))
    assert file_of(one) == file_of(other)
    assert arrays_of(one, "train").class_names == ("cat", "dog", "emu")


def test_scikit_learns_bunches(tmp_path: Path) -> None:
    iris = load_iris()
    arrays = arrays_of(iris, "train")
    assert arrays.class_names == tuple(iris.target_names)
    np.testing.assert_array_equal(arrays.inputs["inputs"], iris.data.astype(np.float32))
    assert arrays.to_bytes() == file_of((iris.data, iris.target_names[iris.target]))


@pytest.mark.parametrize("package", ["pandas", "polars", "pyarrow"])
def test_frames(package: str) -> None:
    library = in_a_column(package)
    make = library.table if package == "pyarrow" else library.DataFrame
    columns = {name: INPUTS_NF[:, i] for i, name in enumerate("abcd")}
    assert file_of(make({**columns, "label": LABELS_N})) == OF_ALL
    assert file_of(make({"y": NAMES[LABELS_N].tolist(), **columns})) == NAMED
    assert file_of((make(columns), LABELS_N)) == OF_ALL
    lists = make({"v": INPUTS_NF.tolist(), "label": LABELS_N})
    assert content(lists)["inputs"] == INPUTS_NF.tolist()
    beside = arrays_of(make({"inputs": INPUTS_NF.tolist(), "id": LABELS_N, "y": LABELS_N}), "train")
    assert {name: its.shape for name, its in beside.inputs.items()} == {
        "inputs": (N, 4),
        "numbers": (N, 1),
    }
    swapped = dict(sorted(columns.items(), reverse=True))
    with pytest.raises(DataError, match=r"^test: expected columns .* a, b, c, d, got d, c, b, a$"):
        parts_of({"train": (make(columns), LABELS_N), "test": (make(swapped), LABELS_N)})


def test_frames_of_pandas_may_be_shuffled_and_of_categories() -> None:
    pandas = in_a_column("pandas")
    frame = pandas.DataFrame(INPUTS_NF, columns=list("abcd"))
    frame["label"] = pandas.Categorical(NAMES[LABELS_N])
    order = np.random.default_rng(0).permutation(N)
    arrays = arrays_of(frame.iloc[order], "train")
    np.testing.assert_array_equal(arrays.inputs["inputs"], INPUTS_NF[order])
    assert arrays.class_names == ("cat", "dog", "emu")
    for wrong in (
        pandas.concat([frame, frame[["a"]]], axis=1),
        frame.drop(columns="label"),
        frame.assign(a="text"),
        frame.assign(a=[1, "a"] * (N // 2)),
        frame.assign(a=pandas.array([1, None] * (N // 2), dtype="Int64")),
        frame.assign(label=pandas.array(["u", None] * (N // 2))),
    ):
        refused_in_a_line(wrong)


def test_hugging_face_sets_and_their_folders(tmp_path: Path) -> None:
    datasets = in_a_column("datasets")
    features = {"v": datasets.Sequence(datasets.Value("float32")), "text": datasets.Value("string")}
    features |= {"label": datasets.ClassLabel(names=NAMES.tolist())}
    columns = {"v": INPUTS_NF.tolist(), "text": ["a"] * N, "label": LABELS_N.tolist()}
    whole = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    shown = whole.with_format("torch", columns=["v", "label"])
    expected = {"inputs": INPUTS_NF.tolist(), "labels": NAMES[LABELS_N].tolist(), "named": True}
    assert content(shown) == expected
    few = whole.remove_columns("text").select(range(4, 9))
    assert content(few)["inputs"] == INPUTS_NF[4:9].tolist()
    both = datasets.DatasetDict(train=whole.remove_columns("text"), test=few)
    both.save_to_disk(str(tmp_path / "both"), num_shards={"train": 3, "test": 1})
    for name in ("a", "b"):
        given = both if name == "a" else tmp_path / "both"
        spec = _dataset(given, None, None, str(tmp_path / name))
        assert {Path(spec[part]).name for part in ("train", "test")} == {
            Path(spilled(arrays_of(each, ""), str(tmp_path))).name for each in (both["train"], few)
        }
    assert content(tmp_path / "both/train") == expected
    refused_in_a_line(whole)
    refused_in_a_line(tmp_path / "both")


def test_hugging_face_pictures(tmp_path: Path) -> None:
    datasets = in_a_column("datasets")
    files = [tmp_path / f"{i}.png" for i in range(N)]
    for number, file in enumerate(files):
        file.write_bytes(encoded(pixels_of(number)))
    columns = {"image": [str(file) for file in files], "label": LABELS_N.tolist()}
    named = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    pixels = arrays_of(named, "train").inputs["image"]
    np.testing.assert_array_equal(
        pixels, np.stack([pixels_of(i).transpose(2, 0, 1) for i in range(N)])
    )
    files[3].write_bytes(b"none")
    refused_in_a_line(named)


def fails(index: int) -> Any:
    if index == 5:
        raise ValueError("broken\nfile")
    return INPUTS_NF[index], 0


def exhausted() -> Iterator[Any]:
    pairs = (pair for pair in zip(INPUTS_NF, LABELS_N, strict=True))
    list(pairs)
    return pairs


REFUSED: dict[str, tuple[Any, str]] = {
    "exhausted": (exhausted(), "got none; an iterator gives them once"),
    "its own code fails": (Pairs(fails), r"got ValueError: broken \(test_given.py, line \d+\)"),
    "triples": (Pairs(lambda i: (INPUTS_NF[i], 0, 1)), r"pairs of \(input, label\), got a tuple"),
    "rows": (INPUTS_NF[:, :2], r"pairs of \(input, label\), got a ndarray"),
    "a key that is missing": (
        Pairs(lambda i: {"x": 1, "y": 2} if i else {"x": 1}),
        "labels called",
    ),
    "texts": (Pairs(lambda i: ("text", 0)), "expected numbers, got <U4"),
    "soft labels": (Pairs(lambda i: (INPUTS_NF[i], np.eye(3)[0])), "give the argmax"),
    "sparse tensors": ((tensors[0].to_sparse(), LABELS_N), "to_dense"),
    "sizes": ([(Image.new("L", (2, 2 + i % 2)), 0) for i in range(N)], "several shapes"),
    "deep pictures": ([(Image.new("F", (2, 2)), 0) for _ in range(N)], "mode F"),
    "a file": ("table.csv", "expected a file that ends in .npz"),
    "none": (None, "'NoneType' object is not iterable"),
    "a function": (fails, "'function' object is not iterable"),
    "labels alone": ({"y": LABELS_N}, "expected inputs beside labels"),
    "no labels": ({"x": INPUTS_NF}, "labels called labels or label or y or target, got x"),
    "an input called labels": (({"labels": INPUTS_NF}, LABELS_N), "got labels; rename it"),
    "an input of no name": (({0: INPUTS_NF}, LABELS_N), "got 0; rename it"),
}


def refused_in_a_line(given: Any, message: str = "") -> None:
    with pytest.raises(DataError, match=f"^train.*{message}") as caught:
        arrays_of(given, "train")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_examples_is_refused_in_a_line(name: str) -> None:
    refused_in_a_line(*REFUSED[name])


def test_names_of_other_parts_are_refused() -> None:
    pair = (INPUTS_NF, LABELS_N)
    with pytest.raises(DataError, match="called train, validation and test, got val; rename"):
        parts_of({"train": pair, "val": pair})
    with pytest.raises(ConfigError, match="no test beside it"):
        _dataset({"train": pair}, pair, None, "unused")


def test_examples_are_spilled_once_by_content(tmp_path: Path) -> None:
    store = str(tmp_path)
    first = _dataset((INPUTS_NF, LABELS_N), (tensors[0] + 1, tensors[1]), None, store)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "datasets").iterdir()}
    assert len(files) == 2
    again = _dataset(DataLoader(Pairs()), (INPUTS_NF + 1, LABELS_N.tolist()), None, store)
    assert again == first
    assert {file: file.stat().st_mtime_ns for file in files} == files
    other = _dataset((INPUTS_NF + 2, LABELS_N), None, None, store)
    assert other["train"] != first["train"]


def test_a_file_of_arrays_stays_where_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=INPUTS_NF, y=LABELS_N)
    spec = _dataset(tmp_path / "a.npz", (INPUTS_NF, LABELS_N), None, str(tmp_path / "store"))
    assert spec["train"] == str(tmp_path / "a.npz")
    assert Path(spec["test"]).parent == tmp_path / "store/datasets"


def net(num_classes: int, input_shape: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Linear(*input_shape, num_classes)


SMALL = {"seeds.protocol.trunks": 2, "samples.count": 3, "autoencoder.model.latent_size": 4}
SMALL |= {"autoencoder.training.steps": 20, "generator.training.steps": 20}


@pytest.mark.slow
def test_a_run_over_a_users_data_and_again(tmp_path: Path) -> None:
    kept = SimpleNamespace(store=str(tmp_path), settings=SMALL | {"evaluation.rivals": []})
    given = {"train": (np.tile(INPUTS_NF, (5, 1)), NAMES[np.tile(LABELS_N, 5)])}
    run = bend.fit(net, given, epochs=1, **vars(kept))
    assert run.evaluation.part == "validation"
    again = bend.fit(net, *given.values(), epochs=1, **vars(kept))
    assert again.fingerprint == run.fingerprint
    assert run.config.dataset.load().class_names == ("cat", "dog", "emu")


@pytest.mark.parametrize(
    "given",
    [
        (np.where(INPUTS_NF > 1, np.nan, INPUTS_NF), LABELS_N),
        (INPUTS_NF, LABELS_N * 0),
        (INPUTS_NF[:3], LABELS_N[:3]),
        (INPUTS_NF, LABELS_N[:-1]),
        "s3://KEY:SECRET@bucket/a.npz",
        None,
    ],
)
def test_of_what_is_refused_nothing_is_committed(tmp_path: Path, given: Any) -> None:
    with pytest.raises(BendError) as caught:
        bend.fit(net, given, epochs=1, store=tmp_path, settings=SMALL)
    assert str(caught.value).isprintable()
    assert "SECRET" not in str(caught.value)
    assert not list(tmp_path.rglob("manifest.json"))
