"""The comparison: what populations, and bags of their members, answer on the test part.

Shape letters: E members, N images, C classes, P parameters.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bend_ray.artifacts.population import Population
from bend_ray.config.schema import EvaluationSection
from bend_ray.ensemble.metrics import (
    disagreement,
    error_iou,
    member_accuracy,
    member_nll,
    q_statistic,
    score,
)
from bend_ray.ensemble.novelty import novelty
from bend_ray.ensemble.votes import apply_temperature, fit_temperature
from bend_ray.generation.rivals import Choosing, Drawing, Rival
from bend_ray.populations.networks import Classifiers
from bend_ray.randomness import generator_for
from bend_ray.report.evaluation import (
    BagScores,
    Diversity,
    DiversityScores,
    Evaluation,
    ModelPrices,
    Novelty,
    NoveltyScores,
    PopulationScores,
    Prices,
    Spread,
)


@dataclass(frozen=True)
class StageCosts:
    """Seconds, of the GPU where one was used, else of the CPU; each with all it needs.

    ``bag``: seeds, autoencoder, latents, generator and samples together; ``seeds``: all that were
    trained, ``roots``: what they have in common. ``trained`` counts them, held out or not.
    ``ordinary``: one ordinary training; None where none was done.
    """

    bag: float
    samples: float
    seeds: float
    roots: float
    trained: int
    ordinary: float | None

    def originals(self, count: int) -> float:
        """``count`` members of the trained population, and all roots."""
        return (self.seeds - self.roots) * count / self.trained + self.roots


@dataclass(frozen=True)
class Members:
    """Classifiers and what they answer on the validation and the test part."""

    theta_EP: Tensor
    trunks_E: Tensor
    val_logits_ENC: Tensor
    test_logits_ENC: Tensor

    @classmethod
    def of(cls, population: Population, classifiers: Classifiers) -> Members:
        """A stored population, asked."""
        theta_EP = torch.from_numpy(population.theta_KP)
        return cls.ask(theta_EP, torch.tensor(population.trunk).long(), classifiers)

    @classmethod
    def ask(cls, theta_EP: Tensor, trunks_E: Tensor, classifiers: Classifiers) -> Members:
        """Vectors, asked."""
        dataset = classifiers.dataset
        parts = (dataset.validation, dataset.test)
        trunks = trunks_E.tolist()
        answers = (classifiers.logits(theta_EP, part, trunks) for part in parts)
        return cls(theta_EP, trunks_E, *answers)

    def select(self, indices: list[int]) -> Members:
        """Some of them, in the order given."""
        return Members(*(getattr(self, each.name)[indices] for each in fields(self)))

    def predictions(self) -> Tensor:
        """Each member's class for each test image, ``(E, N)``."""
        return self.test_logits_ENC.argmax(dim=-1)

    def __len__(self) -> int:
        return len(self.trunks_E)


@dataclass(frozen=True)
class Bag:
    """Members that vote, what they cost from scratch, and what they say of the test part.

    Members are in the order in which they joined; the first needs ``fixed_seconds``, which all
    share, and each ``member_seconds``. ``plain_NC`` is by the vote, ``temperature`` fitted on the
    validation part, ``at_temperature`` whether the bag answers at it.
    """

    members: Members
    fixed_seconds: float
    member_seconds: float
    plain_NC: Tensor
    temperature: float
    at_temperature: bool

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.fixed_seconds + self.member_seconds * len(self.members)

    @cached_property
    def scaled(self) -> Tensor:
        """At the temperature, ``(N, C)``."""
        return apply_temperature(self.plain_NC, self.temperature)

    @property
    def answers(self) -> Tensor:
        """As they are scored, ``(N, C)``."""
        return self.scaled if self.at_temperature else self.plain_NC


@dataclass
class Comparison:
    """Everything the evaluation says.

    Attributes:
        section: which members vote, how, and against whom.
        seed: of the rivals' randomness.
        classifiers: data and executor.
        originals: the trained members the generator learnt from.
        held_out: the trained members it never saw.
        generated: what it drew.
        ordinary: a deep ensemble's members, if one was trained.
        prices: what all of these cost.
    """

    section: EvaluationSection
    seed: int
    classifiers: Classifiers
    originals: Members
    held_out: Members
    generated: Members
    ordinary: Members | None
    prices: StageCosts

    def __post_init__(self) -> None:
        dataset = self.classifiers.dataset
        self.val_labels_N = dataset.validation.labels_N
        self.test_labels_N = dataset.test.labels_N

    @property
    def populations(self) -> dict[str, Members]:
        """All but the ordinary one, by name."""
        names = ("generated", "originals", "held_out")
        return {name: getattr(self, name) for name in names}

    def evaluation(self) -> Evaluation:
        """The figures."""
        populations = self.populations
        held_out = NoveltyScores(**self._novelty(self.held_out)) if len(self.held_out) else None
        return Evaluation(
            part="test" if self.classifiers.dataset.has_test else "validation",
            bag=self._scores(self.bag, members=tuple(self.chosen), cost_seconds=self.prices.bag),
            rivals={name: self._scores(bag) for name, bag in self.rivals.items()},
            diversity=Diversity(**{n: self._diversity(m) for n, m in populations.items()}),
            novelty=Novelty(**self._novelty(self.generated), held_out=held_out),
            prices=self._model_costs(),
            **{n: PopulationScores(accuracy=self._spread(m)) for n, m in populations.items()},
        )

    def _scores(self, bag: Bag, **more: Any) -> BagScores:
        """How a bag scores on the test part."""
        return BagScores(
            **asdict(score(bag.answers, self.test_labels_N)),
            size=len(bag.members),
            temperature=bag.temperature if bag.at_temperature else None,
            **{"cost_seconds": bag.seconds, **more},
        )

    def vote(self, members: Members, fixed_seconds: float, member_seconds: float) -> Bag:
        """All of ``members`` together."""
        val_nll_E = member_nll(members.val_logits_ENC, self.val_labels_N)
        val_NC, test_NC = (
            self.section.vote.combine(logits, val_nll_E)
            for logits in (members.val_logits_ENC, members.test_logits_ENC)
        )
        temperature = fit_temperature(val_NC, self.val_labels_N)
        scaled = self.section.temperature_scaling
        return Bag(members, fixed_seconds, member_seconds, test_NC, temperature, scaled)

    def _spread(self, members: Members) -> Spread | None:
        if not len(members):
            return None
        accuracy_E = member_accuracy(members.test_logits_ENC, self.test_labels_N)
        return Spread(
            mean=accuracy_E.mean().item(),
            median=accuracy_E.quantile(0.5).item(),
            min=accuracy_E.min().item(),
            max=accuracy_E.max().item(),
            std=accuracy_E.std(correction=0).item(),
        )

    def _diversity(self, members: Members) -> DiversityScores | None:
        if len(members) < 2:
            return None
        predictions_EN = members.predictions()
        return DiversityScores(
            disagreement=disagreement(predictions_EN),
            error_iou=error_iou(predictions_EN, self.test_labels_N),
            q_statistic=q_statistic(predictions_EN, self.test_labels_N),
        )

    def _novelty(self, members: Members) -> dict[str, Any]:
        models, originals = (
            (each.theta_EP, each.trunks_E, each.predictions()) for each in (members, self.originals)
        )
        return asdict(novelty(*models, *originals))

    @cached_property
    def chosen(self) -> list[int]:
        """Which generated classifiers vote, by position."""
        bagging, drawn = self.section.bagging, len(self.generated)
        if bagging.size is not None and bagging.size > drawn:  # some that were drawn diverged
            bagging = bagging.model_copy(update={"size": drawn})
        return bagging.choose(
            self.generated.val_logits_ENC, self.val_labels_N, self.generated.trunks_E
        )

    @cached_property
    def bag(self) -> Bag:
        """The bag of generated classifiers."""
        prices, drawn = self.prices, len(self.generated)
        members = self.generated.select(self.chosen)
        if sorted(self.chosen) == list(range(drawn)):
            return self.vote(members, prices.bag - prices.samples, prices.samples / drawn)
        # To choose among all of them, all must be drawn.
        return self.vote(members, prices.bag, 0.0)

    @cached_property
    def rivals(self) -> dict[str, Bag]:
        """The rivals by name; those drawn for the comparison without their parameters."""
        return {rival.name: self._rival(rival, len(self.chosen)) for rival in self.section.rivals}

    def _rival(self, rival: Rival, size: int) -> Bag:
        """Who votes for a rival, and what it costs from scratch."""
        if isinstance(rival, Choosing):
            return self._picked(rival, size)
        started = time.process_time()
        members = self._drawn(rival, size)
        drawing = time.process_time() - started
        fixed = self.prices.originals(len(self.originals))
        return self.vote(members, fixed, drawing / len(members))

    def _picked(self, rival: Choosing, size: int) -> Bag:
        """Trained models; each is paid for where not all of the population is."""
        prices = self.prices
        trained = self.originals if rival.among == "originals" else self.ordinary
        assert trained is not None, f"expected models for {rival.name}"
        val_nll_E = member_nll(trained.val_logits_ENC, self.val_labels_N)
        members = trained.select(rival.choose(trained.trunks_E, val_nll_E, size))
        if rival.among == "ordinary":
            assert prices.ordinary is not None
            return self.vote(members, 0.0, prices.ordinary)
        if rival.needs_all:
            return self.vote(members, prices.originals(len(trained)), 0.0)
        return self.vote(members, prices.roots, prices.originals(1) - prices.roots)

    def _drawn(self, rival: Drawing, size: int) -> Members:
        """Members a rival draws around the originals, asked."""
        theta_EP, trunks_E = rival.draw(
            self.originals.theta_EP,
            self.originals.trunks_E,
            size,
            generator_for(self.seed, "rival", rival.name),
        )
        # As the generated members were: an average of running statistics is of no one model.
        theta_EP = self.classifiers.recalibrate(theta_EP, trunks_E.tolist())
        members = Members.ask(theta_EP, trunks_E, self.classifiers)
        # Nobody asks for the parameters again, and they may be large.
        return replace(members, theta_EP=theta_EP.new_empty(len(theta_EP), 0))

    def _model_costs(self) -> Prices:
        """Seconds a model: the next generated one, each with all before it, an ordinary one."""
        prices, drawn = self.prices, len(self.generated)
        per_model = ModelPrices(
            marginal_seconds=prices.samples / drawn,
            amortised_seconds=prices.bag / drawn,
            ordinary_seconds=prices.ordinary,
        )
        equal = None
        if self.ordinary is not None and prices.ordinary and math.isfinite(prices.bag):
            affordable = max(1, int(prices.bag / prices.ordinary))
            members = self.ordinary.select(list(range(min(affordable, len(self.ordinary)))))
            bag = self.vote(members, 0.0, prices.ordinary)
            equal = self._scores(bag, affordable=affordable)
        return Prices(per_model=per_model, equal_cost_deep_ensemble=equal)
