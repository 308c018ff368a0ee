"""What members say of labelled examples, read in blocks of examples.

Shape letters: E members, N examples, n of a block, C outputs: classes, or what a task has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bend_ray.process.lazy import Tensor, torch

if TYPE_CHECKING:
    from bend_ray.tasks import Task

BLOCK_BYTES = 64 * 2**20
"""Logits of a block."""


class Predictions:
    """Outputs ``(E, N, C)`` and labels ``(N, ...)`` of a task; here all in memory."""

    def __init__(self, logits_ENC: Tensor, labels_N: Tensor, task: Task) -> None:
        self.logits_ENC = logits_ENC
        self.labels_N = labels_N
        self.task = task

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, N and C."""
        num_members, num_examples, num_classes = self.logits_ENC.shape
        return num_members, num_examples, num_classes

    def select(self, members: Sequence[int]) -> Predictions:
        """Those of some members, in the order given."""
        return Predictions(self.logits_ENC[list(members)], self.labels_N, self.task)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits ``(E, n, C)`` and labels of consecutive examples."""
        size = block_size(*self.shape[::2])
        for start in range(0, len(self.labels_N), size):
            own = slice(start, start + size)
            yield self.logits_ENC[:, own], self.labels_N[own]

    def scores(self) -> tuple[Tensor, Tensor]:
        """Score (accuracy, or R^2) and NLL of every member, each (E,) float64; nan if diverged."""
        task, sums_2E = self.task, torch.zeros(2, len(self), dtype=torch.float64)
        for outputs, labels in self.blocks() if len(self) else ():
            nll_E = -task.log_likelihoods(outputs, labels).mean(dim=1)
            score_E = task.member_scores(outputs, labels, self.labels_N)
            sums_2E += torch.stack([score_E, nll_E]) * len(labels)
        score_E, nll_E = sums_2E / len(self.labels_N)
        return score_E, nll_E

    def predicted(self) -> Tensor:
        """What each member predicts, ``(E, N, ...)``, in as few bytes as classes need."""
        nobody = self.task.predictions(torch.empty(len(self), 0, self.shape[2]))
        found = (self.task.predictions(outputs) for outputs, _ in self.blocks() if len(self))
        return torch.cat([nobody, *found], dim=1)

    def thinned(self, num_bytes: float) -> Predictions:
        """As many evenly spaced examples as fit, in memory."""
        num_members, num_examples, num_classes = self.shape
        fitting = max(1, int(num_bytes // (4 * num_members * num_classes)))
        step, first = -(-num_examples // fitting), 0
        kept: list[tuple[Tensor, Tensor]] = []
        for logits, labels in self.blocks():
            own = slice(-first % step, None, step)
            kept.append((logits[:, own], labels[own]))
            first += len(labels)
        return Predictions(
            torch.cat([logits for logits, _ in kept], dim=1),
            torch.cat([labels for _, labels in kept]),
            self.task,
        )


def block_size(num_members: int, num_classes: int) -> int:
    """Examples of a block."""
    return max(1, BLOCK_BYTES // (4 * max(1, num_members) * num_classes))
