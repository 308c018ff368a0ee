"""Classifiers whose parameters are their answers: a population without training, or Ray."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from bend_ray.comparison.comparison import Members, StageCosts
from bend_ray.data.examples import Examples

N, C = 12, 3
PRICES = StageCosts(bag=20.0, samples=1.0, seeds=10.0, roots=2.0, trained=8, ordinary=1.5)


class Answers:
    """Stands in for ``Classifiers``: a vector is the logits of N validation, then N test images."""

    def __init__(self) -> None:
        labels = torch.arange(2 * N) % C
        blank = torch.zeros(N, 1, 1, 1)
        self.dataset = SimpleNamespace(
            validation=Examples(blank, labels[:N]),
            test=Examples(blank + 1, labels[N:]),
            has_test=True,
        )

    def logits(self, theta_EP: Tensor, images: Examples, trunks_E: list[int]) -> Tensor:
        logits = theta_EP.view(len(theta_EP), 2, N, C)
        return logits[:, int(images.inputs[0].item())]

    def recalibrate(self, theta_EP: Tensor, trunks_E: list[int]) -> Tensor:
        return theta_EP


def members(count: int, seed: int) -> Members:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(count, 2 * N * C, generator=generator)
    return Members.ask(theta, torch.arange(count) % 2, Answers())  # type: ignore[arg-type]
