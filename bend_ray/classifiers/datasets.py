"""Data sets: ``dataset.load() -> ImageDataset`` with a training, a validation and a test part.

The parts are made once from the spec's own seed, so every stage on every machine sees the same
ones. Channel statistics come from the training part alone, and the test part is not read before
``.test`` is asked for: only the evaluation does. To add a data set: one class, and its name in
the union below.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from bend_ray.classifiers.images import ImageDataset, Images, split_rows
from bend_ray.errors import DataError
from bend_ray.masking import masked
from bend_ray.spec import Spec

if TYPE_CHECKING:
    from bend_ray.classifiers.decoding import Look, Source

NUM_DIGITS = 1797
Part = Literal["train", "validation", "test"]


class Digits(Spec):
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, 10 classes, embedded.

    Source: E. Alpaydin & C. Kaynak (1998), UCI Optical Recognition of Handwritten Digits.
    """

    kind: Literal["digits"] = "digits"
    num_train: PositiveInt = 1000
    """Training images."""
    num_validation: PositiveInt = 300
    """Validation images; the rest is the test part."""
    split_seed: NonNegativeInt = 0
    """Seed of the shuffle that makes the parts."""

    @model_validator(mode="after")
    def _some_are_left(self) -> Digits:
        if self.num_train + self.num_validation >= NUM_DIGITS:
            raise ValueError(
                f"expected num_train + num_validation below the {NUM_DIGITS} images of digits, so "
                f"that some are left for the test, got {self.num_train + self.num_validation}"
            )
        return self

    def load(self) -> ImageDataset:
        """The parts of one seeded shuffle."""
        pixels, labels = _read_digits()
        num_seen = self.num_train + self.num_validation
        # The parts as published figures have them: the training images come first.
        order = np.random.default_rng(self.split_seed).permutation(len(labels))
        cuts = np.split(order, [self.num_train, num_seen])

        train, validation = (Images.of_arrays(pixels[cut], labels[cut]) for cut in cuts[:2])
        return ImageDataset(
            train, validation, tuple("0123456789"), partial(_read_digits_at, cuts[2])
        )


class ImageFiles(Spec):
    """What all data sets of encoded images have in common: their parts, their size and mode.

    A variant says where its parts are: ``_open`` and ``_parts``.
    """

    num_train: PositiveInt | None = None
    """Training images, drawn at random; null for all that are left."""
    num_validation: PositiveInt = 5000
    """Validation images, drawn from the training part where the data set has no such part."""
    split_seed: NonNegativeInt = 0
    """Seed of the shuffle that makes the parts."""
    image_size: PositiveInt | None = None
    """Height and width to resize the central square of each image to; null: all are of one size."""
    mode: Literal["grey", "rgb"] | None = None
    """What to convert images to, grey or rgb; null where all are the one or the other."""

    def _open(self, part: Part, class_names: tuple[str, ...] | None = None) -> Source:
        """The images of a part, not decoded, with the classes of the training part."""
        raise NotImplementedError

    def _parts(self) -> tuple[Part, ...]:
        """The parts there are; a missing test part is told here, before hours of training."""
        raise NotImplementedError

    def load(self) -> ImageDataset:
        """Training and validation part, decoded; the test part when it is asked for.

        Raises:
            DataError: files that are missing or broken, or images that do not fit together.
        """
        from bend_ray.classifiers.decoding import Look, decode

        given = "validation" in self._parts()
        source = self._open("train")
        num_validation = 0 if given else self.num_validation
        train_rows, validation_rows = split_rows(
            len(source.labels_N), self.num_train, num_validation, self.split_seed
        )
        rows = np.concatenate([train_rows, validation_rows])
        pixels = decode(source, rows, Look(self.image_size, self.mode))
        labels, cut = source.labels_N[rows], len(train_rows)
        look = Look(self.image_size, self.mode, pixels.shape[1:])
        names = source.class_names
        validation = (
            _read_whole(self, "validation", names, look)
            if given
            else Images.of_arrays(pixels[cut:], labels[cut:])
        )
        return ImageDataset(
            Images.of_arrays(pixels[:cut], labels[:cut]),
            validation,
            names,
            partial(_read_whole, self, "test", names, look),
        )


def _read_whole(spec: ImageFiles, part: Part, class_names: tuple[str, ...], look: Look) -> Images:
    """All images of a part, as large and of the same mode as the training part's."""
    from bend_ray.classifiers.decoding import decode

    source = spec._open(part, class_names)
    pixels = decode(source, np.arange(len(source.labels_N)), look)
    return Images.of_arrays(pixels, source.labels_N)


def _without_credentials(uri: str) -> str:
    # What decides a population is written down in its manifest.
    if masked(uri) != uri:
        raise ValueError(
            f"expected a URI without credentials, got {masked(uri)}; give them by the "
            "environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    return uri


Uri = Annotated[str, AfterValidator(_without_credentials)]


class ImageParquet(ImageFiles):
    """Parquet files of encoded images and class numbers, as Hugging Face lays them out."""

    kind: Literal["image_parquet"] = "image_parquet"
    train: Uri
    """Training images: a Parquet file or a folder of them; a path, s3:// or gs://."""
    test: Uri
    """Test images, likewise."""
    validation: Uri | None = None
    """Validation images, likewise; null to draw them from the training part."""
    image_column: str = "image"
    """Column of the images, struct<bytes, path>."""
    label_column: str = "label"
    """Column of the class numbers, from 0."""

    def _open(self, part: Part, class_names: tuple[str, ...] | None = None) -> Source:
        from bend_ray.classifiers.parquet import Columns, open_parquet

        uri = {"train": self.train, "validation": self.validation, "test": self.test}[part]
        assert uri is not None
        return open_parquet(uri, Columns(self.image_column, self.label_column), class_names)

    def _parts(self) -> tuple[Part, ...]:
        from bend_ray.classifiers.parquet import list_files

        list_files(self.test)
        return ("train", "test") if self.validation is None else ("train", "validation", "test")


class ImageFolder(ImageFiles):
    """Folders of image files: root/train/<class>/*.png and root/test/<class>/*.png."""

    kind: Literal["image_folder"] = "image_folder"
    root: Uri
    """Folder that holds train, test and, if there is one, validation."""

    def _open(self, part: Part, class_names: tuple[str, ...] | None = None) -> Source:
        from bend_ray.classifiers.vision import open_folder

        return open_folder(self._root / part, class_names)

    def _parts(self) -> tuple[Part, ...]:
        from bend_ray.classifiers.vision import require_folder

        require_folder(self._root / "test")
        given = (self._root / "validation").is_dir()
        return ("train", "validation", "test") if given else ("train", "test")

    @property
    def _root(self) -> Path:
        return Path(self.root).expanduser().absolute()


class Torchvision(ImageFiles):
    """A classification set that torchvision knows by name."""

    kind: Literal["torchvision"] = "torchvision"
    name: Literal[
        "MNIST",
        "FashionMNIST",
        "CIFAR10",
        "CIFAR100",
        "STL10",
        "Flowers102",
        "OxfordIIITPet",
        "Food101",
    ] = "CIFAR10"
    """Which set; images of the last three differ in size and need image_size."""
    root: Uri = "~/.cache/bend_ray"
    """Folder of torchvision's files."""
    download: bool = False
    """Download what is not in root."""

    def _open(self, part: Part, class_names: tuple[str, ...] | None = None) -> Source:
        from bend_ray.classifiers.vision import open_torchvision

        return open_torchvision(self.name, part, Path(self.root).expanduser(), self.download)

    def _parts(self) -> tuple[Part, ...]:
        from bend_ray.classifiers.vision import PARTS

        return tuple(PARTS[self.name])


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``(1797, 1, 8, 8)`` in 0..16 and labels, from the file scikit-learn ships.

    Read by path: importing sklearn costs every actor more seconds than training a model.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("digits: expected scikit-learn to be installed: pip install scikit-learn")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.exists():
        raise DataError(f"digits: expected scikit-learn's file {path.name} in {path.parent}")
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, -1]


def _read_digits_at(rows: NDArray[np.int64]) -> Images:
    pixels, labels = _read_digits()
    return Images.of_arrays(pixels[rows], labels[rows])


Dataset = Annotated[Digits | ImageParquet | ImageFolder | Torchvision, Field(discriminator="kind")]
