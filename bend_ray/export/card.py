"""The card of a bag, ``config.json``: what its members are, and how their answers become one."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from bend_ray.artifacts.directory import to_json
from bend_ray.data.arrays import SINGLE
from bend_ray.data.columns import Column
from bend_ray.data.examples import Decoding, Shape
from bend_ray.ensemble.conformal import Calibration
from bend_ray.ensemble.votes import Rule, Vote
from bend_ray.errors import ConfigError, DataError
from bend_ray.networks.architectures import Architecture
from bend_ray.spec import Spec, first_problem
from bend_ray.tasks import Classification, Task

CARD = "config.json"
IR_VERSION, OPSET, ONNXRUNTIME = 8, 18, "1.14"
"""Of the ONNX programs' format and operators, and the oldest runtime seen to answer as we do.

Measured: a later opset is no faster, and opset 18 is the oldest that torch's exporter writes.
"""
ONNX_NEEDS = {"ir_version": IR_VERSION, "opset": OPSET, "onnxruntime": ONNXRUNTIME}
FORMAT_VERSION: Literal[1] = 1
IMAGES = "images"
"""Name of the one input of a bag of images."""
TOLERANCE = 1e-5
"""Of an answer, in its units, where torch and ONNX Runtime add up in different orders."""
MOST_NUMBERS = 3 * 2**26
"""Of an example: as an image of three channels of 8192 x 8192 has."""


class Scored(Spec):
    """What the bag scored, as ``ensemble.metrics.Scores``, or the task's own; null: not finite."""

    part: Literal["test", "validation"] = "test"
    """On which examples; validation, which chose the bag, where there are no test examples."""
    accuracy: float | None
    """Of numbers R^2."""
    nll: float | None
    brier: float | None = None
    ece: float | None = None
    rmse: float | None = None
    crps: float | None = None


class Input(Spec):
    """One input of the members' network, as it is before it is normalised."""

    shape: tuple[NonNegativeInt, ...]
    """Of one example, such as channels, height and width."""
    dtype: Literal["uint8", "float32", "int64", "float64", "string"]
    """The last two of columns: numbers, nan where missing, or texts, empty where missing."""
    mean: tuple[FiniteFloat, ...] | None = None
    """Of each channel or feature of the training examples; null: it is not normalised."""
    std: tuple[PositiveFloat, ...] | None = None
    """Its standard deviation."""
    low: FiniteFloat = 0.0
    """The smallest number of the training examples; of uint8 that there can be."""
    high: FiniteFloat = 255.0
    """Their largest."""
    column: Column | None = None
    """What becomes of a table's column; null: it is none."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Input:
        texts = self.column is not None and self.column.kind == "category"
        expected = (() if self.column else self.shape), "string" if texts else "float64"
        if (self.shape, self.dtype) != expected and (
            self.column or self.dtype in ("float64", "string")
        ):
            raise ValueError("expected a column to have a number or a text an example")
        channels = self.shape[0] if self.shape else 1
        lengths = {"mean": self.mean and len(self.mean), "std": self.std and len(self.std)}
        for name, got in lengths.items():
            if got != (None if self.mean is None else channels):
                raise ValueError(f"expected {channels} {name}, got {got}")
        return self

    @property
    def numbers(self) -> int:
        """Of one example."""
        return math.prod(self.shape)

    @property
    def limits(self) -> tuple[float, float]:
        """What a number can be; tokens, which index a table, are not negative."""
        if self.dtype == "uint8":
            return self.low, self.high
        return (0.0 if self.dtype == "int64" and self.low >= 0 else -math.inf), math.inf


class Card(Spec):
    """Everything about a bag but its tensors."""

    format_version: Literal[1] = FORMAT_VERSION
    model_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Fingerprint of the evaluation that chose the members; ``-nN`` for its first N alone."""
    created: str
    """UTC, ISO 8601."""
    bend_ray: str
    """Version that wrote this."""
    architecture: Architecture
    """The members' network."""
    inputs: Annotated[dict[str, Input], Field(min_length=1)]
    """By name; of images one, called images."""
    decoding: Decoding | None = None
    """How a picture file becomes the pixels that the members were trained on; null: inputs are no
    images."""
    task: Task = Classification()
    """What the outputs of the members' network mean; of numbers with the targets' units."""
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    """One a class, in the order of the probabilities, or a target, in the order of the means."""
    vote: Vote
    """How the members' answers become one."""
    members: Annotated[tuple[int, ...], Field(min_length=1)]
    """Their ``model_id`` in the generated population, in voting order."""
    weights: tuple[PositiveFloat, ...]
    """Each member's share of the vote; they sum to 1."""
    temperature: PositiveFloat = 1.0
    """Divides the log of the bag's probabilities, which are then normalised again; of numbers the
    factor of the variances."""
    onnx: dict[str, Any] | None = ONNX_NEEDS
    """What the ONNX programs need; null: there are none."""
    scores: Scored | None = None
    """Null: nothing has scored it."""
    calibration: Calibration | None = None
    """By which it gives sets or intervals, and refuses; null: no examples were kept back."""
    dataset: str = ""
    """Kind of the data set that it was trained on."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of each file that programs read, by its name."""
    warmup: tuple[tuple[float, ...], ...] = ()
    """The members' own answers, averaged by weight, about each example of ``noise``."""
    seal: str = ""
    """SHA-256 of all of the above."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Card:
        if len(self.weights) != len(self.members):
            raise ValueError(f"expected {len(self.members)} weights, got {len(self.weights)}")
        if self.numbers > MOST_NUMBERS:
            raise ValueError(f"expected examples of at most {MOST_NUMBERS:,} numbers")
        if len(self.task.units(self.class_names)) != self.task.answers_of(self.num_outputs):
            raise ValueError("expected a task of as many targets as names")
        if self.columns and len(self.columns) < len(self.inputs):
            raise ValueError("expected columns alone, or none")
        if self.decoding is not None:
            own = self.inputs.get(IMAGES)
            if len(self.inputs) > 1 or own is None or len(own.shape) != 3 or own.dtype != "uint8":
                raise ValueError("expected images (channels, height, width) alone, as uint8")
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"expected weights that sum to 1, got {sum(self.weights)}")
        return self

    def sealed(self) -> Card:
        """The same card with its seal."""
        told = json.dumps(self.model_dump(mode="json", exclude={"seal"}), sort_keys=True)
        return self.model_copy(update={"seal": hashlib.sha256(told.encode()).hexdigest()})

    def write(self, folder: Path) -> Card:
        """The same card with its seal, which is in the folder then, for ``read_card``."""
        card = self.sealed()
        (folder / CARD).write_bytes(to_json(card.model_dump(mode="json")))
        return card

    @property
    def promises(self) -> Calibration:
        """Its calibration; ConfigError where it has none."""
        if self.calibration is None:
            raise ConfigError(
                "expected a bag that examples kept back have calibrated, got one that none have; "
                "make it with dataset.num_calibration of a few hundred"
            )
        return self.calibration

    @property
    def columns(self) -> dict[str, Column]:
        """Of a bag of tables, whose inputs are columns; else none."""
        return {name: own.column for name, own in self.inputs.items() if own.column}

    @property
    def network_inputs(self) -> dict[str, Input]:
        """What a member's network is given: of columns one input, their numbers side by side."""
        if not self.columns:
            return self.inputs
        width = sum(column.width for column in self.columns.values())
        return {SINGLE: Input(shape=(width,), dtype="float32")}

    @property
    def rule(self) -> Rule:
        """How the members' answers are weighed."""
        return Rule(self.weights, self.vote.counts_votes, self.temperature)

    @property
    def numbers(self) -> int:
        """Of one example."""
        return sum(own.numbers for own in self.inputs.values())

    @property
    def outputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of an example of each of the program's outputs."""
        sizes = {"K": len(self.members), "C": len(self.class_names)}
        return {
            name: (dtype, tuple(sizes[dim] for dim in dims))
            for name, (dtype, dims) in self.task.outputs.items()
        }

    @property
    def num_outputs(self) -> int:
        """Of a member's network."""
        return self.task.num_outputs(self.class_names)

    @property
    def input_shape(self) -> Shape:
        """What the network is built for: the shape of the one input, or of each by name."""
        shapes = {name: own.shape for name, own in self.network_inputs.items()}
        return shapes if len(shapes) > 1 else next(iter(shapes.values()))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width, of a bag of images."""
        channels, height, width = self.inputs[IMAGES].shape
        return channels, height, width

    @property
    def takes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of each input: bags that take the same may replace each other."""
        return {name: (own.shape, own.dtype) for name, own in self.inputs.items()}

    def differs(self, one: NDArray[Any], other: NDArray[Any]) -> float:
        """By how much answers ``(..., A)`` do, in their units, or shares of what is more."""
        units_A = self.task.units(self.class_names)
        off: float = (np.abs(one - other) / np.maximum(units_A, np.abs(other))).max().item()
        return off


def version_of(fingerprint: str, members: int | None) -> str:
    """The version of an evaluation's bag, or of its first ``members`` alone."""
    return fingerprint if members is None else f"{fingerprint}-n{members}"


def read_card(folder: Path) -> Card:
    """The card of an exported bag; DataError where it is none, or one of another format."""
    path = folder / CARD
    try:
        card = Card.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{folder}: expected a bag written by `bend export`, cannot read {CARD}: "
            f"{error.strerror}"
        ) from None
    except ValidationError as error:
        raise DataError(
            f"{path}: expected the card of a bag (format {FORMAT_VERSION}), got: "
            f"{first_problem(error)}; export it again"
        ) from None
    if card.seal != card.sealed().seal:
        raise DataError(
            f"{path}: expected a card as it was exported, got another; copy it again, or export "
            "it again"
        )
    return card


def noise(card: Card, count: int = 2) -> dict[str, NDArray[Any]]:
    """Examples that any program can make, in the range of the training part."""
    found = {}
    for name, own in card.inputs.items():
        numbers = np.arange(1, count * own.numbers + 1, dtype=np.uint64) * 2654435761
        share = (numbers % 2**32 >> 16) / 2**16
        whole = own.dtype not in ("float32", "float64")
        if own.column and own.dtype == "string":
            levels = np.array([*own.column.levels, ""], dtype=object)
            found[name] = levels[(share * len(levels)).astype(int)]
            continue
        values = own.low + (own.high - own.low + whole) * share
        values = np.floor(values) if whole else values
        found[name] = values.astype(own.dtype).reshape(count, *own.shape)
    return found
