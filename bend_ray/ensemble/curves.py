"""How an ensemble does as it grows: scores by size, several random choices of members a size.

With ``calibrated_on`` every size is scored at a temperature of its own: of a bag of that many, the
one that fits several of them best on other images.

Shape letters: E members, N examples, C classes, S sizes, D draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bend_ray.ensemble.predictions import Predictions
from bend_ray.ensemble.votes import Vote
from bend_ray.errors import TrainingError
from bend_ray.process.matrix import per_block

if TYPE_CHECKING:
    from bend_ray.tasks import Task

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


def size_curve(
    predictions: Predictions,
    val_nll_E: Tensor,
    vote: Vote,
    generator: torch.Generator,
    num_draws: int = 20,
    calibrated_on: Predictions | None = None,
) -> dict[str, Any]:
    """As ``prefix_curve``, of D random orders of the members that have a vote.

    The last size is the whole ensemble, without spread.
    """
    voters = vote.weights(val_nll_E).nonzero().flatten()
    orders = [voters[torch.randperm(len(voters), generator=generator)] for _ in range(num_draws)]
    sizes = sizes_up_to(len(voters))
    return prefix_curve(predictions, val_nll_E, vote, sizes, orders, calibrated_on)


def prefix_curve(
    predictions: Predictions,
    val_nll_E: Tensor,
    vote: Vote,
    sizes: Sequence[int],
    orders: Sequence[Tensor | list[int]],
    calibrated_on: Predictions | None = None,
) -> dict[str, Any]:
    """Score bags of the first members in the orders given: ``accuracy`` and ``nll`` by ``sizes``.

    Accuracies are fractions of 1, NLL is in nats: of each the ``mean`` over draws, and the
    quantiles ``BAND``, ``low`` and ``high``, (S,).

    Every vote is a mean of the members' own answers, equal or weighted, so a bag that grows is a
    running mean: O(D E N C) whatever the number of sizes.

    Sizes rise, none above an order's length; of ``orders``, positions of members in voting order,
    there is one at least. Temperatures are fitted by ``calibrated_on``; with None the vote is
    scored as it is. TrainingError where logits of a voter are not finite.
    """
    weight_E = vote.weights(val_nll_E)
    temperature_S = _temperatures(calibrated_on, weight_E, vote, sizes, orders)
    num_members, num_examples, num_classes = predictions.shape
    task = predictions.task
    hits_DS = torch.zeros(len(orders), len(sizes), dtype=torch.float64)
    nats_DS = torch.zeros_like(hits_DS)
    width = per_block(8 * num_members * num_classes)
    for logits_ENC, labels_N in predictions.blocks():
        for start in range(0, len(labels_N), width):
            part = slice(start, start + width)
            ballots_ENC = _ballots(logits_ENC[:, part], weight_E, vote, task)
            for draw, order in enumerate(orders):
                bags = _running(ballots_ENC, weight_E, order, sizes)
                hits_S, nats_S = _scored(bags, labels_N[part], temperature_S, predictions)
                hits_DS[draw] += hits_S
                nats_DS[draw] += nats_S
    bands = {"accuracy": _band(hits_DS / num_examples), "nll": _band(nats_DS / num_examples)}
    return {"sizes": list(sizes), **bands}


def _ballots(logits_ENC: Tensor, weight_E: Tensor, vote: Vote, task: Task) -> Tensor:
    """What each member says, times its weight."""
    num_members, num_examples, outputs = logits_ENC.shape
    width = task.answers_of(outputs)
    ballots_ENC = torch.zeros(num_members, num_examples, width, dtype=torch.float64)
    for member in weight_E.nonzero().flatten().tolist():
        ballots_ENC[member] = vote.ballots(logits_ENC[member], task) * weight_E[member]
    return ballots_ENC


def _running(
    ballots_ENC: Tensor, weight_E: Tensor, order: Tensor | list[int], sizes: Sequence[int]
) -> Iterator[Tensor]:
    """Mean ballots (N, C) of the first members in an order, by size."""
    total_NC, counted = torch.zeros_like(ballots_ENC[0]), 0
    for size in sizes:
        total_NC += ballots_ENC[order[counted:size]].sum(dim=0)
        counted = size
        yield total_NC / weight_E[order[:size]].sum()


def _temperatures(
    calibrated_on: Predictions | None,
    weight_E: Tensor,
    vote: Vote,
    sizes: Sequence[int],
    orders: Sequence[Tensor | list[int]],
) -> list[float]:
    """The temperature of each size; all 1 where none is fitted."""
    if calibrated_on is None:
        return [1.0] * len(sizes)
    fitted_on = calibrated_on.thinned(_FITTED_BYTES)
    task = fitted_on.task
    ballots_ENC = _ballots(fitted_on.logits_ENC, weight_E, vote, task)
    chosen = orders[:_FITTED_ORDERS]
    bags = [_running(ballots_ENC, weight_E, order, sizes) for order in chosen]
    labels = torch.cat([fitted_on.labels_N] * len(chosen))
    by_size = zip(*bags, strict=True)
    return [task.fit_scale(task.answers(torch.cat(each)), labels, len(chosen)) for each in by_size]


def _scored(
    ballots_SNC: Iterable[Tensor],
    labels_N: Tensor,
    temperature_S: Sequence[float],
    predictions: Predictions,
) -> tuple[Tensor, Tensor]:
    """Summed scores (right answers, or shares of R^2) and summed NLL, each (S,)."""
    task, found = predictions.task, []
    for ballots_NC, temperature in zip(ballots_SNC, temperature_S, strict=True):
        answers_NC = task.answers(ballots_NC)
        if temperature != 1.0:
            answers_NC = task.scaled(answers_NC, temperature)
        each_2N = task.each(answers_NC, labels_N, predictions.labels_N)
        found.append(torch.stack([each.double().sum() for each in each_2N]))
    hits_S, nats_S = torch.stack(found, dim=1)
    return hits_S, nats_S


def _band(score_DS: Tensor) -> dict[str, list[float]]:
    if not score_DS.isfinite().all():
        raise TrainingError("expected finite answers from every voting member, got nan or inf")
    low_S, high_S = (score_DS.quantile(q, dim=0).tolist() for q in BAND)
    return {"mean": score_DS.mean(dim=0).tolist(), "low": low_S, "high": high_S}
