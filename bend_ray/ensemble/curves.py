"""How an ensemble does as it grows: scores by size, several random choices of members a size.

With ``calibrated_on`` every size is scored at a temperature of its own: of a bag of that many, the
one that fits several of them best on other images.

Shape letters: E members, N examples, C classes, S sizes, D draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from bend_ray.ensemble.predictions import Predictions
from bend_ray.ensemble.votes import Vote
from bend_ray.errors import TrainingError
from bend_ray.process.matrix import per_block

BAND = (0.1, 0.9)
"""Quantiles of the draws between which a band is drawn."""
_FITTED_ORDERS = 5
"""By whose bags a size's temperature is fitted."""

_FITTED_BYTES = 256 * 2**20
"""Logits of the examples on which it is; of more, evenly spaced ones are taken."""


def sizes_up_to(num_members: int) -> list[int]:
    """About two sizes a doubling, and the whole.

    >>> sizes_up_to(20)
    [1, 2, 3, 4, 6, 8, 12, 16, 20]
    """
    powers = [2**i for i in range(num_members.bit_length())]
    between = [3 * size for size in powers]
    return sorted({size for size in [*powers, *between, num_members] if size <= num_members})


@dataclass(frozen=True)
class Growth:
    """Bags of the first members in several orders, by their size; votes weigh by ``val_nll_E``.

    Sizes rise, none above an order's length; of ``orders``, positions of members in voting order,
    there is one at least.
    """

    vote: Vote
    val_nll_E: Tensor
    sizes: Sequence[int]
    orders: Sequence[Tensor | list[int]]

    @classmethod
    def by_chance(
        cls, vote: Vote, val_nll_E: Tensor, generator: torch.Generator, num_draws: int = 20
    ) -> Self:
        """In D random orders of the members that have a vote.

        The last size is the whole ensemble, without spread.
        """
        voters = vote.weights(val_nll_E).nonzero().flatten()
        draws = (torch.randperm(len(voters), generator=generator) for _ in range(num_draws))
        return cls(vote, val_nll_E, sizes_up_to(len(voters)), [voters[draw] for draw in draws])

    @cached_property
    def weight_E(self) -> Tensor:  # noqa: N802 - a shape
        """Of each member."""
        return self.vote.weights(self.val_nll_E)

    def curve(
        self, predictions: Predictions, calibrated_on: Predictions | None = None
    ) -> dict[str, Any]:
        """Score all bags: ``accuracy`` and ``nll`` by ``sizes``.

        Accuracies are fractions of 1, NLL is in nats: of each the ``mean`` over draws, and the
        quantiles ``BAND``, ``low`` and ``high``, (S,).

        Every vote is a mean of the members' own answers, equal or weighted, so a bag that grows is
        a running mean: O(D E N C) whatever the number of sizes.

        Temperatures are fitted by ``calibrated_on``; with None the vote is scored as it is.
        TrainingError where logits of a voter are not finite.
        """
        temperature_S = [1.0] * len(self.sizes)
        if calibrated_on is not None:
            temperature_S = self._temperatures(calibrated_on.thinned(_FITTED_BYTES))
        num_members, num_examples, num_classes = predictions.shape
        task = predictions.task
        sums_2DS = torch.zeros(2, len(self.orders), len(self.sizes), dtype=torch.float64)
        width = per_block(8 * num_members * num_classes)
        for logits_ENC, labels_N in predictions.blocks():
            for start in range(0, len(labels_N), width):
                own = slice(start, start + width)
                part = Predictions(logits_ENC[:, own], labels_N[own], task)
                ballots_ENC = self._ballots(part)
                for draw, order in enumerate(self.orders):
                    bags = zip(self._running(ballots_ENC, order), temperature_S, strict=True)
                    for size, (ballots_NC, temperature) in enumerate(bags):
                        answers_NC = task.answers(ballots_NC)
                        if temperature != 1.0:
                            answers_NC = task.scaled(answers_NC, temperature)
                        each_2N = task.each(answers_NC, part.labels_N, predictions.labels_N)
                        sums_2DS[:, draw, size] += torch.stack([e.double().sum() for e in each_2N])
        accuracy, nll = map(_band, sums_2DS / num_examples)
        return {"sizes": list(self.sizes), "accuracy": accuracy, "nll": nll}

    def _ballots(self, predictions: Predictions) -> Tensor:
        """What each member says, times its weight."""
        (num_members, num_examples, outputs), task = predictions.shape, predictions.task
        ballots_ENC = torch.zeros(
            num_members, num_examples, task.answers_of(outputs), dtype=torch.float64
        )
        for member in self.weight_E.nonzero().flatten().tolist():
            said = self.vote.ballots(predictions.logits_ENC[member], task)
            ballots_ENC[member] = said * self.weight_E[member]
        return ballots_ENC

    def _running(self, ballots_ENC: Tensor, order: Tensor | list[int]) -> Iterator[Tensor]:
        """Mean ballots (N, C) of the first members in an order, by size."""
        total_NC, counted = torch.zeros_like(ballots_ENC[0]), 0
        for size in self.sizes:
            total_NC += ballots_ENC[order[counted:size]].sum(dim=0)
            counted = size
            yield total_NC / self.weight_E[order[:size]].sum()

    def _temperatures(self, fitted_on: Predictions) -> list[float]:
        ballots_ENC, task = self._ballots(fitted_on), fitted_on.task
        chosen = self.orders[:_FITTED_ORDERS]
        labels = torch.cat([fitted_on.labels_N] * len(chosen))
        by_size = zip(*(self._running(ballots_ENC, order) for order in chosen), strict=True)
        return [
            task.fit_scale(task.answers(torch.cat(each)), labels, len(chosen)) for each in by_size
        ]


def _band(score_DS: Tensor) -> dict[str, list[float]]:
    if not score_DS.isfinite().all():
        raise TrainingError("expected finite answers from every voting member, got nan or inf")
    low_S, high_S = (score_DS.quantile(q, dim=0).tolist() for q in BAND)
    return {"mean": score_DS.mean(dim=0).tolist(), "low": low_S, "high": high_S}
