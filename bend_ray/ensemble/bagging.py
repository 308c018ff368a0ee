"""Which members vote. Only validation data is ever looked at.

Shape letters: E members, N validation examples, C classes. Every variant returns member indices
in voting order, so that the first n of them are a sensible smaller bag. Where members are ranked,
one that diverged (nan or infinite logits) comes last; in ``Stratified`` last of its trunk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from bend_ray.ensemble.predictions import Predictions
from bend_ray.errors import ConfigError
from bend_ray.process.lazy import Tensor, torch
from bend_ray.spec import Spec

if TYPE_CHECKING:
    from bend_ray.tasks import Task


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
        task, labels_N = predictions.task, predictions.labels_N
        shares_ENV = torch.cat([task.shares(*block) for block in predictions.blocks()], dim=1)
        alone_E = None if self.with_replacement else torch.arange(len(shares_ENV))
        return greedy(task, shares_ENV, labels_N, size, alone_E)


def greedy(
    task: Task,
    shares_ENV: Tensor,
    labels_N: Tensor,
    size: int,
    kind_E: Tensor | None,
    first: Sequence[int] = (),
) -> list[int]:
    """Members in the order in which they are added, by their ``task.shares``; some are the first.

    The next is who, added, gives the bag the lowest NLL; one that diverged is the last.
    Of a kind one is chosen at most; without kinds each may come again.
    """
    finite_E = shares_ENV.isfinite().flatten(1).all(dim=1)
    shares_ENV = shares_ENV.where(finite_E[:, None, None], 0.0)
    last_E = torch.zeros(len(shares_ENV), device=shares_ENV.device).masked_fill(~finite_E, 1e30)
    given, chosen, total_NV = [*first], list[int](), torch.zeros_like(shares_ENV[0])
    while len(chosen) < size:
        mean_ENV = (total_NV + shares_ENV) / (len(chosen) + 1)
        nats_E = task.nats(mean_ENV, labels_N).mean(dim=1) + last_E
        chosen.append(given.pop(0) if given else int(nats_E.argmin()))
        total_NV += shares_ENV[chosen[-1]]
        if kind_E is not None:
            last_E[kind_E == kind_E[chosen[-1]]] = torch.inf
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
