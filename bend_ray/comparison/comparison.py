"""The comparison: what populations, and bags of their members, answer on the test part.

Shape letters: E members, N examples, C classes, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from bend_ray.comparison.choosing import BAG, EQUAL_COST, Bag, StageCosts, affordable_trainings
from bend_ray.config.schema import EvaluationSection
from bend_ray.ensemble.novelty import Models, Places, novelty, places_among
from bend_ray.ensemble.predictions import Predictions
from bend_ray.process.matrix import Matrix
from bend_ray.report.evaluation import BagScores, Evaluation
from bend_ray.tasks import Task

POPULATIONS = ("generated", "originals", "held_out")


@dataclass(frozen=True)
class Members:
    """Single models on the test part: what each predicts, and scores of each."""

    trunks_E: Tensor
    predictions_EN: Tensor
    accuracy_E: Tensor
    nll_E: Tensor

    @classmethod
    def of(cls, predictions: Predictions, trunks_E: Tensor) -> Members:
        """Whose predictions these are."""
        return cls(trunks_E, predictions.predicted(), *predictions.scores())

    def __len__(self) -> int:
        return len(self.trunks_E)


@dataclass(frozen=True)
class Voted:
    """What a bag says of the test part: ``plain_NC`` by its vote, ``scaled_NC`` at a temperature.

    ``answers_NC`` is the one by which it is scored.
    """

    plain_NC: Tensor
    scaled_NC: Tensor
    answers_NC: Tensor


@dataclass(frozen=True)
class Comparison:
    """Everything the evaluation says, of bags as they were chosen.

    Attributes:
        validation: what members say of validation examples, by population or rival.
        test: and of the test part.
        vectors: of ``POPULATIONS``: originals, from which the generator learnt, held-out ones that
            it never saw, and what it drew.
        part: which the test part is.
        others: what members say of other inputs, by their name.
    """

    section: EvaluationSection
    seed: int
    bags: Mapping[str, Bag]
    validation: Mapping[str, Predictions]
    test: Mapping[str, Predictions]
    trunks: Mapping[str, Tensor]
    vectors: Mapping[str, Matrix]
    prices: StageCosts
    part: Literal["test", "validation"] = "test"
    others: Mapping[str, Mapping[str, Predictions]] = field(default_factory=dict)

    @cached_property
    def labels(self) -> Tensor:
        """Of the test part."""
        return self.test["generated"].labels_N

    @property
    def task(self) -> Task:
        """What is told."""
        return self.test["generated"].task

    @cached_property
    def members(self) -> dict[str, Members]:
        """Single models, by population."""
        return {name: Members.of(self.test[name], self.trunks[name]) for name in self.trunks}

    def said(self, bag: Bag, about: str | None = None) -> Predictions:
        """What a bag's members say, of other inputs by their name."""
        by_models = self.test if about is None else self.others[about]
        return by_models[bag.models].select(bag.members)

    def voted(self, bag: Bag, about: str | None = None) -> Voted:
        """What a bag says, of other inputs by their name."""
        plain_NC = self.section.vote.answers(self.said(bag, about), bag.val_nll_E)
        scaled_NC = self.task.scaled(plain_NC, bag.temperature)
        scored_NC = scaled_NC if self.section.temperature_scaling else plain_NC
        return Voted(plain_NC, scaled_NC, scored_NC)

    def scores(self, name: str, voted: Voted) -> BagScores:
        """Of a bag."""
        bag, more = self.bags[name], dict[str, Any]()
        if name == BAG:
            more = {"members": tuple(bag.members), "cost_seconds": self.prices.bag}
        if name == EQUAL_COST:
            more = {"affordable": affordable_trainings(self.prices)}
        return BagScores(
            **self.task.scores(voted.answers_NC, self.labels),
            size=len(bag.members),
            temperature=bag.temperature if self.section.temperature_scaling else None,
            **{"cost_seconds": bag.seconds, **more},
        )

    def evaluation(self, scores: Mapping[str, BagScores], **more: Any) -> Evaluation:
        """The figures, given the scores of all bags, and more of them."""
        prices, drawn = self.prices, len(self.members["generated"])
        figures = {
            "populations": {name: self._population(name) for name in POPULATIONS},
            "prices": {
                "marginal_seconds": prices.samples / drawn,
                "amortised_seconds": prices.bag / drawn,
                "ordinary_seconds": prices.ordinary,
                "equal_cost_deep_ensemble": scores.get(EQUAL_COST),
            },
        }
        rivals = {rival.name: scores[rival.name] for rival in self.section.rivals}
        return Evaluation(part=self.part, bag=scores[BAG], rivals=rivals, **figures, **more)

    def _population(self, name: str) -> dict[str, Any]:
        """Figures of a ``PopulationScores``."""
        members, accuracy_E = self.members[name], self.members[name].accuracy_E
        found = dict.fromkeys(("accuracy", "diversity", "novelty"))
        if len(members):
            found["accuracy"] = {
                "mean": accuracy_E.mean().item(),
                "median": accuracy_E.quantile(0.5).item(),
                "min": accuracy_E.min().item(),
                "max": accuracy_E.max().item(),
                "std": accuracy_E.std(correction=0).item(),
            }
        if len(members) > 1:
            found["diversity"] = self.task.diversity(members.predictions_EN, self.labels)
        if len(members) and name != "originals":
            found["novelty"] = novelty(*map(self._models, (name, "originals")))
        return found

    def _models(self, name: str) -> Models:
        members = self.members[name]
        return Models(self.places[name], members.trunks_E, members.predictions_EN, self.task)

    @cached_property
    def places(self) -> dict[str, Places]:
        """Of each population among the originals."""
        populations = {name: (self.vectors[name], self.trunks[name]) for name in POPULATIONS}
        originals = populations["originals"]
        return {
            name: places_among(originals, None if name == "originals" else models)
            for name, models in populations.items()
        }
