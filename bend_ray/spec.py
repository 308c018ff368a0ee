"""Spec: the frozen pydantic base of everything a user can configure.

A spec builds what it describes (``config.architecture.build(...)``), so nobody looks up strings.
Variants of one kind are specs that differ in the literal ``kind``; an axis is their union with
``Field(discriminator="kind")``. The docstring under each field is its help text.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError


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

    @model_validator(mode="wrap")
    @classmethod
    def _is_no_subclass(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # It would pass for its parent, and find the parent's artifacts in a store.
        if isinstance(value, cls) and type(value) is not cls:
            raise ValueError(
                f"expected {cls.__name__} itself, got a subclass of it, {type(value).__name__}; "
                "a class of your own has a kind of its own, and its name in the union"
            )
        return handler(value)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, given: Any) -> Any:
        # To pydantic true is 1, as it is to Python.
        if isinstance(given, dict):
            refused = PydanticCustomError("boolean", "Input should be no boolean")
            wrong = [
                InitErrorDetails(type=refused, loc=(name,), input=given[name])
                for name, field in cls.model_fields.items()
                if _holds_boolean(given.get(name))
                and not any(leaf in (bool, Any) for leaf in _leaves(field.annotation))
            ]
            if wrong:
                raise ValidationError.from_exception_data(cls.__name__, wrong)
        return given

    @property
    def own_type(self) -> str | None:
        """The name of a class that passes for its parent, as it has no kind of its own."""
        cls = type(self)
        if "kind" in cls.model_fields and "kind" not in cls.__annotations__:
            return f"{cls.__module__}.{cls.__qualname__}"
        return None


def _holds_boolean(value: Any) -> bool:
    """Whether a value is one, or a list with one in it; sections look after themselves."""
    if isinstance(value, list | tuple):
        return any(map(_holds_boolean, value))
    return isinstance(value, bool)


def _leaves(annotation: Any) -> list[Any]:
    """What is in an annotation and holds no others: types, and what marks them."""
    arguments = get_args(annotation)
    return [leaf for each in arguments for leaf in _leaves(each)] if arguments else [annotation]


class Record(BaseModel):
    """What is written to a store and read back: immutable, strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints in one line: ``files.0.bytes: Input should be ...``."""
    first = error.errors()[0]
    where = ".".join(str(key) for key in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


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
    marks = (*field.metadata, *_leaves(field.annotation))
    return any(isinstance(mark, Incidental) for mark in marks)


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
    leaves = dict.fromkeys(leaf for leaf in _leaves(annotation) if isinstance(leaf, type))
    return tuple(leaf for leaf in leaves if issubclass(leaf, Spec))
