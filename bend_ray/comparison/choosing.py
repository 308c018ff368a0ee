"""The bag and its rivals: who votes, at what temperature, and what that costs from scratch.

Only validation examples are looked at. Shape letters: E members, N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from bend_ray.config.schema import EvaluationSection
from bend_ray.ensemble.predictions import Predictions
from bend_ray.generation.rivals import Choosing, Rival

BAG = "bag"
MEMBER = "member"
"""The bag's member of median validation NLL, alone."""
EQUAL_COST = "equal cost"
"""As many of the ordinary trainings as the bag's cost would have paid for, if there are."""


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

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.fixed_seconds + self.member_seconds * len(self.members)


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
        """Of every member, by name."""
        return {name: each.scores()[1] for name, each in self.predictions.items() if len(each)}

    @cached_property
    def _bag(self) -> Bag:
        """The bag of generated classifiers."""
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

    def _voting(
        self, models: str, members: Sequence[int], fixed_seconds: float, member_seconds: float
    ) -> Bag:
        """Some members together."""
        members = list(members)
        predictions, val_nll_E = self.predictions[models].select(members), self._nll[models]
        votes_NC = self.section.vote.answers(predictions, val_nll_E[members])
        temperature = predictions.task.fit_scale(votes_NC, predictions.labels_N)
        costs = fixed_seconds, member_seconds
        return Bag(models, members, *costs, val_nll_E[members], temperature)


def affordable_trainings(prices: StageCosts) -> int:
    """Ordinary trainings that the bag's cost would have paid for; 0 where that is not known."""
    if not prices.ordinary or not math.isfinite(prices.bag):
        return 0
    return max(1, int(prices.bag / prices.ordinary))
