"""Classifiers whose parameters are their answers: a population without training, or Ray."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.comparison.comparison import Comparison, Selection, StageCosts
from bend_ray.config.schema import EvaluationSection
from bend_ray.ensemble.predictions import Predictions
from bend_ray.generation.rivals import Drawing, Trained
from bend_ray.randomness import generator_for
from bend_ray.tasks import Classification

CLASSES = Classification()

N, C = 12, 3
LABELS = torch.arange(2 * N) % C
DRAWN = ("weight_average", "trunk_averages", "noise", "gaussian", "multiswag")
DRAWING = dict.fromkeys(DRAWN, 0.5)
PRICES = StageCosts(20.0, 1.0, 10.0, 2.0, trained=8, ordinary=1.5, drawing=DRAWING)


@dataclass(frozen=True)
class Population:
    """A vector is the logits of N validation, then of N test examples."""

    theta_EP: Tensor
    trunks_E: Tensor

    def part(self, index: int) -> Predictions:
        logits = self.theta_EP.view(len(self.theta_EP), 2, N, C)[:, index]
        return Predictions(logits, LABELS.view(2, N)[index], CLASSES)

    @property
    def validation(self) -> Predictions:
        return self.part(0)

    @property
    def test(self) -> Predictions:
        return self.part(1)


def members(count: int, seed: int) -> Population:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(count, 2 * N * C, generator=generator)
    return Population(theta, torch.arange(count) % 2)


def drawn(
    rival: Drawing, theta_KP: Tensor, trunks_K: Tensor, count: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """All that a rival draws."""
    stream = lambda index: generator_for(seed, "rival", index)  # noqa: E731
    places = range(rival.num_drawn(count, len(trunks_K.unique())))
    return rival.draw(Trained(theta_KP, trunks_K, count, stream), places)


def comparison_of(
    section: EvaluationSection,
    populations: dict[str, Population | None],
    prices: StageCosts = PRICES,
) -> Comparison:
    """All chosen on validation examples, and ready to be scored on the test part."""
    given = {name: each for name, each in populations.items() if each is not None}
    originals, generated = given["originals"], given["generated"]
    rivals = {
        rival.name: Population(
            *drawn(rival, originals.theta_EP, originals.trunks_E, len(generated.theta_EP))
        )
        for rival in section.rivals
        if isinstance(rival, Drawing)
    }
    validation = {name: each.validation for name, each in (given | rivals).items()}
    test = {name: each.test for name, each in (given | rivals).items()}
    trunks = {name: each.trunks_E for name, each in given.items()}
    return Comparison(
        section,
        0,
        Selection(section, validation, trunks, prices).bags(),
        {"validation": validation, "test": test},
        trunks,
        {name: each.theta_EP for name, each in given.items() if name != "ordinary"},
        prices,
    )
