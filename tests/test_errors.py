from __future__ import annotations

import inspect
import pickle
import re

import pytest

from bend_ray import errors
from bend_ray.errors import BendError, CorruptArtifact, StoreError

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]


def drawn_tree() -> dict[str, str]:
    """Class -> parent, as the module's docstring draws it."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"(?P<indent>    [│├└─ ]*)(?P<name>[A-Z]\w+) {2,}\S", line):
            depth = (len(found["indent"]) - 4) // 4
            path = [*path[:depth], found["name"]]
            parents[found["name"]] = path[-2] if depth else "Exception"
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    assert drawn_tree() == {cls.__name__: cls.__base__.__name__ for cls in CLASSES}


def test_what_a_user_can_mend_is_caught_by_one_name() -> None:
    assert len(CLASSES) > 1
    assert all(issubclass(cls, BendError) for cls in CLASSES)
    assert not issubclass(BendError, ValueError | OSError)
    assert issubclass(CorruptArtifact, StoreError)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_pickling_with_its_message(cls: type[BendError]) -> None:
    error = pickle.loads(pickle.dumps(cls("expected 363 parameters, got 361")))
    assert type(error) is cls
    assert str(error) == "expected 363 parameters, got 361"


@pytest.mark.parametrize("cls", CLASSES)
def test_no_error_takes_more_than_its_message(cls: type[BendError]) -> None:
    assert cls.__init__ is Exception.__init__
    assert vars(cls).keys() <= {"__module__", "__doc__", "__weakref__"}
    assert cls.__doc__
