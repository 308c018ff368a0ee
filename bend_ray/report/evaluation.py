"""The result of a run as a type: made by the evaluation, parsed at the manifest, then attributes.

Its JSON is what ``bend run --json`` prints. A figure that was not finite is null there, and None
here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.manifest import Manifest
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import STAGES, Graph
from bend_ray.config.resources import HourlyPrice
from bend_ray.ensemble.conformal import Calibration
from bend_ray.errors import StoreError
from bend_ray.spec import first_problem
from bend_ray.storage.masking import masked

Figure = float | None
_Left = Field(exclude_if=lambda value: value is None)
"""Of what is not written where it is None."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BagScores(_Record):
    """A bag on the test part: fractions of 1, nats and seconds."""

    accuracy: Figure
    """Of classes; of numbers R^2, the share of their variance that is explained."""
    nll: Figure
    brier: Figure = None
    """Of classes, as ``ece``."""
    ece: Figure = None
    rmse: Annotated[Figure, _Left] = None
    """Of numbers, as the rest down to ``width``; mean over targets, in their units."""
    crps: Annotated[Figure, _Left] = None
    pit_error: Annotated[Figure, _Left] = None
    coverage: Annotated[tuple[Figure, ...] | None, _Left] = None
    """Share of targets in central intervals of 50, 90 and 95 %."""
    width: Annotated[tuple[Figure, ...] | None, _Left] = None
    """Their mean width, in the targets' units."""
    size: int
    """Members that vote."""
    temperature: Annotated[Figure, _Left] = None
    """At which it is scored; None where votes are scored as they are."""
    cost_seconds: Figure
    """Of all from scratch: GPU seconds where one was used, else CPU seconds; None if unknown."""
    members: Annotated[tuple[int, ...] | None, _Left] = None
    """Of the bag of generated classifiers, their places in the population, in voting order."""
    affordable: Annotated[int | None, _Left] = None
    """Of the deep ensemble of equal cost, members that our cost would have trained."""


class Spread(_Record):
    """A score over the models of a population."""

    mean: float
    median: float
    min: float
    max: float
    std: float


class DiversityScores(_Record):
    """How two models of a population differ, mean over pairs; see ``ensemble.metrics``."""

    disagreement: Figure
    error_iou: Figure
    q_statistic: Annotated[Figure, _Left] = None
    """Of classes."""
    correlation: Annotated[Figure, _Left] = None
    """Of numbers: of two models' errors."""


class NoveltyScores(_Record):
    """How models stand to those the generator learnt from; see ``ensemble.novelty``."""

    nearest_ratio: Figure
    spread: Figure
    within_trunk_disagreement: Figure
    functional_distance: Figure
    copies: Figure


class PopulationScores(_Record):
    """Single models on the test part."""

    accuracy: Spread | None
    """None for a population without any."""
    diversity: DiversityScores | None
    """None below two models."""
    novelty: NoveltyScores | None
    """Of generated models, and of held-out ones as a measure."""


class SetScores(_Record):
    """Sets of classes, or intervals, that should hold the truth of a wanted share of examples."""

    coverage: Figure
    """Share that do."""
    least: Figure
    """Of the class, or target, with the least share."""
    size: Figure
    """Mean number of classes, or width in the targets' units."""


class RefusalScores(_Record):
    """Answers that are given where a wanted accuracy is promised of them."""

    answered: Figure
    accuracy: Figure
    """Of what is answered; None where nothing is."""


class Detection(_Record):
    """How a score tells inputs of no learnt class from the test part; see ``ensemble.metrics``."""

    auroc: Figure
    aupr: Figure
    fpr95: Figure
    standard_error: Figure
    """Of the AUROC, over both sets' examples."""


class ShiftScores(_Record):
    """On the corrupted test part."""

    accuracy: Figure
    nll: Figure
    ece: Figure
    coverage: Annotated[Figure, _Left] = None
    """Of sets that were to hold nine of ten, where they are calibrated."""


_Empty = Field(exclude_if=lambda value: not value)


class Trust(_Record):
    """What a bag promises, and what becomes of it elsewhere; texts are keys of what is wanted."""

    sets: Annotated[dict[str, dict[str, SetScores]], _Empty] = {}
    """By kind, then by wanted coverage."""
    refusals: Annotated[dict[str, RefusalScores], _Empty] = {}
    """By wanted accuracy; of those that calibration can promise."""
    ood: Annotated[dict[str, dict[str, Detection]], _Empty] = {}
    """By inputs, then by score."""
    shift: Annotated[dict[str, dict[str, ShiftScores]], _Empty] = {}
    """By corruption, then by severity."""


class Prices(_Record):
    """What a model costs, in seconds, and what our cost would have bought."""

    marginal_seconds: float
    """One more generated model."""
    amortised_seconds: Figure
    """A generated model with all before it; None where what others trained has no price."""
    ordinary_seconds: float | None
    """One ordinary training; None where none was done."""
    equal_cost_deep_ensemble: Annotated[BagScores | None, _Left] = None
    """As many members of the deep ensemble as the bag's cost would have trained, if it has them."""


class Evaluation(_Record):
    """What an evaluation says, all on the test part, or on validation where there is no test."""

    part: Annotated[
        Literal["test", "validation"], Field(exclude_if=lambda part: part == "test")
    ] = "test"
    """Whose examples the figures are of."""
    bag: BagScores
    """Of generated classifiers."""
    rivals: dict[str, BagScores]
    """By kind."""
    populations: dict[str, PopulationScores]
    """``generated``; ``originals``, from which the generator learnt; ``held_out``, never seen."""
    prices: Prices
    trust: Annotated[dict[str, Trust], _Empty] = {}
    """By bag, where it was asked for."""
    calibration: Annotated[Calibration | None, _Left] = None
    """Of the bag of generated classifiers, by examples kept back; no part of the JSON."""

    @property
    def score(self) -> str:
        """What ``accuracy`` is called."""
        return "accuracy" if self.bag.rmse is None else "R²"

    @classmethod
    def committed(cls, manifest: Manifest) -> Evaluation:
        """What a committed evaluation says; StoreError where another version made it."""
        try:
            return Evaluation.model_validate(manifest.metrics)
        except ValidationError as error:
            raise StoreError(
                f"expected evaluation {manifest.fingerprint} to be of this version of bend_ray, "
                f"got: {first_problem(error)}; run `bend run` again"
            ) from None

    def scores(self, name: str) -> BagScores:
        """Of ``bag``, or of a rival."""
        return self.bag if name == "bag" else self.rivals[name]


class Diverged(_Record):
    """Of a stage's models, those left out, and trainings that did well with another seed."""

    dropped: int = 0
    retrained: int = 0

    @classmethod
    def of(cls, noted: Sequence[Mapping[str, Any]]) -> Diverged:
        """Counted from what the stage's manifest notes."""
        retrained = sum(each["outcome"] == "retrained" for each in noted)
        return cls(dropped=sum(len(each["models"]) for each in noted), retrained=retrained)


def recorded(graph: Graph) -> dict[str, Any]:
    """By stage before the evaluation: its artifact, what that cost, and what diverged in it.

    StoreError where one is not committed.
    """
    made = {stage: graph[stage].manifest() for stage in STAGES[:-1]}
    return {
        stage: {
            "fingerprint": manifest.fingerprint,
            "cost": manifest.cost.model_dump(),
            "diverged": manifest.metrics.get("diverged", []),
        }
        for stage, manifest in made.items()
    }


class Result(Evaluation):
    """The result of a run: its evaluation, and what it was made of."""

    diverged: dict[str, Diverged]
    """Of the stages that make models."""
    cost: dict[str, Cost]
    """Of every stage."""
    store: str
    fingerprints: dict[str, str]
    """Of every stage's artifact."""
    money: Annotated[dict[str, float], _Empty] = {}
    """Of every stage's computing, where there are prices."""

    @classmethod
    def of(cls, graph: Graph) -> Result:
        """Of committed artifacts; StoreError where one is missing, or of another version."""
        artifact, stages = graph.evaluation, recorded(graph)
        return cls.made(artifact.manifest(), stages, artifact.store, artifact.given["config"])

    @classmethod
    def made(
        cls, manifest: Manifest, stages: Mapping[str, Any], store: Store, config: Mapping[str, Any]
    ) -> Result:
        """Of an evaluation and what is ``recorded`` of other stages, at the prices of a config."""
        own = {"fingerprint": manifest.fingerprint, "cost": manifest.cost}
        every = {**stages, "evaluation": own}
        cost = {stage: Cost.model_validate(each["cost"]) for stage, each in every.items()}
        price = HourlyPrice.model_validate(config.get("price_per_hour", {}))
        # As ``Cost.seconds``: of the GPU where one was used.
        money = {
            stage: (price.gpu if each.gpu_seconds else price.cpu) * each.seconds / 3600
            for stage, each in cost.items()
        }
        return cls(
            **dict(Evaluation.committed(manifest)),
            diverged={s: Diverged.of(stages[s]["diverged"]) for s in ("seeds", "samples")},
            cost=cost,
            store=masked(store.uri),
            fingerprints={stage: each["fingerprint"] for stage, each in every.items()},
            money=money if price != HourlyPrice() else {},
        )

    def as_json(self) -> dict[str, Any]:
        """What ``bend run --json`` prints."""
        return self.model_dump(mode="json", exclude={"calibration"})

    @classmethod
    def from_json(cls, fields: Any) -> Result:
        """What ``as_json`` wrote; ValueError, in one line, where it is something else."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None
