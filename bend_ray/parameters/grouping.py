"""From the labels of a trace to groups of permutations.

Nodes that are the same make a **unit**, which stands in places of several tensors. Units that
stand, with all that they own, in as many places of the same axes can take each other's place
among those of the same owners: they make a **cell**. The cells of all the blocks of one kind (the
numbers of each head) make one group, and the blocks, with all that they own, another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from typing import TypeAlias

import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from bend_ray.parameters.symmetry import Group, Groups, Move
from bend_ray.parameters.tracing import Trace

Cells: TypeAlias = list[list[int]]


def groups_of(trace: Trace) -> tuple[Groups, dict[str, str]]:
    """The permutations that a trace suggests, and of each tensor that none moves, the reason."""
    units = _Units(trace)
    families = units.families()
    at = {
        unit: (number, place)
        for number, cells in enumerate(families)
        for place, unit in enumerate(chain(*cells))
    }
    inside: dict[int, list[Group]] = defaultdict(list)
    groups: list[Group] = []
    # What is inside the units of another group stands behind it.
    for number, cells in reversed([*enumerate(families)]):
        around = [[at[block] for block in units.owners[cell[0]] if block in at] for cell in cells]
        outer = around[0][0][0] if around[0] else number
        every = [[(outer, place)] for place in range(sum(map(len, families[outer])))]
        if sorted(around) == every:
            cells = [cell for _, cell in sorted(zip(around, cells, strict=True))]
        groups.insert(0, Group(tuple(units.moves(cells)), tuple(inside[number])))
        if sorted(around) == every:
            inside[outer].append(groups[0])
    moved = {move.name for group in groups for move in group.moves}
    return tuple(groups), {name: units.why(name) for name in trace.fields.keys() - moved}


class _Units:
    """Units by number: what each owns, who owns it, and where it stands."""

    def __init__(self, trace: Trace) -> None:
        unit_of, self._owned = _merge(trace)
        self.owners: dict[int, set[int]] = defaultdict(set)
        for block, units in self._owned.items():
            for unit in units:
                self.owners[unit].add(block)
        self._fixed = {unit: why for nodes, why in trace.fixed for unit in unit_of[nodes].tolist()}
        used = [(name, f) for name, fields in trace.fields.items() for f in fields]
        self._fields = [(name, field) for name, field in used if name in trace.used]
        # Of each unit alone: (number of the field, place in it).
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for index, (_, field) in enumerate(self._fields):
            for place, unit in enumerate(unit_of[field.flatten()].tolist()):
                places[unit].append((index, place))
        rank = {unit: rank for rank, unit in enumerate(places)}
        # Of each unit, with what it owns: the places in each field.
        self._stands: dict[int, dict[int, list[int]]] = {}
        self._order: dict[int, tuple[int, int]] = {}
        for unit in {*rank, *self._owned}:
            inside = sorted(self._all_in(unit) & rank.keys(), key=rank.__getitem__)
            stands = self._stands[unit] = defaultdict(list)
            for index, place in chain(*(places[each] for each in inside)):
                stands[index].append(place)
            if inside and self._fixed.keys().isdisjoint(inside):
                # A block before what is in it.
                self._order[unit] = rank[inside[0]], -len(inside)

    def _all_in(self, unit: int) -> set[int]:
        found, new = {unit}, [unit]
        for each in new:
            new += (more := self._owned.get(each, set()) - found)
            found |= more
        return found

    def families(self) -> list[Cells]:
        """Cells of one kind together, in the order of their first places."""
        cells: dict[tuple[object, object], list[int]] = defaultdict(list)
        for unit in sorted(self._order, key=self._order.__getitem__):
            counts = frozenset((index, len(at)) for index, at in self._stands[unit].items())
            cells[counts, frozenset(self.owners[unit])].append(unit)
        families: dict[tuple[object, int], Cells] = defaultdict(list)
        for (stands, _), cell in cells.items():
            if len(cell) > 1:
                families[stands, len(cell)].append(cell)
        return list(families.values())

    def moves(self, cells: Cells) -> Iterator[Move]:
        """Where the units of a family stand."""
        rows: dict[str, set[int]] = {}
        for index in sorted(self._stands[cells[0][0]]):
            name, field = self._fields[index]
            axes = tuple(axis for axis, size in enumerate(field.shape) if size > 1)
            places = [[self._stands[unit][index] for unit in cell] for cell in cells]
            first = set(places[0][0])
            if len(axes) == 1:
                rows[name] = first
            elif {place // field.shape[1] for place in first} == rows.get(name):
                # They go with the rows in which they stand.
                continue
            yield Move(name, axes, torch.tensor(places))

    def why(self, name: str) -> str:
        """The reason why no permutation moves a tensor."""
        fields = {index for index, (own, _) in enumerate(self._fields) if own == name}
        if not fields:
            return "the network does not use it"
        units = [unit for unit, stands in self._stands.items() if not fields.isdisjoint(stands)]
        reasons = sorted({self._fixed[unit] for unit in units if unit in self._fixed})
        return ", ".join(reasons) or "no two of its units stand alike"


def _merge(trace: Trace) -> tuple[Tensor, dict[int, set[int]]]:
    """The unit of each node, and the units that each block owns."""
    same = torch.cat([torch.zeros(2, 0, dtype=torch.long), *trace.same], dim=1)
    pairs = torch.cat([torch.zeros(2, 0, dtype=torch.long), *trace.owned], dim=1)
    while True:
        edges = coo_matrix((torch.ones(same.shape[1]), same.tolist()), shape=2 * [trace.num_nodes])
        unit_of = torch.from_numpy(connected_components(edges, directed=False)[1]).long()
        owned: dict[int, set[int]] = defaultdict(set)
        for unit, block in unit_of[pairs].T.tolist():
            if unit != block:
                owned[block].add(unit)
        # Blocks of the same units are one, such as those of two group norms of one stream.
        first: dict[frozenset[int], int] = {}
        twins = [
            (twin, block)
            for block, units in owned.items()
            if (twin := first.setdefault(frozenset(units), block)) != block
        ]
        if not twins:
            return unit_of, owned
        nodes = {unit: node for node, unit in enumerate(unit_of.tolist())}
        more = torch.tensor([[nodes[unit] for unit in pair] for pair in twins])
        same = torch.cat([same, more.T], dim=1)
