"""Data sets: ``dataset.load() -> Parts`` with a training, a validation and a test part.

The parts are made once from the spec's own seed, so every stage on every machine sees the same
ones. Channel statistics come from the training part alone, and the test part is not read before
``.test`` is asked for: only the evaluation does. To add a data set: one class, and its name in
the union below.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, final

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from bend_ray.data.columns import Kind
from bend_ray.data.examples import Decoding, Examples, Parts, itself, split_rows
from bend_ray.data.keeping import kept_back, without
from bend_ray.data.splits import Random, Split
from bend_ray.errors import DataError
from bend_ray.imported import Imported
from bend_ray.spec import Incidental, Spec
from bend_ray.storage.masking import masked
from bend_ray.tasks import Classification, Regression, Task

if TYPE_CHECKING:
    from bend_ray.data.arrays import Arrays
    from bend_ray.data.decoding import Look
    from bend_ray.data.files import Files, Part
    from bend_ray.data.sources import Source
    from bend_ray.data.streaming import Room, Streamed, Windows

logger = logging.getLogger(__name__)

PARTS: tuple[Part, ...] = ("train", "validation", "test")
NUM_DIGITS = 1797
GIGABYTE = 1e9
MOST_DRAWN = 5000
"""Validation examples that are drawn where nobody says how many."""


class LabelledExamples(Spec):
    """What a data set does."""

    split_seed: NonNegativeInt = 0
    """Seed of the shuffle that makes the parts; repeats count on from it."""

    num_calibration: NonNegativeInt = 0
    """Validation examples kept back, drawn at random: nothing trains, chooses or scales by them.

    By them sets of classes and refusals get their guarantees.
    """
    left_out: tuple[str, ...] = ()
    """Classes that no model is shown; evaluation.ood of kind left_out asks about them."""

    @final
    def load(self, room: Room | None = None) -> Parts:
        """Its parts; DataError where they cannot be had.

        Image files that decoded take more than ``room`` are streamed; None: that of this machine.
        """
        parts = self._load(room)
        parts = without(parts, self.left_out) if self.left_out else parts
        return kept_back(parts, self.num_calibration, self.split_seed)

    def _load(self, room: Room | None) -> Parts:
        """All of them."""
        raise NotImplementedError

    def identified(self) -> Self:
        """The same data set, with what tells its content from any other's.

        DataError where its files cannot be read.
        """
        return self

    def _open(self, part: Part) -> Any:
        """The examples of a part: images, not decoded, or arrays."""
        raise NotImplementedError

    def _known_parts(self) -> tuple[Part, ...]:
        """The parts to open before any training."""
        raise NotImplementedError


class Digits(LabelledExamples):
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, 10 classes, embedded.

    Source: E. Alpaydin & C. Kaynak (1998), UCI Optical Recognition of Handwritten Digits.
    """

    kind: Literal["digits"] = "digits"
    num_train: PositiveInt = 1000
    """Training images."""
    num_validation: PositiveInt = 300
    """Validation images; the rest is the test part."""

    @model_validator(mode="after")
    def _some_are_left(self) -> Digits:
        if self.num_train + self.num_validation >= NUM_DIGITS:
            raise ValueError(
                f"expected num_train + num_validation below the {NUM_DIGITS} images of digits, so "
                f"that some are left for the test, got {self.num_train + self.num_validation}"
            )
        return self

    def _load(self, room: Room | None) -> Parts:
        """The parts of one seeded shuffle."""
        # The parts as published figures have them: the training images come first.
        order = np.random.default_rng(self.split_seed).permutation(NUM_DIGITS)
        train, validation, test = np.split(order, np.cumsum([self.num_train, self.num_validation]))
        return Parts(
            _digits_at(train),
            _digits_at(validation),
            tuple("0123456789"),
            partial(_digits_at, test),
            # As they were made: 4x4 areas of scans, light on dark.
            Decoding(background="black", resampling="box", pixel_max=16),
        )


class DrawnParts(LabelledExamples):
    """A training part that is drawn from what there is, as the validation part may be."""

    num_train: PositiveInt | None = None
    """Training examples, drawn at random; null for all that are left."""
    duplicates: Annotated[Literal["tell", "refuse"], Incidental()] = "tell"
    """What to do where two parts have an example in common."""


class ImageFiles(DrawnParts):
    """What all data sets of image files have in common: their parts, their size and mode.

    A variant gives the ``Source`` of a part, and says which there are.
    """

    num_validation: PositiveInt = 5000
    """Validation images, drawn from the training part where the data set has no such part."""
    image_size: PositiveInt | None = None
    """Height and width to resize the central square of each image to; null: all are of one size."""
    mode: Literal["grey", "rgb"] | None = None
    """What to convert images to, grey or rgb; null where all are the one or the other."""
    background: Literal["white", "black"] = "white"
    """What transparent parts of images are laid on."""
    window: PositiveInt | None = None
    """Training images that are in memory together while models train; null for 256 MB of them.

    Each pass goes through a larger part window by window, in a new order; models shuffle within
    one. Means and deviations of channels are those of as many images.
    """
    memory: Annotated[PositiveFloat, Incidental()] | None = None
    """Gigabytes that decoded images may take; null for a quarter of a node's memory.

    A larger set is streamed: workers decode images as they are needed, two windows at a time, and
    train the same models. It is not searched for duplicates.
    """

    def _load(self, room: Room | None) -> Parts:
        """Training and validation part, decoded; the test part when it is asked for.

        Of the test part labels, classes and headers are read at once, and no pixels: what is
        wrong with them is told before the training.

        DataError where files are missing or broken, or images do not fit together.
        """
        from bend_ray.data.decoding import decode
        from bend_ray.data.sources import by_name, check_classes
        from bend_ray.data.streaming import Room, Streamed, windows_of

        # So that the test part is later what it is now.
        known = self.identified()
        sources = {part: known._open(part) for part in known._known_parts()}
        names, named = sources["train"].class_names, sources["train"].named
        for part, source in sources.items():
            sources[part] = by_name(source, f"the {part} part", names, named)
        check_classes(sources)
        train, given = sources["train"], sources.get("validation")
        drawn = 0 if given else self.num_validation
        rows, held_rows = split_rows(len(train.labels_N), self.num_train, drawn, self.split_seed)
        held = (given, np.arange(len(given.labels_N))) if given else (train, held_rows)
        look = self._look(decode(train, rows[:1], self._look())[0].shape[1:])
        windows = windows_of(train, rows, look, self.window, self.split_seed)
        room = self._room_of_streamed(room or Room.here(), look, len(rows) + len(held[1]), windows)
        load_test = partial(_read_test, known, look, names, named, room)
        if room is not None:
            streamed = Streamed(train, rows, look, room.ahead, windows)
            others = Streamed(*held, look, room.ahead)
            return Parts(streamed, others, names, load_test, look.decoding)
        pixels, digests = decode(train, np.concatenate([rows, held_rows]), self._look())
        cut = len(rows)
        parts = {"train": digests[:cut], "validation": digests[cut:]}
        validation = Examples.of_arrays(pixels[cut:], train.labels_N[held_rows])
        if given:
            validation, parts["validation"] = _decoded(given, look)
        if "test" in sources:
            _survey(sources["test"], look, parts, self.duplicates == "refuse")
        resident = Examples.of_arrays(pixels[:cut], train.labels_N[rows], windows)
        return Parts(resident, validation, names, load_test, look.decoding)

    def _room_of_streamed(
        self, room: Room, look: Look, num_images: int, windows: Windows
    ) -> Room | None:
        """How images are streamed; None where decoded they fit.

        DataError where not even two windows do.
        """
        most = room.num_bytes if self.memory is None else self.memory * GIGABYTE
        assert look.shape is not None
        image_bytes = math.prod(look.shape)
        if num_images * image_bytes <= most:
            return None
        if 2 * windows.images * image_bytes > most:
            raise DataError(
                f"dataset.memory: expected {2 * windows.images * image_bytes / GIGABYTE:.2g} GB at "
                f"least, for two windows of {windows.images} images, got {most / GIGABYTE:.2g}; "
                "raise it, or lower dataset.window"
            )
        if self.duplicates == "refuse":
            raise DataError(
                "dataset.duplicates: expected tell where images are streamed, got refuse; search "
                "the files for them yourself, or raise dataset.memory"
            )
        logger.info(
            "%-12s %.3g GB decoded, more than %.3g: streamed, in windows of %d images",
            *("dataset", num_images * image_bytes / GIGABYTE, most / GIGABYTE, windows.images),
        )
        return room

    def _look(self, shape: tuple[int, ...] | None = None) -> Look:
        from bend_ray.data.decoding import Look

        size = None if self.image_size is None else (self.image_size, self.image_size)
        return Look(size, self.mode, Decoding(background=self.background), shape)


def _survey(test: Source, look: Look, digests: dict[str, list[bytes]], refuse: bool) -> None:
    """Read the headers of the test part, and tell of what parts have in common."""
    from bend_ray.data.decoding import survey
    from bend_ray.data.files import READ_WHOLE_BYTES
    from bend_ray.data.sources import check_overlap

    if test.num_bytes <= READ_WHOLE_BYTES:
        digests = digests | {"test": survey(test, look)}
    check_overlap(digests, refuse)


def _read_test(
    spec: ImageFiles, look: Look, class_names: tuple[str, ...], named: bool, room: Room | None
) -> Examples | Streamed:
    """The test part, as large and of the same mode and classes as the training part.

    Streamed where the others are, into ``room``; None: decoded.
    """
    from bend_ray.data.sources import by_name
    from bend_ray.data.streaming import Streamed

    test = by_name(spec._open("test"), "the test part", class_names, named)
    if room is None:
        return _decoded(test, look)[0]
    return Streamed(test, np.arange(len(test.labels_N)), look, room.ahead)


def _decoded(source: Source, look: Look) -> tuple[Examples, list[bytes]]:
    from bend_ray.data.decoding import decode

    pixels, digests = decode(source, np.arange(len(source.labels_N)), look)
    return Examples.of_arrays(pixels, source.labels_N), digests


def _location(uri: str) -> str:
    # What decides a population is written down in its manifest.
    if masked(uri) != uri:
        raise ValueError(
            f"expected a URI without credentials, got {masked(uri)}; give them by the "
            "environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS)"
        )
    return uri


Uri = Annotated[str, AfterValidator(_location), Incidental()]
Uris = Annotated[Uri | Annotated[tuple[Uri, ...], Field(min_length=1)], Incidental()]


class Content(Spec):
    """What tells the files of a data set from any others: a digest a part."""

    train: str | None = None
    """Of the training part."""
    validation: str | None = None
    """Of the validation part, where it is not drawn from the training part."""
    test: str | None = None
    """Of the test part; decides the evaluation alone."""


class Located(LabelledExamples):
    """Files whose place is a setting, and whose content is their identity."""

    content: Content = Content()
    """Digests of the files, noted when they are first read; of those given, others are refused."""
    _names_tell: ClassVar[bool] = False
    """Whether the files' names mean something."""

    def _files(self, part: Part) -> Files:
        """The files of a part."""
        raise NotImplementedError

    def _read(self, files: Files) -> Any:
        """The examples in files of a part."""
        raise NotImplementedError

    def _known_parts(self) -> tuple[Part, ...]:
        """The parts of which there are files."""
        return tuple(part for part in PARTS if getattr(self, part) is not None)

    def identified(self) -> Self:
        """The same data set, with the digests of what is there now, unless it has some."""
        given = self.content.model_dump(exclude_none=True)
        unknown = set(self._known_parts()) - set(given)
        digests = {part: self._files(part).digest(self._names_tell) for part in unknown}
        return self.model_copy(update={"content": Content(**given, **digests)})

    def _open(self, part: Part) -> Any:
        """What is in the files of a part, which are those that were meant."""
        files = self._files(part)
        meant = getattr(self.content, part)
        files.expect(meant, f"dataset.content.{part}", self._names_tell)
        return self._read(files)


class ImageParquet(ImageFiles, Located):
    """Parquet files of encoded images and classes, as Hugging Face lays them out."""

    kind: Literal["image_parquet"] = "image_parquet"
    train: Uris
    """Training images: Parquet files, a folder of them, a pattern (data/train-*.parquet), or a list
    of these; paths, s3:// or gs://. Of a folder with files of several parts its own are taken."""
    test: Uris
    """Test images, likewise."""
    validation: Uris | None = None
    """Validation images, likewise; null to draw them from the training part."""
    image_column: str = "image"
    """Column of the images, struct<bytes, path>."""
    label_column: str = "label"
    """Column of the classes: numbers, or names."""
    class_names: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """What classes 0, 1, ... are called in files that do not say it."""

    def _files(self, part: Part) -> Files:
        from bend_ray.data.parquet import ENDINGS

        return _found(getattr(self, part), part, ENDINGS)

    def _read(self, files: Files) -> Source:
        from bend_ray.data.parquet import open_parquet

        return open_parquet(files, self.image_column, self.label_column, self.class_names)


class ImageFolder(ImageFiles, Located):
    """Folders of image files: root/train/<class>/*.png and root/test/<class>/*.png."""

    kind: Literal["image_folder"] = "image_folder"
    root: Uri
    """Folder that holds train, test and, if there is one, validation (or val); a path or a URI."""
    _names_tell: ClassVar[bool] = True

    def _files(self, part: Part) -> Files:
        from bend_ray.data.folders import find_folder, part_folders

        return find_folder(part_folders(self.root)[part])

    def _read(self, files: Files) -> Source:
        from bend_ray.data.folders import open_folder

        return open_folder(files)

    def _known_parts(self) -> tuple[Part, ...]:
        from bend_ray.data.folders import part_folders

        return tuple(part_folders(self.root))


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
    download: Annotated[bool, Incidental()] = False
    """Download what is not in root."""

    def _open(self, part: Part) -> Source:
        from bend_ray.data.vision import open_torchvision

        return open_torchvision(self.name, part, Path(self.root).expanduser(), self.download)

    def _look(self, shape: tuple[int, ...] | None = None) -> Look:
        from bend_ray.data.vision import SETS_OF_FILES

        look = super()._look(shape)
        # Of such a set a few images may be grey, which torchvision makes colour as well.
        mixed = self.mode is None and self.name in SETS_OF_FILES
        return replace(look, mode="rgb") if mixed else look

    def _known_parts(self) -> tuple[Part, ...]:
        from bend_ray.data.vision import PARTS

        # The test part is whole where the others are, and is left closed.
        return tuple(part for part in PARTS[self.name] if part != "test")


class ArrayParts(DrawnParts):
    """What all data sets of arrays have in common."""

    task: Task | None = None
    """What is learnt; null: classes, unless labels are fractions."""
    standardise: bool = True
    """Bring floats and pixels to zero mean and unit variance a channel; whole numbers stay."""
    num_validation: PositiveInt | None = None
    """Validation examples, drawn from the training part where no such part is given; null: a fifth
    of it, at most 5,000."""


class ArrayFiles(ArrayParts, Located):
    """Arrays of any shape in .npz or .safetensors files: one an input, and one of labels.

    Several inputs go to the network by name. Text and numbers as labels are mapped to classes.
    """

    kind: Literal["arrays"] = "arrays"
    train: Uris
    """Training examples: a file, a pattern, or a list of these; paths, s3:// or gs://."""
    test: Uris | None = None
    """Test examples, likewise; null: there are none, and figures are of the validation part."""
    validation: Uris | None = None
    """Validation examples, likewise; null to draw them from the training part."""
    labels: str | None = None
    """Name of the array of labels, all others are inputs; null: labels, label, y or target."""
    class_names: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """What labels 0, 1, ... are called in files that do not say it."""

    def _files(self, part: Part) -> Files:
        from bend_ray.data.arrays import ENDINGS

        return _found(getattr(self, part), part, ENDINGS)

    def _read(self, files: Files) -> Arrays:
        from bend_ray.data.arrays import read_arrays

        return read_arrays(files, self.labels, self.class_names, self.task)

    def _load(self, room: Room | None) -> Parts:
        """Training and validation part; the test part is looked through, and read when asked for.

        DataError where files are missing or broken, or examples do not fit together.
        """
        known = self.identified()
        return split_arrays({p: partial(known._open, p) for p in self._known_parts()}, self)


class ImportedDataset(Imported, ArrayParts):
    """One's own: a function that gives a training part, or train, validation and test by name.

    Each is anything that ``bend_ray.fit`` takes: (inputs, labels), a frame, a torch data set.
    """

    def _load(self, room: Room | None) -> Parts:
        """What the function gives; DataError where these are no parts, or do not fit together."""
        from bend_ray.data.given import parts_of, together

        given = self.make()
        found = parts_of(together(given) or {"train": given}, f"{self.target}: ")
        return split_arrays({part: partial(itself, its) for part, its in found.items()}, self)


class Table(DrawnParts, Located):
    """Rows of numbers, truth values, dates and categories, some of them missing, and targets.

    Files are Parquet, CSV or Arrow. Columns' types are inferred and shown, or given; what becomes
    of them is fitted on the training part.
    """

    kind: Literal["table"] = "table"
    train: Uris
    """Training rows: files, a folder, a pattern or a list of these; paths, s3:// or gs://."""
    test: Uris | None = None
    """Test rows, likewise; null: see test_share and folds."""
    validation: Uris | None = None
    """Validation rows, likewise; null to draw them from the training part."""
    target: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Column of the classes or numbers to tell, or several of numbers; null: labels, label, y or
    target."""
    task: Task | None = None
    """What is learnt; null: classes where the target holds texts or few whole numbers."""
    columns: Mapping[str, Kind | Literal["ignore"]] = {}
    """What columns hold, of those that are not what they look like: number, boolean, date,
    category, or ignore."""
    num_validation: PositiveInt | None = None
    """Validation rows, drawn from the training part; null: a fifth of it, at most 5,000."""
    test_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the rows drawn as the test part, where none is given; 0: figures are of the
    validation part."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Draw one of so many test parts instead: split_seed counts through them, so that as many
    repeats are a cross-validation."""
    split: Split = Random()
    """How parts are drawn."""

    def _files(self, part: Part) -> Files:
        from bend_ray.data.tables import ENDINGS

        return _found(getattr(self, part), part, ENDINGS)

    def _read(self, files: Files) -> Any:
        from bend_ray.data.tables import read_table

        return read_table(files)

    def _load(self, room: Room | None) -> Parts:
        """All parts, looked through; the test part is read again when it is asked for.

        DataError where files are missing or broken, or rows do not fit together.
        """
        from bend_ray.data.tables import load

        known = self.identified()
        return load(self, {part: partial(known._open, part) for part in self._known_parts()})


def _found(uris: Uris, part: Part, endings: Sequence[str]) -> Files:
    from bend_ray.data.files import find_files

    return find_files([uris] if isinstance(uris, str) else uris, part, endings, f"dataset.{part}")


def num_drawn(asked: int | None, num_examples: int) -> int:
    """Validation examples drawn of so many: as many as asked, or a fifth, at most 5,000."""
    return asked or max(1, min(MOST_DRAWN, num_examples // 5))


def split_arrays(read: Mapping[Part, Callable[[], Arrays]], spec: ArrayParts) -> Parts:
    """The parts of a data set of arrays, split as ``spec`` says.

    ``read`` has what gives each part that there is, the training part among them. DataError where
    there are too few examples, also of a class, or one class alone.
    """
    from bend_ray.data.sources import check_overlap

    read_test = read.get("test")
    whole, count = read["train"](), 0
    if not (given := "validation" in read):
        count = num_drawn(spec.num_validation, len(whole.labels_N))
    rows, others = split_rows(len(whole.labels_N), spec.num_train, count, spec.split_seed)
    all_stay = given and spec.num_train is None
    train = whole if all_stay else whole.take(np.sort(rows) if given else rows)
    validation = read["validation"]().like(whole, "validation") if given else whole.take(others)
    parts: dict[str, Arrays] = {"train": train, "validation": validation}
    if read_test is not None:
        parts["test"] = read_test().like(whole, "test")
    examples, names = train.examples(), whole.class_names
    task = spec.task or (Regression() if train.labels_N.ndim > 1 else Classification())
    if isinstance(task, Classification):
        _check_classes({part: its.labels_N for part, its in parts.items()}, names)
    check_overlap({p: its.row_digests() for p, its in parts.items()}, spec.duplicates == "refuse")
    load_test = None if read_test is None else partial(_test_of, read_test, whole.take(rows[:0]))
    return Parts(
        *(examples, validation.examples(), names, load_test),
        standardise=spec.standardise,
        task=task.fitted(examples.labels_N),
    )


def _check_classes(labels: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> None:
    from bend_ray.data.sources import check_counts

    if (examples := len(labels["train"])) < 2 * (classes := len(set(labels["train"]))):
        raise DataError(
            f"dataset: expected two training examples of a class on average, got {examples} of "
            f"{classes} classes; give more, or labels that are classes"
        )
    check_counts(labels, names)


def _test_of(read: Callable[[], Arrays], like: Arrays) -> Examples:
    return read().like(like, "test").examples()


@cache
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


def _digits_at(rows: NDArray[np.int64]) -> Examples:
    pixels, labels = _read_digits()
    return Examples.of_arrays(pixels[rows], labels[rows])


Dataset = Annotated[
    Digits | ImageParquet | ImageFolder | Torchvision | ArrayFiles | Table | ImportedDataset,
    Field(discriminator="kind"),
]
