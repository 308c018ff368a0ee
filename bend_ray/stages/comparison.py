"""The comparison: what populations, and bags of their members, answer on the test part.

Shape letters: E members, N images, C classes, P parameters.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bend_ray.artifacts.population import Population
from bend_ray.config import (
    BestOriginal,
    DeepEnsemble,
    EvaluationSection,
    OriginalsBag,
    Rival,
    TrunkBag,
)
from bend_ray.ensemble.metrics import (
    disagreement,
    error_iou,
    member_accuracy,
    member_nll,
    q_statistic,
    score,
)
from bend_ray.ensemble.novelty import novelty
from bend_ray.generation.rivals import WeightSpaceRival, round_robin
from bend_ray.randomness import generator_for
from bend_ray.spec import variants
from bend_ray.stages.classifiers import Classifiers

WEIGHT_SPACE = variants(WeightSpaceRival)


@dataclass(frozen=True)
class Prices:
    """Seconds, of the GPU where one was used, else of the CPU; each with all it needs.

    Attributes:
        bag: seeds, autoencoder, latents, generator and samples together.
        samples: the samples stage alone.
        seeds: the whole trained population.
        roots: what its members have in common, part of ``seeds``.
        trained: members of the trained population, held out or not.
        ordinary: one ordinary training; None where none was done.
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
        return cls.ask(theta_EP, torch.from_numpy(population.trunk).long(), classifiers)

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
        return Members(
            self.theta_EP[indices],
            self.trunks_E[indices],
            self.val_logits_ENC[indices],
            self.test_logits_ENC[indices],
        )

    def predictions(self) -> Tensor:
        """Each member's class for each test image, ``(E, N)``."""
        return self.test_logits_ENC.argmax(dim=-1)

    def __len__(self) -> int:
        return len(self.trunks_E)


class Comparison:
    """Everything the evaluation says.

    Args:
        section: which members vote, how, and against whom.
        seed: of the rivals' randomness.
        classifiers: data and executor.
        originals: the trained members the generator learnt from.
        held_out: the trained members it never saw.
        generated: what it drew.
        ordinary: a deep ensemble's members, if one was trained.
        prices: what all of these cost.
    """

    def __init__(
        self,
        section: EvaluationSection,
        seed: int,
        classifiers: Classifiers,
        *,
        originals: Members,
        held_out: Members,
        generated: Members,
        ordinary: Members | None,
        prices: Prices,
    ) -> None:
        self.section = section
        self.seed = seed
        self.classifiers = classifiers
        self.originals = originals
        self.held_out = held_out
        self.generated = generated
        self.ordinary = ordinary
        self.prices = prices
        dataset = classifiers.dataset
        self.val_labels_N = dataset.validation.labels_N
        self.test_labels_N = dataset.test.labels_N

    def metrics(self) -> dict[str, Any]:
        """The figures, as JSON."""
        chosen = self.section.bagging.choose(
            self.generated.val_logits_ENC, self.val_labels_N, self.generated.trunks_E
        )
        bag = self.generated.select(chosen)
        novelties = {
            name: asdict(self._novelty(members)) if len(members) else None
            for name, members in (("generated", self.generated), ("held_out", self.held_out))
        }
        return {
            "bag": {**self._vote(bag), "cost_seconds": self.prices.bag, "members": chosen},
            "generated": {"accuracy": self._spread(self.generated)},
            "originals": {"accuracy": self._spread(self.originals)},
            "held_out": {"accuracy": self._spread(self.held_out)},
            "rivals": {r.kind: self._rival(r, len(chosen)) for r in self.section.rivals},
            "diversity": {
                "generated": self._diversity(self.generated),
                "originals": self._diversity(self.originals),
                "held_out": self._diversity(self.held_out),
            },
            "novelty": {**(novelties["generated"] or {}), "held_out": novelties["held_out"]},
            "prices": self._prices(),
        }

    def _vote(self, members: Members) -> dict[str, Any]:
        """How a bag of all of ``members`` scores on the test part."""
        val_nll_E = member_nll(members.val_logits_ENC, self.val_labels_N)
        probs_NC = self.section.vote.combine(members.test_logits_ENC, val_nll_E)
        return {**asdict(score(probs_NC, self.test_labels_N)), "size": len(members)}

    def _spread(self, members: Members) -> dict[str, float] | None:
        if not len(members):
            return None
        accuracy_E = member_accuracy(members.test_logits_ENC, self.test_labels_N)
        return {
            "mean": accuracy_E.mean().item(),
            "median": accuracy_E.quantile(0.5).item(),
            "min": accuracy_E.min().item(),
            "max": accuracy_E.max().item(),
            "std": accuracy_E.std(correction=0).item(),
        }

    def _diversity(self, members: Members) -> dict[str, float] | None:
        if len(members) < 2:
            return None
        predictions_EN = members.predictions()
        return {
            "disagreement": disagreement(predictions_EN),
            "error_iou": error_iou(predictions_EN, self.test_labels_N),
            "q_statistic": q_statistic(predictions_EN, self.test_labels_N),
        }

    def _novelty(self, members: Members) -> Any:
        return novelty(
            members.theta_EP,
            members.trunks_E,
            members.predictions(),
            self.originals.theta_EP,
            self.originals.trunks_E,
            self.originals.predictions(),
        )

    def _rival(self, rival: Rival, size: int) -> dict[str, Any]:
        """A rival's scores on the test part, and what it costs from scratch."""
        started = time.process_time()
        members, seconds = self._members_of(rival, size)
        drawing = time.process_time() - started if isinstance(rival, WEIGHT_SPACE) else 0.0
        return {**self._vote(members), "cost_seconds": seconds + drawing}

    def _members_of(self, rival: Rival, size: int) -> tuple[Members, float]:
        """Who votes for a rival, and what their training cost."""
        originals = self.originals
        if isinstance(rival, OriginalsBag):
            size = min(size, len(originals))
            chosen = round_robin(originals.trunks_E, size).tolist()
            return originals.select(chosen), self.prices.originals(size)
        if isinstance(rival, TrunkBag):
            trunks = len(torch.unique(originals.trunks_E))
            chosen = round_robin(originals.trunks_E, trunks).tolist()
            return originals.select(chosen), self.prices.originals(trunks)
        if isinstance(rival, BestOriginal):
            best = int(member_nll(originals.val_logits_ENC, self.val_labels_N).argmin())
            return originals.select([best]), self.prices.originals(len(originals))
        if isinstance(rival, DeepEnsemble):
            assert self.ordinary is not None
            assert self.prices.ordinary is not None
            members = self.ordinary.select(list(range(min(size, len(self.ordinary)))))
            return members, self.prices.ordinary * len(members)
        theta_EP, trunks_E = rival.draw(
            originals.theta_EP,
            originals.trunks_E,
            size,
            generator_for(self.seed, "rival", rival.kind),
        )
        # As the generated members were: an average of running statistics is of no one model.
        theta_EP = self.classifiers.recalibrate(theta_EP, trunks_E.tolist())
        members = Members.ask(theta_EP, trunks_E, self.classifiers)
        return members, self.prices.originals(len(originals))

    def _prices(self) -> dict[str, Any]:
        """Seconds a model: the next generated one, each with all before it, an ordinary one."""
        prices, drawn = self.prices, len(self.generated)
        told: dict[str, Any] = {
            "per_model": {
                "marginal_seconds": prices.samples / drawn,
                "amortised_seconds": prices.bag / drawn,
                "ordinary_seconds": prices.ordinary,
            }
        }
        if self.ordinary is not None and prices.ordinary:
            affordable = max(1, int(prices.bag / prices.ordinary))
            size = min(affordable, len(self.ordinary))
            told["equal_cost_deep_ensemble"] = {
                "affordable": affordable,
                **self._vote(self.ordinary.select(list(range(size)))),
                "cost_seconds": prices.ordinary * size,
            }
        return told
