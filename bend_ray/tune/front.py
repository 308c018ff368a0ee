"""The front: bags that no other bag beats in everything, and the one where the trade turns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bend_ray.tune.objectives import ScoredBag


def pareto_front(values_NM: NDArray[np.float64]) -> list[int]:
    """Rows that no other row dominates: none is at most as large in all columns, less in one.

    Args:
        values_NM: of N candidates, M things to be small.

    Returns:
        Their indices, rising; of equal rows the first.

    >>> pareto_front(np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 3.0], [2.0, 2.0]]))
    [0, 1]
    """
    found = []
    for i, row in enumerate(values_NM):
        no_worse = (values_NM <= row).all(axis=1)
        better = no_worse & (values_NM < row).any(axis=1)
        equal_before = no_worse[:i] & (values_NM[:i] == row).all(axis=1)
        if not better.any() and not equal_before.any():
            found.append(i)
    return found


def knee(values_NM: NDArray[np.float64]) -> int:
    """The row nearest to having the least of everything, each column scaled to [0, 1].

    Args:
        values_NM: a front; where it spans magnitudes, their logarithms.

    Returns:
        Its index, the lowest of equals.

    Source: the compromise solution of Zeleny, "Compromise programming", 1973, with the Euclidean
    distance.

    >>> knee(np.array([[0.0, 1.0], [0.2, 0.2], [1.0, 0.0]]))
    1
    """
    low, high = values_NM.min(axis=0), values_NM.max(axis=0)
    scaled = (values_NM - low) / np.where(high > low, high - low, 1.0)
    return int(np.square(scaled).sum(axis=1).argmin())


def trade_off(bags: Sequence[ScoredBag]) -> tuple[list[int], int]:
    """The front of (validation NLL, total cost, inference cost), and its knee.

    Args:
        bags: at least one.

    Returns:
        Indices of the front's bags, and of the one at the knee, costs compared by their logarithms.
    """
    values = np.array([[bag.nll, bag.cost_seconds, bag.flops] for bag in bags], dtype=np.float64)
    front = pareto_front(values)
    values[:, 1:] = np.log(np.maximum(values[:, 1:], 1e-9))
    return front, front[knee(values[front])]
