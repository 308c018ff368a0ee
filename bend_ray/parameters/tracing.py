"""Which hidden unit stands where: labels of units, carried through one run of a network.

Every place along an axis of a stored tensor starts as a **node** of its own. One run in evaluation
mode then shows which nodes are one unit, operation by operation as ATen sees them:

- what only moves numbers (a view, a slice, a concatenation) moves their labels in the same way;
- labels that meet in an elementwise operation, or in the sum of a matrix product, are **the same**;
- a sum over an axis forgets its units. Over a part of them only, such as the numbers of one
  attention head or the channels of one group, it makes a **block** that owns them;
- against something that is no unit (the place of a pixel, a class) a label is **fixed**;
- all else is written in these terms, by us (``_LOWERED``) or by torch's own decompositions, or it
  fixes whatever comes in.

A **field** is the labels of a tensor: an integer tensor of its number of axes, of length 1 along
those on which the labels do not depend. ``proof`` makes permutations of what is recorded here.

Recorded by a dispatch mode, not by ``torch.export`` or ``make_fx``, which see the same operations:
these import ``torch._dynamo`` first, which costs a process two seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from itertools import permutations
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from bend_ray.errors import ConfigError

Bound: TypeAlias = dict[str, Any]
"""The arguments of an operation, by the names of its schema."""

FIXED = 0
"""The node of all that is no unit."""


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What one run of a network says of its units; a context in which it is run.

    That must use the very objects that are ``stored``, the network's own tensors, by name.

    Attributes:
        fields: of each stored tensor, one an axis longer than 1.
        same: pairs of nodes ``(2, E)`` that are one unit.
        owned: pairs of a node and a block that owns it.
        fixed: nodes that cannot move, and why.
        used: names of the stored tensors that the run has read.
        num_nodes: how many there are.
    """

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.same: list[Tensor] = []
        self.owned: list[Tensor] = []
        self.fixed = [(torch.tensor([FIXED]), "it stands beside what is no unit")]
        self.used: set[str] = set()
        self.num_nodes = 1
        self._names: MutableMapping[Tensor, str] = WeakIdKeyDictionary(
            {t: name for name, t in stored.items()}
        )
        self._fields: MutableMapping[Tensor, list[Tensor]] = WeakIdKeyDictionary()
        self._blocks: dict[tuple[torch.Size, bytes], Tensor] = {}
        self.fields: dict[str, list[Tensor]] = {}
        for name, tensor in stored.items():
            axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
            self.fields[name] = [self._fresh(_only(tensor.shape, {axis})) for axis in axes]
            self._fields[tensor] = self.fields[name]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True, the default, imports torch._dynamo at the first operation.
        return False

    def fix(self, tensors: Iterable[Tensor], why: str) -> None:
        """Say that the places of tensors mean something."""
        for tensor in tensors:
            self.fixed += [(field.flatten(), why) for field in self._of(tensor)]

    def _of(self, tensor: Tensor) -> list[Tensor]:
        return self._fields.get(tensor) or []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:
            # Operations made of others, where a rule of ours has called them.
            if (made := func.decompose(*args, **kwargs)) is not NotImplemented:
                return made
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = any(tensor in self._fields for tensor in tensors)
        if known and torch.Tag.data_dependent_output in func.tags:
            raise ConfigError(f"the network reads a number that it has computed ({func})")
        out = func(*args, **kwargs)
        self.used |= {self._names[tensor] for tensor in tensors if tensor in self._names}
        if known and any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            self._carry(func, args, kwargs, tensors, out)
        return out

    def _carry(
        self, func: Any, args: Sequence[Any], kwargs: Bound, tensors: list[Tensor], out: Any
    ) -> None:
        """Give the outputs of an operation their fields."""
        defaults = {each.name: each.default_value for each in func._schema.arguments}
        bound = defaults | dict(zip(defaults, args, strict=False)) | kwargs
        name = func.overloadpacket.__name__.rstrip("_")
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        first = outs[0]
        if name == "convolution":
            self._split_by_group(bound["weight"], bound["groups"])
        if lowered := _LOWERED.get(name) or (_by_places if _WINDOW.search(name) else None):
            with self:
                self._fields[first] = self._of(lowered(bound, first))
        elif name in _RESHAPES and first.numel() == bound["self"].numel():
            self._move(bound["self"], lambda field: field.reshape(first.shape), outs)
        elif name in _MOVES or (func.is_view and name not in _RESHAPES):
            rest = {key: value for key, value in bound.items() if key != "self"}
            self._move(bound["self"], lambda field: func(field, **rest), outs)
        elif torch.Tag.pointwise in func.tags or name in _ELEMENTWISE:
            pads = [(each, (None,) * (first.ndim - each.ndim)) for each in tensors]
            aligned = [(each[pad], [f[pad] for f in self._of(each)]) for each, pad in pads]
            self._fields[first] = self._meet(aligned)
        elif torch.Tag.reduction in func.tags:
            self._reduce(bound, outs)
        elif name in ("mm", "bmm"):
            self._multiply(bound["self"], bound["mat2"], first)
        elif name == "cat":
            self._concatenate(bound["tensors"], bound["dim"] % first.ndim, first)
        elif func in decomposition_table:
            with self:
                alike = tree_leaves(decomposition_table[func](*args, **kwargs))
            for each, like in zip(outs, alike, strict=True):
                self._fields[each] = self._of(like)
        elif not name.endswith("_like") and not name.startswith("new_"):
            self.fix(tensors, f"{name} has no rule")
        for each in outs:
            self._fields.setdefault(each, [])

    def _meet(self, operands: Sequence[tuple[Tensor, list[Tensor]]]) -> list[Tensor]:
        """Tensors and their fields side by side, number by number; the fields of what comes."""
        for (_, fields), (other, others) in permutations(operands, 2):
            for field in fields:
                alone = {axis for axis in _support(field) if other.shape[axis] > 1}
                for second in others:
                    if common := _support(field) & _support(second):
                        pair = self._project(field, common), self._project(second, common)
                        self.same.append(torch.stack([nodes.flatten() for nodes in pair]))
                        alone -= common
                for axis in alone:
                    if not _is_constant(other, axis):
                        nodes = self._project(field, {axis}).flatten()
                        self.fixed.append((nodes, "it meets what is no unit, place by place"))
        return _largest([field for _, fields in operands for field in fields])

    def _project(self, field: Tensor, axes: set[int]) -> Tensor:
        """The labels along some of a field's axes: of blocks of what stands along the others."""
        kept = sorted(_support(field) & axes)
        if len(kept) == len(_support(field)):
            return field
        rows = field.movedim(kept, list(range(len(kept)))).flatten(len(kept))
        rows = rows.reshape(-1, rows.shape[-1]).sort(dim=1).values
        rows, which = rows.unique(dim=0, return_inverse=True)  # type: ignore[no-untyped-call]
        if (key := (rows.shape, rows.numpy().tobytes())) not in self._blocks:
            blocks = self._blocks[key] = self._fresh(rows.shape[:1])
            self.owned.append(torch.stack([rows, blocks[:, None].expand_as(rows)]).flatten(1))
        return self._blocks[key][which].reshape(_only(field.shape, set(kept)))

    def _fresh(self, shape: Sequence[int]) -> Tensor:
        field = self.num_nodes + torch.arange(torch.Size(shape).numel()).reshape(shape)
        self.num_nodes += field.numel()
        return field

    def _move(self, tensor: Tensor, move: Callable[[Tensor], Any], outs: Sequence[Tensor]) -> None:
        moved = [tree_leaves(move(field.expand(tensor.shape))) for field in self._of(tensor)]
        for index, out in enumerate(outs):
            self._fields[out] = _largest([_compact(parts[index]) for parts in moved])

    def _reduce(self, bound: Bound, outs: Sequence[Tensor]) -> None:
        tensor, dims = bound["self"], bound.get("dim")
        dims = [dims] if isinstance(dims, int) else dims or list(range(tensor.ndim))
        gone = {dim % tensor.ndim for dim in dims}
        kept = self._across(tensor, set(range(tensor.ndim)) - gone)
        if not bound.get("keepdim"):
            kept = [field.squeeze(tuple(gone)) for field in kept]
        for out in outs:
            self._fields[out] = _largest(kept)

    def _across(self, tensor: Tensor, axes: set[int]) -> list[Tensor]:
        """What is left of a tensor's fields along some axes."""
        return [self._project(f, axes) for f in self._of(tensor) if _support(f) & axes]

    def _multiply(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """``(..., n, k) @ (..., k, m)``: side by side over ``(..., n, k, m)``, summed over k."""
        operands = (
            (each.unsqueeze(at), [field.unsqueeze(at) for field in self._of(each)])
            for each, at in ((left, -1), (right, -3))
        )
        joint = self._meet(list(operands))
        axes = set(range(out.ndim + 1)) - {out.ndim - 1}
        kept = [self._project(field, axes) for field in joint if _support(field) & axes]
        self._fields[out] = _largest([field.squeeze(-2) for field in kept])

    def _concatenate(self, tensors: Sequence[Tensor], dim: int, out: Tensor) -> None:
        across = set(range(out.ndim)) - {dim}
        nothing = torch.full((1,) * out.ndim, FIXED)
        along = [
            next((field for field in self._of(each) if dim in _support(field)), nothing)
            for each in tensors
        ]
        wide = [field.expand(each.shape) for field, each in zip(along, tensors, strict=True)]
        joint = self._meet([(each, self._across(each, across)) for each in tensors])
        self._fields[out] = _largest([_compact(torch.cat(wide, dim)), *joint])

    def _split_by_group(self, weight: Tensor, groups: int) -> None:
        """The second axis of a grouped convolution's weight has other units in every group."""
        name = self._names.get(weight)
        if groups == 1 or name is None or weight.shape[1] == 1:
            return
        first, second, *others = self.fields[name]
        if second.shape[0] == 1:
            shape = (groups, weight.shape[1], *[1] * (weight.ndim - 2))
            split = self._fresh(shape).repeat_interleave(weight.shape[0] // groups, dim=0)
            self.fields[name][:] = [first, split, *others]


def _support(field: Tensor) -> set[int]:
    return {axis for axis, size in enumerate(field.shape) if size > 1}


def _only(shape: Sequence[int], axes: set[int]) -> list[int]:
    """A shape that is 1 along all other axes."""
    return [size if axis in axes else 1 for axis, size in enumerate(shape)]


def _compact(field: Tensor) -> Tensor:
    """Of length 1 along the axes on which it does not depend."""
    for axis in range(field.ndim):
        if _is_constant(field, axis):
            field = field.narrow(axis, 0, 1)
    return field


def _is_constant(tensor: Tensor, axis: int) -> bool:
    return tensor.stride(axis) == 0 or bool((tensor == tensor.narrow(axis, 0, 1)).all())


def _largest(fields: Iterable[Tensor]) -> list[Tensor]:
    """Of fields that agree, those that say the most."""
    kept: list[Tensor] = []
    for field in sorted(fields, key=lambda field: -len(_support(field))):
        if not any(_support(field) <= _support(other) for other in kept) and _support(field):
            kept.append(field)
    return kept


_RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias", "as_strided"}
_MOVES = {"roll", "flip", "repeat", "pixel_shuffle", "pixel_unshuffle", "native_channel_shuffle"}
_ELEMENTWISE = {"_to_copy", "copy", "hardswish", "_prelu_kernel", "softplus", "fill", "zero"}
"""Elementwise without being tagged so."""
_WINDOW = re.compile(r"(?:pool|upsample|pad).*?([123])d")
"""Operations on the places of images; the number of their axes."""


def _one_place(tensor: Tensor, axes: Iterable[int]) -> Tensor:
    """A tensor shrunk to one place along axes whose places are no units."""
    axes = [axis % tensor.ndim for axis in axes]
    for axis in axes:
        places = torch.arange(tensor.shape[axis], dtype=tensor.dtype)
        tensor = tensor + places.reshape(_only(tensor.shape, {axis}))
    return tensor.amax(axes, keepdim=True) if axes else tensor


def _by_places(bound: Bound, out: Tensor) -> Tensor:
    return _one_place(next(iter(bound.values())), range(2 - out.ndim, 0)).expand(out.shape)


def _convolution(bound: Bound, out: Tensor) -> Tensor:
    groups, weight = bound["groups"], bound["weight"]
    images = _one_place(bound["input"], range(2, out.ndim))
    images = images.reshape(len(images), groups, -1).transpose(0, 1)
    weight = weight.reshape(groups, -1, *weight.shape[1:])
    weight = _one_place(weight, range(3, weight.ndim)).flatten(2)
    summed = images.bmm(weight if bound["transposed"] else weight.mT).transpose(0, 1).flatten(1)
    summed = summed if bound["bias"] is None else summed + bound["bias"]
    return summed.reshape(*out.shape[:2], *[1] * (out.ndim - 2)).expand(out.shape)


def _pad(bound: Bound, out: Tensor) -> Tensor:
    """What is put beside units is none; beside the places of images it changes nothing."""
    tensor, pad = bound["self"], bound["pad"]
    places = [tensor.ndim - 1 - index // 2 for index, count in enumerate(pad) if count]
    return _one_place(tensor, set(places)).expand(out.shape)


def _index(bound: Bound, out: Tensor) -> Tensor:
    """Rows that inputs have asked for: their order is no unit's."""
    axes = [axis for axis, index in enumerate(bound["indices"]) if index is not None]
    rest = _one_place(bound["self"], axes).squeeze(axes)
    asked = [1] * (out.ndim - rest.ndim)
    at = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    return rest.reshape(*rest.shape[:at], *asked, *rest.shape[at:]).expand(out.shape)


_LOWERED: dict[str, Callable[[Bound, Tensor], Tensor]] = {
    # torch has it too, but there the first one imports sympy, as the operator @ does here.
    "addmm": lambda bound, out: bound["self"] + bound["mat1"].mm(bound["mat2"]),
    "constant_pad_nd": _pad,
    "convolution": _convolution,
    "index": _index,
}
"""Operations in terms of simpler ones. What they compute does not matter, only what meets."""
