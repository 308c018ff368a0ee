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
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, final, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from bend_ray.data import arrays, images, tables
from bend_ray.data.columns import Kind
from bend_ray.data.decoding import Look, decode, survey
from bend_ray.data.examples import Decoding, Examples, Parts, itself
from bend_ray.data.files import READ_WHOLE_BYTES, Files, Part, find_files
from bend_ray.data.given import parts_of, together
from bend_ray.data.sources import Labelled, Source, check_classes, check_overlap
from bend_ray.data.splits import ByTime, Random, Split, split_rows
from bend_ray.data.streaming import RESIDENT_SHARE, Room, Streamed, Windows, windows_of
from bend_ray.errors import DataError
from bend_ray.imported import Imported
from bend_ray.process.computing import usable_memory
from bend_ray.spec import Incidental, Spec
from bend_ray.storage.masking import masked
from bend_ray.tasks import Task

logger = logging.getLogger(__name__)

NUM_DIGITS = 1797
GIGABYTE = 1e9


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
        parts = self._load(room).without(self.left_out)
        return parts.kept_back(self.num_calibration, self.split_seed)

    def _load(self, room: Room | None) -> Parts:
        raise NotImplementedError

    def identified(self) -> Self:
        """The same data set, with what tells its content from any other's.

        DataError where its files cannot be read.
        """
        return self


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
        # The parts as published figures have them: the training images come first.
        order = np.random.default_rng(self.split_seed).permutation(NUM_DIGITS)
        train, validation, test = np.split(order, np.cumsum([self.num_train, self.num_validation]))
        # As they were made: 4x4 areas of scans, light on dark.
        decoding = Decoding(background="black", resampling="box", pixel_max=16)
        parts = _digits_at(train), _digits_at(validation)
        return Parts(*parts, tuple("0123456789"), partial(_digits_at, test), decoding)


def _digits_at(rows: NDArray[np.int64]) -> Examples:
    pixels, labels = _read_digits()
    return Examples.of_arrays(pixels[rows], labels[rows])


@cache
def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``(1797, 1, 8, 8)`` in 0..16 and labels, from the file scikit-learn ships.

    Read by path: importing sklearn costs every actor more seconds than training a model.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    path = Path(str(package.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    return table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, -1]


class DrawnParts(LabelledExamples):
    """A training part that is drawn from what there is, as the validation part may be."""

    num_train: PositiveInt | None = None
    """Training examples, drawn at random; null for all that are left."""
    num_validation: PositiveInt | None = None
    """Validation examples, drawn from the training part where no such part is given; null: a fifth
    of it, at most 5,000."""
    duplicates: Annotated[Literal["tell", "refuse"], Incidental()] = "tell"
    """What to do where two parts have an example in common."""

    def _known_parts(self) -> tuple[Part, ...]:
        """Those to open before any training."""
        raise NotImplementedError

    def _open(self, part: Part) -> Any:
        raise NotImplementedError


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
    memory: Annotated[float, Field(gt=0.0), Incidental()] | None = None
    """Gigabytes that decoded images may take; null for a quarter of a node's memory.

    A larger set is streamed: workers decode images as they are needed, two windows at a time, and
    train the same models. It is not searched for duplicates.
    """

    def _load(self, room: Room | None) -> Parts:
        """Of the test part labels, classes and headers are read at once, and no pixels.

        So what is wrong with them is told before the training.
        """
        # So that the test part is later what it is now.
        known = self.identified()
        train: Source = known._open("train")
        like = Labelled(train.labels_N[:0], train.class_names, train.named)
        sources = {part: known._opened(part, like) for part in known._known_parts()}
        check_classes(sources)
        given, count = sources.get("validation"), len(train.labels_N)
        drawn = 0 if given else self.num_validation
        rows, held_rows = split_rows(count, self.num_train, drawn, self.split_seed)
        held = (given, np.arange(len(given.labels_N))) if given else (train, held_rows)
        look = self._look(decode(train, rows[:1], self._look())[0].shape[1:])
        windows = windows_of(train, rows, look, self.window, self.split_seed)
        room = room or Room(RESIDENT_SHARE * usable_memory())
        room = self._room_of_streamed(room, look, len(rows) + len(held[1]), windows)
        rest = train.class_names, partial(known._test, like, look, room), look.decoding
        if room is not None:
            streamed = Streamed(train, rows, look, room.ahead, windows)
            return Parts(streamed, Streamed(*held, look, room.ahead), *rest)
        # One pass through the files.
        pixels, digests = decode(train, np.concatenate([rows, held_rows]), self._look())
        cut = len(rows)
        parts: dict[Part, list[bytes]] = {"train": digests[:cut], "validation": digests[cut:]}
        validation = Examples.of_arrays(pixels[cut:], train.labels_N[held_rows])
        if given:
            validation, parts["validation"] = _decoded(given, look)
        if "test" in sources and sources["test"].num_bytes <= READ_WHOLE_BYTES:
            parts["test"] = survey(sources["test"], look)
        check_overlap(parts, self.duplicates == "refuse")
        resident = Examples.of_arrays(pixels[:cut], train.labels_N[rows], windows)
        return Parts(resident, validation, *rest)

    def _opened(self, part: Part, like: Labelled) -> Source:
        source: Source = self._open(part).as_in(like, f"the {part} part")
        return source

    def _test(self, like: Labelled, look: Look, room: Room | None) -> Examples | Streamed:
        """The test part, streamed where the others are, into ``room``; None: decoded."""
        test = self._opened("test", like)
        if room is None:
            return _decoded(test, look)[0]
        return Streamed(test, np.arange(len(test.labels_N)), look, room.ahead)

    def _room_of_streamed(
        self, room: Room, look: Look, num_images: int, windows: Windows
    ) -> Room | None:
        """How images are streamed; None where decoded they fit.

        DataError where not even two windows do.
        """
        most = room.num_bytes if self.memory is None else self.memory * GIGABYTE
        assert look.shape is not None
        size, least = (n * math.prod(look.shape) for n in (num_images, 2 * windows.images))
        if size <= most:
            return None
        if least > most:
            raise DataError(
                f"dataset.memory: expected {least / GIGABYTE:.2g} GB at least, for two windows of "
                f"{windows.images} images, got {most / GIGABYTE:.2g}; raise it, or lower "
                "dataset.window"
            )
        if self.duplicates == "refuse":
            raise DataError(
                "dataset.duplicates: expected tell where images are streamed, got refuse; search "
                "the files for them yourself, or raise dataset.memory"
            )
        logger.info(
            "%-12s %.3g GB decoded, more than %.3g: streamed, in windows of %d images",
            *("dataset", size / GIGABYTE, most / GIGABYTE, windows.images),
        )
        return room

    def _look(self, shape: tuple[int, ...] | None = None) -> Look:
        size = None if self.image_size is None else (self.image_size, self.image_size)
        return Look(size, self.mode, Decoding(background=self.background), shape)


def _decoded(source: Source, look: Look) -> tuple[Examples, list[bytes]]:
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


class Located(DrawnParts):
    """Files whose place is a setting, and whose content is their identity."""

    content: Content = Content()
    """Digests of the files, noted when they are first read; of those given, others are refused."""

    def _files(self, part: Part) -> Files:
        raise NotImplementedError

    def _read(self, files: Files) -> Any:
        raise NotImplementedError

    def identified(self) -> Self:
        """The same data set, with the digests of what is there now, unless it has some."""
        given = self.content.model_dump(exclude_none=True)
        unknown = set(self._known_parts()) - set(given)
        digests = {part: self._files(part).digest() for part in unknown}
        return self.model_copy(update={"content": Content(**given, **digests)})

    def _open(self, part: Part) -> Any:
        """What is in the files of a part, which are those that were meant."""
        files = self._files(part)
        files.expect(getattr(self.content, part), f"dataset.content.{part}")
        return self._read(files)


class PartFiles(Located):
    """Files that are given for each part."""

    train: Uris
    """Training examples: files, a folder of them, a pattern (data/train-*.parquet), or a list of
    these; paths, s3:// or gs://. Of a folder with files of several parts its own are taken."""
    test: Uris | None = None
    """Test examples, likewise; null: there are none, and figures are of the validation part."""
    validation: Uris | None = None
    """Validation examples, likewise; null to draw them from the training part."""
    _endings: ClassVar[tuple[str, ...]]
    """Of names of files that count."""

    def _files(self, part: Part) -> Files:
        return find_files(getattr(self, part), part, self._endings, f"dataset.{part}")

    def _known_parts(self) -> tuple[Part, ...]:
        return tuple(part for part in get_args(Part) if getattr(self, part) is not None)


class ImageParquet(ImageFiles, PartFiles):
    """Parquet files of encoded images and classes, as Hugging Face lays them out."""

    kind: Literal["image_parquet"] = "image_parquet"
    test: Uris
    """Test examples, likewise."""
    image_column: str = "image"
    """Column of the images, struct<bytes, path>."""
    label_column: str = "label"
    """Column of the classes: numbers, or names."""
    class_names: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """What classes 0, 1, ... are called in files that do not say it."""
    _endings = images.PARQUET
    _read = images.open_parquet


class ImageFolder(ImageFiles, Located):
    """Folders of image files: root/train/<class>/*.png and root/test/<class>/*.png."""

    kind: Literal["image_folder"] = "image_folder"
    root: Uri
    """Folder that holds train, test and, if there is one, validation (or val); a path or a URI."""
    _read = staticmethod(images.open_folder)

    def _files(self, part: Part) -> Files:
        return images.find_folder(images.part_folders(self.root)[part])

    def _known_parts(self) -> tuple[Part, ...]:
        return tuple(images.part_folders(self.root))


class Torchvision(ImageFiles):
    """A classification set that torchvision knows by name."""

    kind: Literal["torchvision"] = "torchvision"
    name: Literal[
        "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "STL10",
        "Flowers102", "OxfordIIITPet", "Food101",
    ] = "CIFAR10"  # fmt: skip
    """Which set; images of the last three differ in size and need image_size."""
    root: Uri = "~/.cache/bend_ray"
    """Folder of torchvision's files."""
    download: Annotated[bool, Incidental()] = False
    """Download what is not in root."""

    def _open(self, part: Part) -> Source:
        root = Path(self.root).expanduser()
        return images.open_torchvision(self.name, part, root, self.download)

    def _look(self, shape: tuple[int, ...] | None = None) -> Look:
        look = super()._look(shape)
        # Of such a set a few images may be grey, which torchvision makes colour as well.
        mixed = self.mode is None and self.name in images.SETS_OF_FILES
        return replace(look, mode="rgb") if mixed else look

    def _known_parts(self) -> tuple[Part, ...]:
        # The test part is whole where the others are, and is left closed.
        return tuple(part for part in images.TORCHVISION[self.name] if part != "test")


class ArrayParts(DrawnParts):
    """What all data sets of arrays have in common."""

    task: Task | None = None
    """What is learnt; null: classes, unless labels are fractions."""
    standardise: bool = True
    """Bring floats and pixels to zero mean and unit variance a channel; whole numbers stay."""


class ArrayFiles(ArrayParts, PartFiles):
    """Arrays of any shape in .npz or .safetensors files: one an input, and one of labels.

    Several inputs go to the network by name. Text and numbers as labels are mapped to classes.
    """

    kind: Literal["arrays"] = "arrays"
    labels: str | None = None
    """Name of the array of labels, all others are inputs; null: labels, label, y or target."""
    class_names: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """What labels 0, 1, ... are called in files that do not say it."""
    _endings = arrays.ENDINGS
    _read = arrays.read_arrays

    def _load(self, room: Room | None) -> Parts:
        known = self.identified()
        return arrays.split_arrays(self, {p: partial(known._open, p) for p in self._known_parts()})


class ImportedDataset(Imported, ArrayParts):
    """One's own: a function that gives a training part, or train, validation and test by name.

    Each is anything that ``bend_ray.fit`` takes: (inputs, labels), a frame, a torch data set.
    """

    def _load(self, room: Room | None) -> Parts:
        given = self.make()
        found = parts_of(together(given) or {"train": given}, f"{self.target}: ")
        return arrays.split_arrays(
            self, {part: partial(itself, its) for part, its in found.items()}
        )


NonEmpty = Annotated[str, Field(min_length=1)]


class Table(PartFiles):
    """Rows of numbers, truth values, dates and categories, some of them missing, and targets.

    Files are Parquet, CSV or Arrow. Columns' types are inferred and shown, or given; what becomes
    of them is fitted on the training part.
    """

    kind: Literal["table"] = "table"
    target: NonEmpty | Annotated[tuple[NonEmpty, ...], Field(min_length=1)] | None = None
    """Column of the classes or numbers to tell, or several of numbers; null: labels, label, y or
    target."""
    task: Task | None = None
    """What is learnt; null: classes where the target holds texts or few whole numbers."""
    columns: Mapping[str, Kind | Literal["ignore"]] = {}
    """What columns hold, of those that are not what they look like: number, boolean, date,
    category, or ignore."""
    test_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the rows drawn as the test part, where none is given; 0: figures are of the
    validation part."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Draw one of so many test parts instead: split_seed counts through them, so that as many
    repeats are a cross-validation."""
    split: Split = Random()
    """How parts are drawn."""
    _endings = tables.ENDINGS
    _read = staticmethod(tables.read_table)

    @model_validator(mode="after")
    def _test_is_drawn_once(self) -> Table:
        if self.folds and isinstance(self.split, ByTime):
            raise ValueError(
                "folds: expected none with a split by time, as most would be tested on rows before "
                "those of their training; use test_share"
            )
        if (self.test is not None) + (self.folds is not None) + bool(self.test_share) > 1:
            raise ValueError("expected one of test, test_share and folds, got several; drop others")
        return self

    def _load(self, room: Room | None) -> Parts:
        known = self.identified()
        return tables.split_table(self, {p: partial(known._open, p) for p in self._known_parts()})


Dataset = Annotated[
    Digits | ImageParquet | ImageFolder | Torchvision | ArrayFiles | Table | ImportedDataset,
    Field(discriminator="kind"),
]
