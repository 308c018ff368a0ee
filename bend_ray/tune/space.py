"""Space: which knobs a search sets, among which values, for what, and how it goes about it.

A SPACE file is YAML of a ``TuneSection``. Knobs are named by their config paths; the ensemble
count is not one of them: every trial draws the largest count once, and smaller bags are its first
members.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from bend_ray.config.reading import knobs, with_knobs
from bend_ray.config.schema import PipelineConfig
from bend_ray.config.yaml_text import read_yaml, refusal
from bend_ray.errors import ConfigError
from bend_ray.spec import Spec
from bend_ray.tune.records import BagRecord

Scalar = bool | int | float | str | None
Choices = Annotated[tuple[Any, ...], Field(min_length=1)]

_NOT_TUNED = {
    "seed": "a lucky seed is no better config",
    "dataset": "every trial must be asked about the same images",
    "evaluation.rivals": "they do not change the bag",
    "generator.probes": "they do not change the bag",
    "tracking": "it does not change the bag",
    "price_per_hour": "it does not change the bag",
    "samples.count": "ensemble_counts says how many members are tried",
    "evaluation.bagging.size": "ensemble_counts says how many members are tried",
}
LATENT_SIZE = "autoencoder.model.latent_size"


class Range(Spec):
    """Numbers between two, both of them included; whole ones where both bounds are."""

    low: int | float
    """The smallest."""
    high: int | float
    """The largest."""
    step: PositiveFloat | None = None
    """Between neighbours, counted from low; few values mean that trials share more stages."""
    log: bool = False
    """As many trials in each doubling."""

    @property
    def whole(self) -> bool:
        """Whether it is of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _makes_sense(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"expected low < high, got {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: expected a positive low and no step")
        if self.whole and self.step is not None and self.step != int(self.step):
            raise ValueError(f"step: expected a whole number as the bounds are, got {self.step}")
        return self

    def values(self) -> list[int | float]:
        """All of them, where there is a step; else ConfigError."""
        if self.step is None:
            raise ConfigError(
                f"searcher grid: expected a step for the range {self.low} to {self.high}, got "
                "none; give one or list the values"
            )
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        # 0.7 + 2 * 0.1 is 0.9 for people.
        found = [round(self.low + i * self.step, 12) for i in range(count)]
        return [int(value) for value in found] if self.whole else found

    def nearest(self, value: int | float) -> int | float:
        """Of the values with a step, the one that a searcher's rounding meant."""
        if self.step is None:
            return value
        return min(self.values(), key=lambda each: abs(each - value))

    def holds(self, value: Any) -> bool:
        """Whether a value is in it."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return (
            is_number and self.low <= value <= self.high and abs(value - self.nearest(value)) < 1e-9
        )


class Nll(Spec):
    """Validation NLL, in nats."""

    kind: Literal["nll"] = "nll"

    def of(self, bag: BagRecord) -> float:
        """Lower is better."""
        return bag.nll


class Accuracy(Spec):
    """Share of validation images the bag gets wrong."""

    kind: Literal["accuracy"] = "accuracy"

    def of(self, bag: BagRecord) -> float:
        """Lower is better."""
        return 1.0 - bag.accuracy


class PenalisedNll(Spec):
    """Validation NLL, and a price for each doubling of what the bag costs."""

    kind: Literal["penalised_nll"] = "penalised_nll"
    cost: NonNegativeFloat = 0.002
    """Nats that halving the total cost is worth."""
    inference: NonNegativeFloat = 0.002
    """Nats that halving the cost of an answer is worth."""

    def of(self, bag: BagRecord) -> float:
        """Lower is better."""
        cost, inference = (math.log2(max(each, 1e-9)) for each in (bag.cost_seconds, bag.flops))
        return bag.nll + self.cost * cost + self.inference * inference


class Tpe(Spec):
    """Optuna's tree-structured Parzen estimator: looks where the good trials were.

    Source: Bergstra et al., "Algorithms for hyper-parameter optimization", 2011.
    """

    kind: Literal["tpe"] = "tpe"
    seed: NonNegativeInt = 0
    """Of its randomness."""
    random_trials: PositiveInt = 8
    """At random before it begins to look."""


class Random(Spec):
    """Every trial at random."""

    kind: Literal["random"] = "random"
    seed: NonNegativeInt = 0
    """Of its randomness."""


class Grid(Spec):
    """Every combination once."""

    kind: Literal["grid"] = "grid"


class Asha(Spec):
    """Stop, at milestones of the generator's training, trials that are behind the others.

    At a milestone the generator so far draws a bag, which is scored on validation images.
    Source: Li et al., "A system for massively parallel hyperparameter tuning", 2020.
    """

    kind: Literal["asha"] = "asha"
    first: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """Share of the generator's training at the first milestone."""
    reduction: Annotated[int, Field(ge=2)] = 2
    """Milestones are so many times apart; at each, one in so many trials goes on."""
    members: PositiveInt = 16
    """Classifiers drawn at a milestone, at most the largest ensemble count."""

    @property
    def milestones(self) -> list[float]:
        """Shares of the training, the end left out.

        >>> Asha().milestones
        [0.25, 0.5]
        """
        found = [self.first]
        while found[-1] * self.reduction < 1.0:
            found.append(found[-1] * self.reduction)
        return found


class NoStopping(Spec):
    """Every trial goes on to its end."""

    kind: Literal["none"] = "none"
    milestones: ClassVar[list[float]] = []


Objective = Annotated[Nll | Accuracy | PenalisedNll, Field(discriminator="kind")]
Searcher = Annotated[Tpe | Random | Grid, Field(discriminator="kind")]
Scheduler = Annotated[Asha | NoStopping, Field(discriminator="kind")]


class TuneSection(Spec):
    """A search."""

    trials: PositiveInt = 24
    """Configs tried."""
    ensemble_counts: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
    """Sizes of the bag, rising; a trial draws the largest and reads off the others."""
    knobs: Annotated[dict[str, Range | Choices], Field(min_length=1)]
    """Values by config path: a list of them, or {low, high, step, log}."""
    objective: Objective = Nll()
    """What is minimised, on validation images."""
    searcher: Searcher = Tpe()
    """Which config is tried next."""
    scheduler: Scheduler = Asha()
    """Which trials are stopped early."""

    @field_validator("ensemble_counts")
    @classmethod
    def _rising(cls, counts: tuple[int, ...]) -> tuple[int, ...]:
        if list(counts) != sorted(set(counts)):
            raise ValueError(f"expected rising numbers, got {list(counts)}")
        return counts

    @field_validator("knobs")
    @classmethod
    def _are_knobs(cls, given: dict[str, Any]) -> dict[str, Any]:
        known = {knob.path for knob in knobs()}
        for path in given:
            if path not in known:
                raise ValueError(f"{path}: expected a config path, see `bend config`")
            for prefix, reason in _NOT_TUNED.items():
                if path == prefix or path.startswith(f"{prefix}."):
                    raise ValueError(f"{path}: cannot be tuned: {reason}")
            if "resources" in path.split("."):
                raise ValueError(f"{path}: cannot be tuned: where work runs changes no result")
        return given

    @model_validator(mode="after")
    def _grid_is_whole(self) -> TuneSection:
        if isinstance(self.searcher, Grid):
            combinations = math.prod(len(values_of(domain)) for domain in self.knobs.values())
            if combinations > self.trials:
                raise ValueError(
                    f"trials: expected at least the {combinations} combinations of the grid, got "
                    f"{self.trials}; raise trials or list fewer values"
                )
        return self

    @property
    def names(self) -> dict[str, str]:
        """Knobs by path, each with as much of the path's end as tells it from the others."""
        found = {}
        for path in self.knobs:
            parts = path.split(".")
            ends = (f".{'.'.join(parts[-length:])}" for length in range(1, len(parts) + 1))
            own = next(e for e in ends if sum(f".{k}".endswith(e) for k in self.knobs) == 1)
            found[path] = own[1:].replace("_", " ")
        return found

    def decoded(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """A point of Ray Tune's, with the values as the file has them."""
        return {
            path: domain.nearest(point[path])
            if isinstance(domain, Range)
            else next(value for value in domain if encode(value) == point[path])
            for path, domain in self.knobs.items()
        }

    def point_of(self, config: PipelineConfig) -> dict[str, Any] | None:
        """Where a config lies in the space, encoded; None where it lies outside."""
        point = {}
        for path, domain in self.knobs.items():
            if isinstance(domain, Range):
                # None where a variant has no such knob.
                value: Any = config
                for name in path.split("."):
                    value = getattr(value, name, None)
                values: Sequence[Any] = [value] if domain.holds(value) else []
            else:
                values = [each for each in domain if _says(config, path, each)]
            if not values:
                return None
            point[path] = encode(values[0])
        return point


def values_of(domain: Range | Choices) -> Sequence[Any]:
    """Every value of a knob; ConfigError where they cannot be told one by one."""
    return domain.values() if isinstance(domain, Range) else domain


def encode(value: Any) -> Scalar:
    """A choice as a scalar, which is all that a searcher takes: a section as its JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return json.dumps(value, sort_keys=True)


def _says(config: PipelineConfig, path: str, value: Any) -> bool:
    """Whether setting a knob to a value leaves the config as it is."""
    try:
        return with_knobs(config, {path: value}) == config
    except ConfigError:
        return False


def default_section(config: PipelineConfig) -> dict[str, Any]:
    """Latent size and ensemble count first, and the sampler's temperature, which costs little."""
    from bend_ray.ensemble.curves import sizes_up_to

    most, own = config.num_training_models - 1, config.autoencoder.model.latent_size
    sizes = {max(1, round(most * share)) for share in (0.125, 0.25, 0.5, 0.75, 1.0)}
    temperatures = {0.8, 0.9, 1.0, 1.1, config.samples.temperature}
    return {
        "ensemble_counts": sizes_up_to(config.samples.count),
        "knobs": {
            LATENT_SIZE: [*sorted(sizes - {config.latent_size}), own],
            "samples.temperature": sorted(temperatures),
        },
    }


def load_section(path: Path | None, config: PipelineConfig, trials: int | None) -> TuneSection:
    """The search a SPACE file describes; what it leaves out is as in the default search.

    ConfigError is one line with every problem found.
    """
    values = default_section(config) | (read_yaml(path) if path is not None else {})
    if trials is not None:
        values["trials"] = trials
    try:
        return TuneSection.model_validate(values)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, details['loc']))}: {details['msg']}".lstrip(": ")
            for details in error.errors()
        ]
        raise refusal(f"{path or 'the default space'}: {'; '.join(problems)}") from None


def trial_config(
    config: PipelineConfig, section: TuneSection, point: Mapping[str, Any]
) -> PipelineConfig:
    """The config of a trial: it draws the largest ensemble count, and all of them vote."""
    asked = with_knobs(config, point)
    drawn = max(section.ensemble_counts)
    if asked.evaluation.bagging.kind != "all":
        # Who is chosen from more is chosen better.
        drawn = max(drawn, asked.samples.count)
    return _drawing(asked, drawn, None)


def bag_config(config: PipelineConfig, size: int) -> PipelineConfig:
    """The config whose run makes one of a trial's bags, and draws no more than that needs."""
    if config.evaluation.bagging.kind == "all":
        return _drawing(config, size, None)
    return _drawing(config, config.samples.count, size)


def _drawing(config: PipelineConfig, count: int, size: int | None) -> PipelineConfig:
    return with_knobs(config, {"samples.count": count, "evaluation.bagging.size": size})
