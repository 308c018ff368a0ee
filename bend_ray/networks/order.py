"""Which examples a model sees at each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Order:
    """Batches of a model, a function of its generator's seed and of the step alone.

    Every epoch is a fresh permutation of the (re)sample. Steps are asked for in their order, from
    any: epochs before are drawn and left.

    Args:
        batch_sizes: of an epoch; they sum to N.
        bootstrap: permute N examples drawn with replacement, once, instead of all N.
        generator: fresh, and drawn from by nobody else.
    """

    def __init__(
        self, batch_sizes: Sequence[int], bootstrap: bool, generator: torch.Generator
    ) -> None:
        self._sizes = list(batch_sizes)
        self._generator = generator
        count = sum(batch_sizes)
        self._sample = torch.arange(count)
        if bootstrap:
            self._sample = torch.randint(count, (count,), generator=generator)
        self._epoch = -1
        self._batches: Sequence[Tensor] = ()

    def batch(self, step: int) -> Tensor:
        """Indices of the examples of a step, counted from 0."""
        epoch, place = divmod(step, len(self._sizes))
        assert epoch >= self._epoch, "expected steps in their order"
        while self._epoch < epoch:
            order = torch.randperm(len(self._sample), generator=self._generator)
            self._batches = torch.split(self._sample[order], self._sizes)
            self._epoch += 1
        return self._batches[place]
