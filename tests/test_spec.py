from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from bend_ray.spec import OddSize, Spec, variants


class Circle(Spec):
    """A shape."""

    kind: Literal["circle"] = "circle"
    radius: float = 1.0
    """Half its width."""


class Square(Spec):
    """Another shape."""

    kind: Literal["square"] = "square"


class Big(Circle):
    """A derived shape."""


Shape = Annotated[Circle | Square, Field(discriminator="kind")]


class Wrong(Spec):
    """Its default is not what its annotation says."""

    size: OddSize = 4


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Circle, (Circle,)),
        (Circle | Square, (Circle, Square)),
        (Shape, (Circle, Square)),
        (Shape | None, (Circle, Square)),
        (list[Shape], (Circle, Square)),
        (tuple[Square, ...], (Square,)),
        (dict[str, list[Circle | None]], (Circle,)),
        (tuple[Square, Circle, Square | Circle], (Square, Circle)),
        (Big | Circle, (Big, Circle)),
        (int | str, ()),
        (Literal["circle"], ()),
        (None, ()),
    ],
)
def test_variants_are_found_once_each_and_in_order(annotation: Any, expected: Any) -> None:
    assert variants(annotation) == expected


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Circle().radius = 2.0  # type: ignore[misc]
    assert hash(Circle()) == hash(Circle(radius=1.0))


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ValidationError, match="diameter"):
        Circle(diameter=2.0)  # type: ignore[call-arg]


def test_an_unknown_kind_is_named_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match=r"hexagon.*circle.*square"):
        TypeAdapter(Shape).validate_python({"kind": "hexagon"})


def test_the_docstring_under_a_field_is_its_help_text() -> None:
    assert Circle.model_fields["radius"].description == "Half its width."


def test_a_default_is_checked_like_any_value() -> None:
    with pytest.raises(ValidationError, match="expected an odd number, got 4"):
        Wrong()


@pytest.mark.parametrize("size", [0, -3, 2, 2.5])
def test_an_odd_size_is_a_positive_odd_number(size: float) -> None:
    assert Wrong(size=7).size == 7
    with pytest.raises(ValidationError, match="size"):
        Wrong(size=size)
