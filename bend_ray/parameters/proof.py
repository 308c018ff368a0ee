"""The permutation symmetries of a network: found in one run of it, then proven on it.

A trace only suggests groups. Each is proven before anyone uses it: a random permutation of its
units leaves the network's answers as they are, and moving only a part of its tensors does not.
Both are asked of a copy in float64 whose numbers are drawn anew, because a fresh network is full
of equal ones (norms of 1, biases of 0, branches switched off) that hide a mistake.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from bend_ray.errors import ConfigError
from bend_ray.parameters.grouping import groups_of
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.symmetry import Group, Groups, Move, permute
from bend_ray.parameters.tracing import Trace

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]
"""What a network takes: a tensor, or several by the names of its arguments; rows come first."""

TOLERANCE = 1e-5
"""Of a change of answers, in units of their range over the rows."""


@dataclass(frozen=True)
class Symmetries:
    """What is known of a network's permutations.

    Attributes:
        groups: those that are proven.
        left_alone: what is not, in words; empty if that is nothing.
    """

    groups: Groups = ()
    left_alone: str = ""


def find_symmetries(module: nn.Module, inputs: Inputs) -> Symmetries:
    """The permutations of hidden units that keep a network's function.

    Args:
        module: any network; it is left as it is.
        inputs: a few rows that it takes, no two of one answer.

    Returns:
        Groups of tensors of ``ParameterLayout.of(module)``; none for a network that cannot be
        copied, run in float64 on a CPU, or followed.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return _Prover(module, inputs).symmetries()
    except Exception as error:
        # Whatever anyone's network may raise: it trains as well without groups.
        message = str(error).partition("\n")[0]
        return Symmetries(left_alone=f"all of it ({type(error).__name__}: {message})")
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


class _Prover:
    """A copy of a network with numbers of its own, and what it answers."""

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        self.module = copy.deepcopy(module).cpu().double().eval()
        named = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        wide = {k: v.cpu().double() if v.is_floating_point() else v.cpu() for k, v in named.items()}
        self.args = () if isinstance(inputs, Mapping) else (wide[""],)
        self.kwargs = wide if isinstance(inputs, Mapping) else {}
        self.generator = torch.Generator().manual_seed(0)
        own = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        layout = ParameterLayout.of(self.module)
        self.state = {entry.name: own[entry.name] for entry in layout.entries}
        for entry in layout.entries:
            self._draw_anew(self.state[entry.name], entry.trainable)

    def _draw_anew(self, tensor: Tensor, trainable: bool) -> None:
        shape, generator = tensor.shape, self.generator
        if not trainable:
            # Variances stay positive.
            tensor += 0.1
        tensor *= 0.5 + torch.rand(shape, dtype=tensor.dtype, generator=generator)
        if trainable:
            fan_in = max(1, tensor[:1].numel())
            noise = torch.randn(shape, dtype=tensor.dtype, generator=generator)
            tensor += 0.3 / fan_in**0.5 * noise

    def symmetries(self) -> Symmetries:
        """Found, then proven one by one; a group inside the units of another needs that one."""
        with Trace(self.state) as trace:
            self.answers = self._answers(self.state)
        trace.fix_answers(self.answers)
        ranges = [float((each.amax(0) - each.amin(0)).max()) for each in self.answers]
        if not all(0 < each < float("inf") for each in ranges):
            raise ConfigError("answers that are not finite, or the same for all inputs")
        self.ranges = ranges
        found = groups_of(trace)
        proven = [self._is_proven(group) for group in found]
        alone = [g.moves[0].name for g, is_proven in zip(found, proven, strict=True) if not is_proven]
        return Symmetries(_only(found, proven), ", ".join([*alone, *sorted(trace.unknown)]))

    def _is_proven(self, group: Group) -> bool:
        units = torch.stack([self._shuffled(group.num_units) for _ in range(group.num_copies)])
        if not self._change(group.moves, units) <= TOLERANCE:
            return False
        return any(self._change((move,), units) > TOLERANCE for move in group.moves)

    def _shuffled(self, num_units: int) -> Tensor:
        units = torch.randperm(num_units, generator=self.generator)
        return units.roll(1) if torch.equal(units, torch.arange(num_units)) else units

    def _change(self, moves: Sequence[Move], permutation: Tensor) -> float:
        """How far answers move with a permutation, in units of their range."""
        moved = self._answers(permute(self.state, (Group(tuple(moves)),), (permutation,)))
        pairs = zip(moved, self.answers, self.ranges, strict=True)
        return max(float((new - old).abs().max()) / range_ for new, old, range_ in pairs)

    def _answers(self, state: Mapping[str, Tensor]) -> list[Tensor]:
        out = functional_call(self.module, dict(state), self.args, self.kwargs)
        out = getattr(out, "logits", out)
        return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def _only(groups: Groups, proven: Sequence[bool]) -> Groups:
    """Proven groups, with the numbers that their outer ones have among them."""
    numbers = dict(zip(itertools.compress(range(len(groups)), proven), itertools.count()))
    return tuple(
        replace(group, outer=numbers.get(group.outer))
        for group in itertools.compress(groups, proven)
    )
