"""The comparison: the bag and its rivals, and what they and populations answer on the test part.

Who votes, at what temperature, is chosen by validation examples alone: see ``Selection``.

Shape letters: E members, N examples, C classes, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from bend_ray.config.schema import EvaluationSection
from bend_ray.ensemble.novelty import Models, Places, novelty, places_among
from bend_ray.ensemble.predictions import Predictions
from bend_ray.generation.rivals import Choosing, Rival
from bend_ray.process.matrix import Matrix
from bend_ray.report.evaluation import BagScores, Evaluation
from bend_ray.tasks import Task

BAG = "bag"
MEMBER = "member"
"""The bag's member of median validation NLL, alone."""
EQUAL_COST = "equal cost"
"""As many of the ordinary trainings as the bag's cost would have paid for, if there are."""
POPULATIONS = ("generated", "originals", "held_out")


@dataclass(frozen=True)
class StageCosts:
    """Seconds, of the GPU where one was used, else of the CPU; each with all it needs.

    ``bag``: seeds, autoencoder, latents, generator and samples together; ``seeds``: all that were
    trained, ``roots``: what they have in common. ``trained`` counts them, held out or not.
    ``ordinary``: one ordinary training; None where none was done. ``drawing``: one model of each
    rival that draws, answers on validation examples included.
    """

    bag: float
    samples: float
    seeds: float
    roots: float
    trained: int
    ordinary: float | None
    drawing: Mapping[str, float] = field(default_factory=dict)

    def originals(self, count: int) -> float:
        """``count`` members of the trained population, and all roots."""
        return (self.seeds - self.roots) * count / self.trained + self.roots


@dataclass(frozen=True)
class Bag:
    """Members that vote, and what they cost from scratch.

    Attributes:
        models: among whom: a name of predictions.
        members: their places there, in the order in which they joined.
        fixed_seconds: what the first needs, and all share.
        member_seconds: what each needs.
        val_nll_E: of each, on validation examples.
        temperature: fitted there.
    """

    models: str
    members: list[int]
    fixed_seconds: float
    member_seconds: float
    val_nll_E: Tensor
    temperature: float


@dataclass(frozen=True)
class Selection:
    """Chooses members, by predictions on validation examples.

    These are of ``generated``, ``originals``, ``ordinary`` where there are any, and of each rival
    that draws; trunks are of the first three.
    """

    section: EvaluationSection
    predictions: Mapping[str, Predictions]
    trunks: Mapping[str, Tensor]
    prices: StageCosts

    def bags(self) -> dict[str, Bag]:
        """The bag, its median member and every rival by name, and the bag of equal cost."""
        bag = self._bag
        order = bag.val_nll_E.argsort(stable=True).tolist()
        median = [bag.members[order[len(order) // 2]]]
        costs = bag.fixed_seconds, bag.member_seconds
        found = {BAG: bag, MEMBER: self._voting(bag.models, median, *costs)}
        found |= {rival.name: self._rival(rival) for rival in self.section.rivals}
        affordable = affordable_trainings(self.prices)
        if affordable and "ordinary" in self.predictions:
            first = range(min(affordable, len(self.predictions["ordinary"])))
            found[EQUAL_COST] = self._voting("ordinary", first, 0.0, self.prices.ordinary or 0.0)
        return found

    @cached_property
    def _nll(self) -> dict[str, Tensor]:
        return {name: each.scores()[1] for name, each in self.predictions.items() if len(each)}

    @cached_property
    def _bag(self) -> Bag:
        generated, prices = self.predictions["generated"], self.prices
        bagging, drawn = self.section.bagging, len(generated)
        if bagging.size is not None and bagging.size > drawn:  # some that were drawn diverged
            bagging = bagging.model_copy(update={"size": drawn})
        chosen = bagging.choose(generated, self.trunks["generated"])
        if sorted(chosen) == list(range(drawn)):
            costs = prices.bag - prices.samples, prices.samples / drawn
        else:  # To choose among all of them, all must be drawn.
            costs = prices.bag, 0.0
        return self._voting("generated", chosen, *costs)

    def _rival(self, rival: Rival) -> Bag:
        """Who votes for a rival; trained models are paid for where not all of them are."""
        prices, size = self.prices, len(self._bag.members)
        if not isinstance(rival, Choosing):
            members = range(min(size, len(self.predictions[rival.name])))
            fixed = prices.originals(len(self.predictions["originals"]))
            return self._voting(rival.name, members, fixed, prices.drawing[rival.name])
        trunks_E, val_nll_E = self.trunks[rival.among], self._nll[rival.among]
        chosen = rival.choose(trunks_E, val_nll_E, size)
        if rival.among == "ordinary":
            assert prices.ordinary is not None
            return self._voting("ordinary", chosen, 0.0, prices.ordinary)
        if rival.needs_all:
            return self._voting("originals", chosen, prices.originals(len(trunks_E)), 0.0)
        each = prices.originals(1) - prices.roots
        return self._voting("originals", chosen, prices.roots, each)

    def _voting(self, models: str, members: Sequence[int], *costs: float) -> Bag:
        members, (fixed, each) = list(members), costs
        predictions, val_nll_E = self.predictions[models].select(members), self._nll[models]
        votes_NC = self.section.vote.answers(predictions, val_nll_E[members])
        temperature = predictions.task.fit_scale(votes_NC, predictions.labels_N)
        return Bag(models, members, fixed, each, val_nll_E[members], temperature)


def affordable_trainings(prices: StageCosts) -> int:
    """Ordinary trainings that the bag's cost would have paid for; 0 where that is not known."""
    if not prices.ordinary or not math.isfinite(prices.bag):
        return 0
    return max(1, int(prices.bag / prices.ordinary))


@dataclass(frozen=True)
class Members:
    """Single models on the test part: what each predicts, and scores of each."""

    trunks_E: Tensor
    predictions_EN: Tensor
    accuracy_E: Tensor
    nll_E: Tensor

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
        answers: what members say, by the inputs they are asked about, then by population or rival.
        vectors: of ``POPULATIONS``: originals, from which the generator learnt, held-out ones that
            it never saw, and what it drew.
        part: which the test part is.
    """

    section: EvaluationSection
    seed: int
    bags: Mapping[str, Bag]
    answers: Mapping[str, Mapping[str, Predictions]]
    trunks: Mapping[str, Tensor]
    vectors: Mapping[str, Matrix]
    prices: StageCosts
    part: Literal["test", "validation"] = "test"

    @cached_property
    def labels(self) -> Tensor:
        """Of the test part."""
        return self.answers["test"]["generated"].labels_N

    @property
    def task(self) -> Task:
        """What is told."""
        return self.answers["test"]["generated"].task

    @cached_property
    def members(self) -> dict[str, Members]:
        """Single models, by population."""
        said = [(name, its, self.answers["test"][name]) for name, its in self.trunks.items()]
        return {n: Members(its, each.predicted(), *each.scores()) for n, its, each in said}

    def said(self, bag: Bag, about: str = "test") -> Predictions:
        """What a bag's members say of inputs by their name."""
        return self.answers[about][bag.models].select(bag.members)

    def voted(self, bag: Bag, about: str = "test") -> Voted:
        """What a bag says of inputs by their name."""
        plain_NC = self.section.vote.answers(self.said(bag, about), bag.val_nll_E)
        scaled_NC = self.task.scaled(plain_NC, bag.temperature)
        scored_NC = scaled_NC if self.section.temperature_scaling else plain_NC
        return Voted(plain_NC, scaled_NC, scored_NC)

    def scores(self, name: str, voted: Voted) -> BagScores:
        """Of a bag."""
        bag, more = self.bags[name], dict[str, Any]()
        seconds = bag.fixed_seconds + bag.member_seconds * len(bag.members)
        if name == BAG:
            more = {"members": tuple(bag.members), "cost_seconds": self.prices.bag}
        if name == EQUAL_COST:
            more = {"affordable": affordable_trainings(self.prices)}
        return BagScores(
            **self.task.scores(voted.answers_NC, self.labels),
            size=len(bag.members),
            temperature=bag.temperature if self.section.temperature_scaling else None,
            **{"cost_seconds": seconds, **more},
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
