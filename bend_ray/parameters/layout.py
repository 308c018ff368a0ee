"""The order in which the numbers of a module stand in one vector.

Shapes: P parameters of a layout; ``*lead`` any leading dimensions, such as K models.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import NonNegativeInt, Strict, StrictBool, StrictStr, TypeAdapter, ValidationError
from torch import Tensor, nn

from bend_ray.errors import ConfigError, DataError
from bend_ray.spec import first_problem


@dataclass(frozen=True)
class Entry:
    """One named tensor of a module, and the offset of its first number in the vector.

    ``trainable`` is a parameter that takes a gradient, and no frozen one or buffer.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    trainable: bool

    @property
    def size(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and offsets: enough to read a vector back into a module.

    Trained parameters come first, in the order of ``named_parameters()``, then frozen ones, then
    the floating-point buffers (BatchNorm's running statistics). Integer and non-persistent buffers
    are not stored.

    >>> layout = ParameterLayout.of(nn.Linear(2, 3))
    >>> [(entry.name, entry.offset) for entry in layout.entries], layout.size
    ([('weight', 0), ('bias', 6)], 9)
    """

    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """P: the length of the vector."""
        return sum(entry.size for entry in self.entries)

    @property
    def num_trainable(self) -> int:
        """Trained are ``theta[..., :num_trainable]``; frozen ones and buffers are the rest."""
        return sum(entry.size for entry in self.entries if entry.trainable)

    @cached_property
    def parts(self) -> tuple[ParameterLayout, ParameterLayout]:
        """The layouts of ``theta[..., :num_trainable]`` and of the rest."""
        rows = self.to_json()
        trained, buffers = (self._stack(r for r in rows if r[2] is kind) for kind in (True, False))
        return trained, buffers

    @cached_property
    def digest(self) -> str:
        """Eight hex digits that two layouts share only if their vectors are interchangeable."""
        canonical = json.dumps(self.to_json(), separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:8]

    @classmethod
    def of(cls, module: nn.Module, include: Sequence[str] = ("*",)) -> ParameterLayout:
        """The layout of a module, or of a part of it; meta-device modules will do.

        Tied parameters are stored once, under their first name. A tensor whose name matches any
        pattern (``fnmatch``) is stored. ConfigError where there is no pattern, or one that matches
        nothing.
        """
        tensors = _stored_tensors(module)
        names = _select([name for name, _, _ in tensors], include)
        return cls._stack(tensor for tensor in tensors if tensor[0] in names)

    @classmethod
    def _stack(cls, tensors: Iterable[tuple[str, tuple[int, ...], bool]]) -> ParameterLayout:
        entries: list[Entry] = []
        offset = 0
        for name, shape, trainable in tensors:
            entries.append(Entry(name, shape, offset, trainable))
            offset += entries[-1].size
        return cls(tuple(entries))

    def flatten(self, state: Mapping[str, Tensor]) -> Tensor:
        """One vector of the tensors that the layout names, others are ignored.

        ``{name: (*lead, *shape)}``, such as a state dict, or K of them stacked, to float32
        ``(*lead, P)``; gradients flow. DataError where a tensor is missing or has another shape.
        """
        missing = [entry.name for entry in self.entries if entry.name not in state]
        if missing:
            raise DataError(
                f"expected the {len(self.entries)} tensors of layout {self.digest}, "
                f"got none for {', '.join(missing)}; use the architecture the layout was made of"
            )
        return torch.cat([self._flat(entry, state[entry.name]) for entry in self.entries], dim=-1)

    def _flat(self, entry: Entry, tensor: Tensor) -> Tensor:
        num_lead = tensor.ndim - len(entry.shape)
        if num_lead < 0 or tuple(tensor.shape[num_lead:]) != entry.shape:
            raise DataError(
                f"expected {entry.name} to end in shape {entry.shape} (layout {self.digest}), "
                f"got {tuple(tensor.shape)}; use the architecture the layout was made of"
            )
        return tensor.reshape((*tensor.shape[:num_lead], entry.size)).to(torch.float32)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """The tensors of a vector ``(*lead, P)``: the inverse of ``flatten``.

        ``{name: (*lead, *shape)}``, views where memory allows. DataError where it has another
        length.
        """
        if theta.ndim == 0 or theta.shape[-1] != self.size:
            raise DataError(
                f"expected a vector of {self.size} parameters (layout {self.digest}), "
                f"got {tuple(theta.shape)}; use the architecture the vector was made of"
            )
        lead = theta.shape[:-1]
        # One split: its backward is one cat, while a slice per entry would each pad to P zeros.
        pieces = torch.split(theta, [entry.size for entry in self.entries], dim=-1)
        return {
            entry.name: piece.reshape((*lead, *entry.shape))
            for entry, piece in zip(self.entries, pieces, strict=True)
        }

    def to_json(self) -> list[tuple[str, tuple[int, ...], bool]]:
        """Name, shape and whether it is trained, of the entries in order."""
        return [(entry.name, entry.shape, entry.trainable) for entry in self.entries]

    @classmethod
    def from_json(cls, rows: Any) -> ParameterLayout:
        """The inverse of ``to_json``; offsets follow from the order.

        ValueError, of one line, where it is no layout.
        """
        try:
            found = _ROWS.validate_python(rows)
        except ValidationError as error:
            raise ValueError(f"expected a layout, got {first_problem(error)}") from None
        layout = cls._stack(found)
        if len({name for name, *_ in found}) < len(found) or layout.size >= MOST_PARAMETERS:
            raise ValueError("expected a layout, got a name twice, or more than memory could hold")
        return layout


_ROWS = TypeAdapter(
    list[tuple[StrictStr, tuple[Annotated[NonNegativeInt, Strict()], ...], StrictBool]]
)
MOST_PARAMETERS = 2**48


def _stored_tensors(module: nn.Module) -> list[tuple[str, tuple[int, ...], bool]]:
    """Name, shape and whether it is trained, of all that a vector can hold."""
    persistent = module.state_dict().keys()
    parameters = [(name, tuple(p.shape), p.requires_grad) for name, p in module.named_parameters()]
    buffers = [
        (name, tuple(buffer.shape), False)
        for name, buffer in module.named_buffers()
        if name in persistent and buffer.is_floating_point()
    ]
    return sorted(parameters, key=lambda row: not row[2]) + buffers


def _select(names: Sequence[str], include: Sequence[str]) -> set[str]:
    if not include:
        raise ConfigError('expected at least one pattern in include, got none; "*" takes all')
    selected: set[str] = set()
    for pattern in include:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            closest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise ConfigError(
                f"expected include pattern {pattern!r} to match a parameter or float buffer, "
                f"got none of {len(names)}; closest: {', '.join(closest) or 'the module has none'}"
            )
        selected.update(matches)
    return selected
