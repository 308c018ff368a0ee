"""The permutation symmetries of a network: found in one run of it, then proven on it.

A trace only suggests groups. Each is proven before anyone uses it: a random permutation of its
units leaves the network's answers as they are, and moving only a part of its tensors does not.
Both are asked of a copy in float64 whose numbers are drawn anew, because a fresh network is full
of equal ones (norms of 1, biases of 0, branches switched off) that hide a mistake.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map

from bend_ray.errors import ConfigError
from bend_ray.parameters.grouping import groups_of
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.symmetry import Group, Groups, permute
from bend_ray.parameters.tracing import Trace

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

    groups: Groups = ()
    left_alone: dict[str, str] = field(default_factory=dict)

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
    groups, left_alone = groups_of(trace)
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
