"""Which members vote. Only validation data is ever looked at.

Shape letters: E members, N validation examples, C classes. Every variant returns member indices
in voting order, so that the first n of them are a sensible smaller bag. Where members are ranked,
one that diverged (nan or infinite logits) comes last; in ``Stratified`` last of its trunk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from bend_ray.ensemble.metrics import SMALLEST_PROBABILITY
from bend_ray.ensemble.predictions import Predictions
from bend_ray.errors import ConfigError
from bend_ray.process.lazy import Tensor, torch
from bend_ray.spec import Spec


class _Bag(Spec):
    """What every bag has: a size."""

    size: int | None = Field(default=None, ge=1)
    """How many members vote, at most as many as there are; null for all of them."""

    def choose(self, predictions: Predictions, trunks_E: Tensor) -> list[int]:
        """Members by what they say of validation examples, the first to vote first.

        ConfigError where the bag is larger than they are.
        """
        num_members = len(predictions)
        size = num_members if self.size is None else self.size
        if size > num_members:
            raise ConfigError(
                f"expected a bag of at most {num_members} members, as many as there are, got "
                f"size {size}; lower the size, leave it out to use all, or make more members"
            )
        return self._order(predictions, trunks_E, size)[:size]

    def _order(self, predictions: Predictions, trunks_E: Tensor, size: int) -> list[int]:
        raise NotImplementedError


class All(_Bag):
    """Everybody; with a size the first of each trunk, then the second of each, and so on."""

    kind: Literal["all"] = "all"

    def _order(self, predictions: Predictions, trunks_E: Tensor, size: int) -> list[int]:
        return _round_robin(range(len(predictions)), trunks_E)


class TopK(_Bag):
    """The best members by validation NLL, each judged by itself."""

    kind: Literal["top_k"] = "top_k"

    def _order(self, predictions: Predictions, trunks_E: Tensor, size: int) -> list[int]:
        return _by_nll(predictions)


class Stratified(_Bag):
    """The best members by validation NLL, as equal a number from each trunk as there are.

    The best of each trunk, then the second best of each, and so on: a size that the trunks do not
    divide gives the last places to the best of their round.
    """

    kind: Literal["stratified"] = "stratified"

    def _order(self, predictions: Predictions, trunks_E: Tensor, size: int) -> list[int]:
        return _round_robin(_by_nll(predictions), trunks_E)


class GreedyForward(_Bag):
    """Add, again and again, the member that lowers the soft-voting bag's validation NLL most.

    Source: Caruana et al., "Ensemble selection from libraries of models", 2004.
    """

    kind: Literal["greedy"] = "greedy"
    with_replacement: bool = False
    """Whether a member may be chosen again, which gives it more weight."""

    def _order(self, predictions: Predictions, trunks_E: Tensor, size: int) -> list[int]:
        """One member at a time, the lowest index among equals; O(size E N)."""
        found = [predictions.task.log_likelihoods(*block) for block in predictions.blocks()]
        probs_EN = torch.cat(found, dim=1).exp()
        # No probability for any label is the worst a member can do, so one that diverged is last.
        probs_EN[~probs_EN.isfinite().all(dim=1)] = 0.0
        total_N = torch.zeros_like(probs_EN[0])
        taken_E = torch.zeros(len(probs_EN), dtype=torch.bool, device=probs_EN.device)
        chosen: list[int] = []
        while len(chosen) < size:
            likelihood_E = (total_N + probs_EN).clamp(min=SMALLEST_PROBABILITY).log().mean(dim=1)
            best = int(likelihood_E.masked_fill(taken_E, -torch.inf).argmax())
            chosen.append(best)
            total_N += probs_EN[best]
            taken_E[best] = not self.with_replacement
        return chosen


def _by_nll(predictions: Predictions) -> list[int]:
    """Member indices from the lowest validation NLL to the highest, nan last."""
    order: list[int] = predictions.scores()[1].argsort(stable=True).tolist()
    return order


def _round_robin(members: Iterable[int], trunks_E: Tensor) -> list[int]:
    """Deal out members in rounds, one of each trunk a round, otherwise in the order given."""
    trunks = trunks_E.tolist()
    rounds: dict[int, int] = {}
    seen: Counter[int] = Counter()
    for member in members:
        rounds[member] = seen[trunks[member]]
        seen[trunks[member]] += 1
    return sorted(rounds, key=rounds.__getitem__)


Bagging = Annotated[All | TopK | GreedyForward | Stratified, Field(discriminator="kind")]
