"""The permutation symmetries of a network: found in one run of it, then proven on it.

From the labels of a trace to groups of permutations: nodes that are the same make a **unit**, which
stands in places of several tensors. Units that stand, with all that they own, in as many places of
the same axes can take each other's place among those of the same owners: they make a **cell**. The
cells of all the blocks of one kind (the numbers of each head) make one group, and the blocks, with
all that they own, another.

A trace only suggests groups. Each is proven before anyone uses it: a random permutation of its
units leaves the network's answers as they are, and moving only a part of its tensors does not.
Both are asked of a copy in float64 whose numbers are drawn anew, because a fresh network is full
of equal ones (norms of 1, biases of 0, branches switched off) that hide a mistake.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeAlias

import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from bend_ray.errors import ConfigError
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.symmetry import Group, Groups, Move, permute
from bend_ray.parameters.tracing import Trace

Cells: TypeAlias = list[list[int]]

Call = Callable[[nn.Module, Any, Mapping[str, Tensor]], Tensor]
"""The answers of a network to inputs, with other tensors in place of its own."""

TOLERANCE = 1e-5
"""Of a change of answers, in units of their range over the rows."""
DRAWS = 3
"""Of a network's numbers, where units do not show: those that are not active for any input."""


@dataclass(frozen=True)
class Symmetries:
    """What is known of a network's permutations: groups that are proven.

    ``left_alone``: the reason by the name of each tensor that none moves, or not in all its units.
    """

    groups: Groups
    left_alone: dict[str, str]

    def __str__(self) -> str:
        """In words, one line."""
        names = defaultdict(list)
        for name, why in self.left_alone.items():
            names[why].append(name)
        alone = [
            f"{of[0]}{f' and {len(of) - 1} more' * (len(of) > 1)} ({why})"
            for why, of in names.items()
        ]
        return f"groups of units: {len(self.groups)}; left alone: {', '.join(alone) or 'nothing'}"


def find_symmetries(module: nn.Module, inputs: Any, call: Call) -> Symmetries:
    """The permutations of hidden units that keep a network's function.

    ``inputs`` are a few rows that it takes, no two of one answer, which ``call`` gives; it is left
    as it is. Groups are of tensors of ``ParameterLayout.of(module)``; there are none for a network
    that cannot be copied, run in float64 on a CPU, or followed.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return _proven(module, inputs, call)
    except Exception as error:
        # Whatever anyone's network may raise: it trains as well without groups.
        why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return Symmetries((), {e.name: why for e in ParameterLayout.of(module).entries})
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def _proven(module: nn.Module, inputs: Any, call: Call) -> Symmetries:
    shown = _Copy(module, inputs, call, seed=0)
    with Trace(shown.state) as trace:
        answers = shown.answers(shown.state)
    trace.fix([answers], "its order is that of the answers")
    groups, left_alone = _groups_of(trace)
    whys: dict[Group, str | None] = dict.fromkeys(groups)
    for seed in range(DRAWS):
        unseen = [group for group, why in whys.items() if why is None]
        if seed and unseen:
            shown = _Copy(module, inputs, call, seed)
        whys |= {group: shown.objection(group) for group in unseen}
    proven: dict[Group, Group] = {}
    # Those inside the units of another stand behind it.
    for group, why in reversed(whys.items()):
        if why == "":
            inside = [proven[each] for each in group.inside if each in proven]
            proven[group] = replace(group, inside=tuple(inside))
        else:
            why = why or "the answers do not depend on its units"
            left_alone |= {move.name: why for move in group.moves}
    return Symmetries(tuple(reversed(proven.values())), left_alone)


class _Copy:
    """A copy of a network with numbers of its own, and what it answers."""

    def __init__(self, module: nn.Module, inputs: Any, call: Call, seed: int) -> None:
        self.module, self.call = copy.deepcopy(module).cpu().double().eval(), call
        self.inputs = tree_map(
            lambda v: v.cpu().double() if v.is_floating_point() else v.cpu(), inputs
        )
        self.generator = torch.Generator().manual_seed(seed)
        own = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        self.state: dict[str, Tensor] = {}
        for entry in ParameterLayout.of(self.module).entries:
            self.state[entry.name] = own[entry.name]
            self._draw_anew(own[entry.name], entry.trainable)
        self.before = self.answers(self.state)
        self.range = float((self.before.amax(0) - self.before.amin(0)).max())
        if not 0 < self.range < float("inf"):
            raise ConfigError("answers that are not finite, or the same for all inputs")

    def _draw_anew(self, tensor: Tensor, trainable: bool) -> None:
        like: Any = {"dtype": tensor.dtype, "generator": self.generator}
        noise = 0.3 / max(1, tensor[:1].numel()) ** 0.5 * torch.randn(tensor.shape, **like)
        tensor *= 0.5 + torch.rand(tensor.shape, **like)
        # Variances stay positive.
        tensor += noise if trainable else 0.1

    def answers(self, state: Mapping[str, Tensor]) -> Tensor:
        return self.call(self.module, self.inputs, state)

    def objection(self, group: Group) -> str | None:
        """Why a group is none, "" if it is one; None where its units do not show."""
        cycle = torch.rand(group.num_copies, group.num_units, generator=self.generator).argsort(1)
        # All in a circle, so that none stays where it was.
        order = torch.empty_like(cycle).scatter(1, cycle, cycle.roll(1, 1))
        change = self._change(group, order)
        if not change <= TOLERANCE:
            return f"permuting its units changes the answers by {change:.0e} of their range"
        parts = (Group((move,)) for move in group.moves)
        return "" if any(self._change(part, order) > TOLERANCE for part in parts) else None

    def _change(self, group: Group, order: Tensor) -> float:
        """How far answers move with a permutation, in units of their range."""
        moved = self.answers(permute(self.state, (group,), (order,)))
        return float((moved - self.before).abs().max()) / self.range


def _groups_of(trace: Trace) -> tuple[Groups, dict[str, str]]:
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
