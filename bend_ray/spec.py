"""Spec: the frozen pydantic base of everything a user can configure.

A spec builds what it describes (``config.architecture.build(...)``), so nobody looks up strings.
Variants of one kind are specs that differ in the literal ``kind``; an axis is their union with
``Field(discriminator="kind")``. The docstring under each field is its help text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveInt


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"expected an odd number, got {value}")
    return value


OddSize = Annotated[PositiveInt, AfterValidator(_odd)]


class Spec(BaseModel):
    """Immutable, strict about unknown keys, documented field by field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )


class Incidental:
    """Marks a field that changes no result, as where a file is found: no part of an identity."""


def is_incidental(spec: type[Spec], name: str) -> bool:
    """Whether a field is marked as ``Incidental``, as a whole or in a union.

    >>> class A(Spec):
    ...     root: Annotated[str, Incidental()] | None = None
    ...     size: int = 0
    >>> [is_incidental(A, name) for name in ("root", "size")]
    [True, False]
    """
    field = spec.model_fields[name]
    marks = [*field.metadata]
    waiting = [field.annotation]
    while waiting:
        annotation = waiting.pop()
        marks += getattr(annotation, "__metadata__", ())
        waiting += get_args(annotation)
    return any(isinstance(mark, Incidental) for mark in marks)


@dataclass(frozen=True)
class Addition:
    """Marks a field that came after artifacts had been made: ``Annotated[int, Addition()]``.

    At the value that does what was done without it, it is no part of a fingerprint: what had been
    made keeps its name.

    Attributes:
        without: that value; None for the default.
    """

    without: Any = None


def says_nothing(spec: Spec, name: str) -> bool:
    """Whether a field is an ``Addition`` at the value that does what was done without it.

    >>> class A(Spec):
    ...     old: int = 0
    ...     new: Annotated[int, Addition()] = 0
    ...     on: Annotated[int, Addition(without=0)] = 1
    >>> [[says_nothing(a, name) for name in ("old", "new", "on")] for a in (A(), A(new=1, on=0))]
    [[False, True, False], [False, False, True]]
    """
    field = type(spec).model_fields[name]
    for mark in field.metadata:
        if isinstance(mark, Addition):
            without = field.get_default() if mark.without is None else mark.without
            return bool(getattr(spec, name) == without)
    return False


def unsaid(spec: type[Spec]) -> dict[str, Any]:
    """The additions that a fingerprint leaves out at another value than the default, as JSON.

    >>> class A(Spec):
    ...     new: Annotated[int, Addition()] = 0
    ...     on: Annotated[int, Addition(without=0)] = 1
    >>> unsaid(A)
    {'on': 0}
    """
    return {
        name: mark.without.model_dump() if isinstance(mark.without, Spec) else mark.without
        for name, field in spec.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, Addition) and mark.without is not None
    }


def variants(annotation: Any) -> tuple[type[Spec], ...]:
    """The spec classes in an annotation, through unions, containers and ``Annotated``.

    >>> from typing import Literal
    >>> class A(Spec):
    ...     kind: Literal["a"] = "a"
    >>> class B(Spec):
    ...     kind: Literal["b"] = "b"
    >>> [c.__name__ for c in variants(A | B)]
    ['A', 'B']
    """
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return (annotation,)
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        arguments = arguments[:1]
    found: list[type[Spec]] = []
    for argument in arguments:
        found.extend(cls for cls in variants(argument) if cls not in found)
    return tuple(found)
