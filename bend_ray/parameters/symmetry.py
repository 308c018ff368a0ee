"""Hidden units in a common order: networks that differ only in the names of their units.

Permuting the units of a hidden layer, with the rows that feed it and the columns that read it,
leaves a network's function as it is. ``match`` finds the permutations that bring one network
closest to another, so that their averages and interpolations mean something.

A group lists what one such permutation acts on, as (entry name, axis) pairs::

    (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))     # the units between two linear layers

Source: weight matching in Git Re-Basin, Ainsworth, Hayase & Srinivasa (2023), arXiv 2209.04836.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bend_ray.errors import ConfigError
from bend_ray.parameters.layout import ParameterLayout

Group: TypeAlias = tuple[tuple[str, int], ...]
Groups: TypeAlias = tuple[Group, ...]

# Of the product of norms; far above the rounding of float64, so that ties cannot take turns.
MIN_GAIN = 1e-12


def permute(
    state: Mapping[str, Tensor], groups: Groups, permutations: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Rename hidden units: unit i becomes what was unit ``permutation[i]``.

    Args:
        state: The tensors of one model; those that no group names are passed on as they are.
        groups: What each permutation acts on. An entry may appear twice in a group, on two axes
            (a residual stream). An axis may be a multiple of the permutation: it is moved in
            contiguous blocks, as the flattened channels of an image are.
        permutations: A LongTensor for each group.
    """
    permuted = dict(state)
    for group, permutation in zip(groups, permutations, strict=True):
        for name, axis in group:
            front = permuted[name].movedim(axis, 0)
            moved = front.reshape(len(permutation), -1)[permutation].reshape(front.shape)
            permuted[name] = moved.movedim(0, axis)
    return permuted


def match(
    reference: Mapping[str, Tensor],
    candidate: Mapping[str, Tensor],
    groups: Groups,
    generator: torch.Generator,
    max_sweeps: int = 20,
) -> tuple[Tensor, ...]:
    """Permutations of ``candidate`` that maximise its inner product with ``reference``.

    Coordinate descent: one group at a time is solved as a linear assignment with the others held,
    in random order, until a whole sweep improves nothing.

    Args:
        reference: The trainable tensors of one model; what is not in it takes no part, so leave
            out the buffers, which follow the units but have units of measure of their own.
        candidate: The same tensors of another model.
        groups: What each permutation acts on.
        generator: Of the order in which groups are visited (CPU).
        max_sweeps: Bound on the sweeps; a handful is usual.

    Returns:
        A LongTensor for each group, for ``permute``.

    Raises:
        ValueError: A group without a tensor in ``reference``, or with axes that do not fit.
    """
    fixed = {name: tensor.to(torch.float64) for name, tensor in reference.items()}
    moving = {name: candidate[name].to(torch.float64) for name in fixed}
    groups = tuple(tuple(pair for pair in group if pair[0] in fixed) for group in groups)
    permutations = [torch.arange(_num_units(group, fixed)) for group in groups]
    min_gain = MIN_GAIN * _norm(fixed) * _norm(moving)
    for _ in range(max_sweeps):
        improved = False
        for index in torch.randperm(len(groups), generator=generator).tolist():
            step = _improve(fixed, moving, groups[index], len(permutations[index]), min_gain)
            if step is not None:
                permutations[index] = permutations[index][step]
                improved = True
        if not improved:
            break
    return tuple(permutations)


def _improve(
    fixed: Mapping[str, Tensor],
    moving: dict[str, Tensor],
    group: Group,
    num_units: int,
    min_gain: float,
) -> Tensor | None:
    """Move one group's units in place to their best order; None where nothing is gained."""
    similarity = sum(
        _by_unit(fixed[name], axis, num_units) @ _by_unit(moving[name], axis, num_units).T
        for name, axis in group
    )
    assert isinstance(similarity, Tensor)
    _, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
    step = torch.from_numpy(columns)
    if float(similarity[torch.arange(num_units), step].sum() - similarity.trace()) <= min_gain:
        return None
    # With two axes of one entry in the group, the assignment is only a linear view of the gain.
    moved = permute({name: moving[name] for name, _ in group}, (group,), (step,))
    if sum(float((fixed[name] * (moved[name] - moving[name])).sum()) for name in moved) <= min_gain:
        return None
    moving.update(moved)
    return step


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
        groups: From the architecture; without any, nothing moves.
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
        state = layout.unflatten(theta_P)
        order = torch.Generator().manual_seed(seed)
        permutations = match(fixed, state, groups, order)
        aligned.append(layout.flatten(permute(state, groups, permutations)))
    return torch.stack(aligned) if aligned else theta_KP


def _check_complete(layout: ParameterLayout, groups: Groups) -> None:
    stored = {entry.name for entry in layout.entries}
    absent = sorted({name for group in groups for name, _ in group} - stored)
    if absent:
        raise ConfigError(
            f"expected every tensor that a permutation moves in layout {layout.digest}, "
            f"got none for {', '.join(absent)}; include all parameters or switch alignment off"
        )


def _num_units(group: Group, state: Mapping[str, Tensor]) -> int:
    sizes = [state[name].shape[axis] for name, axis in group]
    if not sizes or any(size % min(sizes) for size in sizes):
        raise ValueError(f"expected axes of one size, or multiples of it, got {sizes} in {group}")
    return min(sizes)


def _by_unit(tensor: Tensor, axis: int, num_units: int) -> Tensor:
    return tensor.movedim(axis, 0).reshape(num_units, -1)


def _norm(state: Mapping[str, Tensor]) -> float:
    return math.hypot(*(float(tensor.norm()) for tensor in state.values()))
