"""The card of a bag, ``config.json``: what its members are, and how their answers become one."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from bend_ray.artifacts.manifest import first_problem
from bend_ray.data.examples import Decoding
from bend_ray.ensemble.rule import Rule
from bend_ray.ensemble.votes import Vote
from bend_ray.errors import DataError
from bend_ray.networks.architectures import Architecture
from bend_ray.report.evaluation import BagScores
from bend_ray.spec import Spec
from bend_ray.storage.filesystems import resolve, store_errors

CARD = "config.json"
MEMBERS = "members.safetensors"
MEMBER_ONNX = "member.onnx"
"""One member, without its parameters."""
IR_VERSION, OPSET, ONNXRUNTIME = 8, 18, "1.14"
"""Of the ONNX programs, and the oldest runtime that was seen to answer as we do.

Measured: a later opset is no faster, and opset 18 is the oldest that torch's exporter writes.
"""
FORMAT_VERSION: Literal[1] = 1
MOST_NUMBERS = 3 * 2**26
"""Of an image: three channels of 8192 x 8192."""


class TestScores(Spec):
    """What the whole bag scored on the test part, in fractions of 1 and nats."""

    accuracy: float | None
    nll: float | None
    brier: float | None
    ece: float | None
    """As ``ensemble.metrics.Scores``; null where a figure was not finite."""

    @classmethod
    def of(cls, bag: BagScores) -> TestScores:
        """What an evaluation says of its bag."""
        return cls(accuracy=bag.accuracy, nll=bag.nll, brier=bag.brier, ece=bag.ece)


class OnnxNeeds(Spec):
    """What can read the ONNX programs."""

    ir_version: PositiveInt = IR_VERSION
    """Of the file format."""
    opset: PositiveInt = OPSET
    """Of the operators."""
    onnxruntime: str = ONNXRUNTIME
    """The oldest ONNX Runtime."""


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
    image_shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Channels, height and width."""
    pixel_mean: tuple[float, ...]
    """Of each channel of the training images, on the scale 0 to 255."""
    pixel_std: tuple[PositiveFloat, ...]
    """Its standard deviation."""
    decoding: Decoding = Decoding()
    """How a picture file becomes the pixels that the members were trained on."""
    class_names: Annotated[tuple[str, ...], Field(min_length=1)]
    """One a class, in the order of the probabilities."""
    vote: Vote
    """How the members' answers become one."""
    members: Annotated[tuple[int, ...], Field(min_length=1)]
    """Their ``model_id`` in the generated population, in voting order."""
    weights: tuple[PositiveFloat, ...]
    """Each member's share of the vote; they sum to 1."""
    temperature: PositiveFloat = 1.0
    """Divides the log of the bag's probabilities, which are then normalised again."""
    onnx: OnnxNeeds = OnnxNeeds()
    """What the ONNX programs need, where they were asked for."""
    scores: TestScores | None = None
    """Of the whole bag on the test part; null for a part of the bag, which was not evaluated."""

    @model_validator(mode="after")
    def _parts_agree(self) -> Card:
        channels = self.image_shape[0]
        for name, expected in (
            ("pixel_mean", channels),
            ("pixel_std", channels),
            ("weights", len(self.members)),
        ):
            if len(getattr(self, name)) != expected:
                raise ValueError(f"expected {expected} {name}, got {len(getattr(self, name))}")
        if math.prod(self.image_shape) > MOST_NUMBERS:
            raise ValueError(f"expected images of at most {MOST_NUMBERS:,} numbers")
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(f"expected weights that sum to 1, got {sum(self.weights)}")
        return self

    @property
    def rule(self) -> Rule:
        """How the members' answers are weighed."""
        return Rule(self.weights, self.vote.counts_votes, self.temperature)


def version_of(fingerprint: str, members: int | None) -> str:
    """The version of an evaluation's bag, or of its first ``members`` alone."""
    return fingerprint if members is None else f"{fingerprint}-n{members}"


def read_card(folder: Path) -> Card:
    """The card of an exported bag.

    Raises:
        DataError: the folder is no exported bag, or one of another format.
    """
    path = folder / CARD
    try:
        return Card.model_validate_json(path.read_bytes())
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


def plain(card: Card) -> dict[str, Any]:
    """The card as JSON."""
    return card.model_dump(mode="json")


def fetch_bag(uri: str, into: Path) -> Path:
    """A local folder with the bag: ``uri`` itself, or a copy of it below ``into``.

    Raises:
        StoreError: it cannot be read.
    """
    filesystem, path = resolve(uri)
    if filesystem.type_name == "local":
        return Path(path)
    # Each by its own name: those that a bucket lists may lead out of the folder.
    for name in (MEMBERS, MEMBER_ONNX, CARD):
        with (
            store_errors("copy", f"{path}/{name}"),
            filesystem.open_input_stream(f"{path}/{name}") as source,
            (into / name).open("wb") as target,
        ):
            shutil.copyfileobj(source, target)
    return into
