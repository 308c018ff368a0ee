"""Hidden units in a common order: networks that differ only in the names of their units.

Permuting the units of a hidden layer, with the rows that feed it and the columns that read it,
leaves a network's function as it is. ``align`` finds the permutations that bring networks closest
to another, so that their averages and interpolations mean something.

Source: weight matching in Git Re-Basin, Ainsworth, Hayase & Srinivasa (2023), arXiv 2209.04836.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bend_ray.parameters.layout import ParameterLayout

# Of the product of norms; far above the rounding of float64, so that ties cannot take turns.
MIN_GAIN = 1e-12
MAX_SWEEPS = 20
"""A handful is usual."""


@dataclass(frozen=True)
class Move:
    """Where the units of a group stand in one tensor: ``places`` are ``(copies, units, places)``.

    They are counted along the one axis, or row by row along two.
    """

    name: str
    axes: tuple[int, ...]
    places: Tensor

    def apply(self, tensor: Tensor, permutation: Tensor) -> Tensor:
        """Unit i becomes what was unit ``permutation[copy, i]``."""
        to_front = tuple(range(len(self.axes)))
        front = tensor.movedim(self.axes, to_front)
        rows = front.flatten(0, len(self.axes) - 1)
        moved = rows.clone()
        copies = torch.arange(len(permutation))[:, None]
        moved[self.places] = rows[self.places[copies, permutation]]
        return moved.reshape(front.shape).movedim(to_front, self.axes)

    def by_unit(self, tensor: Tensor) -> Tensor:
        """The numbers of each unit ``(copies, units, numbers)``."""
        front = tensor.movedim(self.axes, tuple(range(len(self.axes))))
        return front.flatten(0, len(self.axes) - 1)[self.places].flatten(2)


@dataclass(frozen=True, eq=False)
class Group:
    """What permutations of one set of units, or of many alike, act on.

    It has a move in each tensor, two of one if its rows and its columns are units (a residual
    stream). Copies of the groups ``inside`` stand, in order, in its units: the numbers of a head in
    that head.
    """

    moves: tuple[Move, ...]
    inside: Groups = ()

    @property
    def num_copies(self) -> int:
        """Sets of units, each with a permutation of its own."""
        return self.moves[0].places.shape[0]

    @property
    def num_units(self) -> int:
        """Of each set."""
        return self.moves[0].places.shape[1]


Groups: TypeAlias = "tuple[Group, ...]"


def permute(
    state: Mapping[str, Tensor], groups: Groups, permutations: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Rename hidden units: unit i of a set becomes what was unit ``permutation[set, i]``.

    Of one model; tensors that no group names are passed on as they are. A permutation is a
    LongTensor ``(copies, units)``, one for each group.
    """
    permuted = dict(state)
    for group, permutation in zip(groups, permutations, strict=True):
        for move in group.moves:
            permuted[move.name] = move.apply(permuted[move.name], permutation)
    return permuted


def align(
    reference_P: Tensor,
    theta_KP: Tensor,
    layout: ParameterLayout,
    groups: Groups,
    generator: torch.Generator,
) -> Tensor:
    """Bring K models to the units of one; each keeps its function.

    Coordinate descent: one group at a time is solved as a linear assignment with the others held,
    in random order, until a whole sweep improves nothing. A row's result depends on the row, the
    reference and the generator's state, not on the rows that come with it: 4 or 400 workers give
    the same.

    ``theta_KP`` come back in float32. The ``layout`` is of all tensors; buffers move with the units
    but take no part in the matching, for they have units of measure of their own. ``groups`` are
    from ``find_symmetries``; the ``generator`` (CPU) is of the order in which they are visited.
    """
    reference = layout.unflatten(reference_P.to(torch.float64))
    fixed = {entry.name: reference[entry.name] for entry in layout.entries if entry.trainable}
    seed = int(torch.randint(2**62, (), generator=generator))
    aligned_KP = theta_KP.clone()
    for row, theta_P in enumerate(theta_KP):
        order = torch.Generator().manual_seed(seed)
        moving = layout.unflatten(theta_P.to(torch.float64))
        min_gain = MIN_GAIN * _norm(fixed) * _norm({name: moving[name] for name in fixed})
        for _ in range(MAX_SWEEPS):
            visited = torch.randperm(len(groups), generator=order).tolist()
            gains = [_improve(fixed, moving, groups[index], min_gain) for index in visited]
            if not any(gains):
                break
        aligned_KP[row] = layout.flatten(moving)
    return aligned_KP


def _improve(
    fixed: Mapping[str, Tensor], moving: dict[str, Tensor], group: Group, min_gain: float
) -> bool:
    """Move one group's units in place to their best order; whether that gained anything."""
    step = torch.stack([_assign(each)[0] for each in _similarity(fixed, moving, group)])
    moved = permute({move.name: moving[move.name] for move in group.moves}, (group,), (step,))
    for each in group.inside:
        _improve(fixed, moved, each, min_gain)
    # With two axes of one tensor in the group, or others inside its units, the assignment is only
    # a view of the gain.
    gain = sum((fixed[n] * (moved[n] - moving[n])).sum() for n in moved.keys() & fixed.keys())
    if gain <= min_gain:
        return False
    moving.update(moved)
    return True


def _similarity(fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], group: Group) -> Tensor:
    """Inner products of units ``(copies, units, units)``, what is inside them at its best."""
    copies, units = group.num_copies, group.num_units
    similarity = torch.zeros(copies, units, units, dtype=torch.float64)
    elsewhere = {(move.name, move.axes) for each in group.inside for move in each.moves}
    for move in group.moves:
        if move.name in fixed and (move.name, move.axes) not in elsewhere:
            similarity += move.by_unit(fixed[move.name]) @ move.by_unit(moving[move.name]).mT
    for each in group.inside:
        moves = [move for move in each.moves if move.name in fixed]
        ours, theirs = (
            torch.cat([move.by_unit(state[move.name]) for move in moves], dim=2)
            for state in (fixed, moving)
        )
        shape = (copies, units, *ours.shape[1:])
        pairs = torch.einsum("cuin,cvjn->cuvij", ours.view(shape), theirs.view(shape))
        best = [_assign(pair)[1] for pair in pairs.flatten(0, 2)]
        similarity += torch.tensor(best).view_as(similarity)
    return similarity


def _assign(similarity: Tensor) -> tuple[Tensor, float]:
    """The best partner of each row, and the sum of what they have in common."""
    rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    return torch.from_numpy(columns), float(similarity[rows, columns].sum())


def _norm(state: Mapping[str, Tensor]) -> float:
    return math.hypot(*(float(tensor.norm()) for tensor in state.values()))
