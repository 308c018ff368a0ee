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

from bend_ray.errors import ConfigError
from bend_ray.parameters.layout import ParameterLayout

# Of the product of norms; far above the rounding of float64, so that ties cannot take turns.
MIN_GAIN = 1e-12
MAX_SWEEPS = 20
"""A handful is usual."""


@dataclass(frozen=True)
class Move:
    """Where the units of a group stand in one tensor.

    Attributes:
        name: of the tensor.
        axes: one, or two whose places are counted row by row.
        places: ``(copies, units, places)``, along the axes.
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


@dataclass(frozen=True)
class Group:
    """What permutations of one set of units, or of many alike, act on.

    Attributes:
        moves: in each tensor; two of one tensor if its rows and its columns are units (a residual
            stream).
        outer: the number of the group whose units, in order, the copies stand in, if there is one:
            the numbers of a head stand in that head.
    """

    moves: tuple[Move, ...]
    outer: int | None = None

    @property
    def num_copies(self) -> int:
        """Sets of units, each with a permutation of its own."""
        return self.moves[0].places.shape[0]

    @property
    def num_units(self) -> int:
        """Of each set."""
        return self.moves[0].places.shape[1]


Groups: TypeAlias = tuple[Group, ...]


def permute(
    state: Mapping[str, Tensor], groups: Groups, permutations: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Rename hidden units: unit i of a set becomes what was unit ``permutation[set, i]``.

    Args:
        state: The tensors of one model; those that no group names are passed on as they are.
        groups: What each permutation acts on.
        permutations: A LongTensor ``(copies, units)`` for each group.
    """
    permuted = dict(state)
    for group, permutation in zip(groups, permutations, strict=True):
        for move in group.moves:
            permuted[move.name] = move.apply(permuted[move.name], permutation)
    return permuted


def match(
    reference: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    groups: Groups,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """A model whose units are permuted so that its inner product with another is largest.

    Coordinate descent: one group at a time is solved as a linear assignment with the others held,
    in random order, until a whole sweep improves nothing.

    Args:
        reference: The trainable tensors of one model; what is not in it takes no part, so leave
            out the buffers, which follow the units but have units of measure of their own.
        candidate: The tensors of another model, buffers too.
        groups: What each permutation acts on.
        generator: Of the order in which groups are visited (CPU).
    """
    fixed = {name: tensor.to(torch.float64) for name, tensor in reference.items()}
    moving = {name: tensor.to(torch.float64) for name, tensor in candidate.items()}
    min_gain = MIN_GAIN * _norm(fixed) * _norm({name: moving[name] for name in fixed})
    for _ in range(MAX_SWEEPS):
        improved = [
            _improve(fixed, moving, groups, index, min_gain)
            for index in torch.randperm(len(groups), generator=generator).tolist()
        ]
        if not any(improved):
            break
    return moving


def _improve(
    fixed: Mapping[str, Tensor],
    moving: dict[str, Tensor],
    groups: Groups,
    index: int,
    min_gain: float,
) -> bool:
    """Move one group's units in place to their best order; whether that gained anything."""
    group = groups[index]
    inside = [at for at, other in enumerate(groups) if other.outer == index]
    similarity = _similarity(fixed, moving, group, [groups[at] for at in inside])
    step = torch.stack([_assign(each)[0] for each in similarity])
    moved = {move.name: moving[move.name] for move in group.moves}
    moved = permute(moved, (group,), (step,))
    for at in inside:
        _improve(fixed, moved, groups, at, min_gain)
    # With two axes of one tensor in the group, or others inside its units, the assignment is only
    # a view of the gain.
    gain = sum((fixed[n] * (moved[n] - moving[n])).sum() for n in moved.keys() & fixed.keys())
    if gain <= min_gain:
        return False
    moving.update(moved)
    return True


def _similarity(
    fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], group: Group, inside: Sequence[Group]
) -> Tensor:
    """Inner products of units ``(copies, units, units)``, what is inside them at its best."""
    copies, units = group.num_copies, group.num_units
    similarity = torch.zeros(copies, units, units, dtype=torch.float64)
    elsewhere = {(move.name, move.axes) for each in inside for move in each.moves}
    for move in group.moves:
        if move.name in fixed and (move.name, move.axes) not in elsewhere:
            similarity += move.by_unit(fixed[move.name]) @ move.by_unit(moving[move.name]).mT
    for each in inside:
        moves = [move for move in each.moves if move.name in fixed]
        ours, theirs = (
            torch.cat([move.by_unit(state[move.name]) for move in moves], dim=2)
            .unflatten(0, (copies, units))
            for state in (fixed, moving)
        )
        pairs = torch.einsum("cuin,cvjn->cuvij", ours, theirs)
        best = [_assign(pair)[1] for pair in pairs.flatten(0, 2)]
        similarity += torch.tensor(best).view_as(similarity)
    return similarity


def _assign(similarity: Tensor) -> tuple[Tensor, float]:
    """The best partner of each row, and the sum of what they have in common."""
    rows, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    return torch.from_numpy(columns), float(similarity[rows, columns].sum())


def align(
    reference_P: Tensor,
    theta_KP: Tensor,
    layout: ParameterLayout,
    groups: Groups,
    generator: torch.Generator,
) -> Tensor:
    """Bring K models to the units of one; each keeps its function.

    A row's result depends on the row, the reference and the generator's state, not on the rows
    that come with it: 4 or 400 workers give the same.

    Args:
        reference_P: The model whose order of units is taken.
        theta_KP: The models to align.
        layout: Of both; its buffers move with the units but take no part in the matching.
        groups: From ``find_symmetries``; without any, nothing moves.
        generator: Of the order in which groups are visited (CPU).

    Returns:
        theta_KP, float32.

    Raises:
        ConfigError: The layout holds only a part of what a permutation must move.
    """
    _check_complete(layout, groups)
    trainable = [entry.name for entry in layout.entries if entry.trainable]
    reference = layout.unflatten(reference_P)
    fixed = {name: reference[name] for name in trainable}
    seed = int(torch.randint(2**62, (), generator=generator))
    aligned = []
    for theta_P in theta_KP:
        order = torch.Generator().manual_seed(seed)
        aligned.append(layout.flatten(match(fixed, layout.unflatten(theta_P), groups, order)))
    return torch.stack(aligned) if aligned else theta_KP


def _check_complete(layout: ParameterLayout, groups: Groups) -> None:
    stored = {entry.name for entry in layout.entries}
    absent = sorted({move.name for group in groups for move in group.moves} - stored)
    if absent:
        raise ConfigError(
            f"expected every tensor that a permutation moves in layout {layout.digest}, "
            f"got none for {', '.join(absent)}; include all parameters or switch alignment off"
        )


def _norm(state: Mapping[str, Tensor]) -> float:
    return math.hypot(*(float(tensor.norm()) for tensor in state.values()))
