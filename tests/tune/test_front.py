"""The Pareto front and its knee, against their definitions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bend_ray.tune.front import knee, pareto_front, trade_off
from bend_ray.tune.objectives import Accuracy, Nll, PenalisedNll, ScoredBag

# Few values, so that rows are equal and tied.
FEW = arrays(np.float64, st.tuples(st.integers(1, 12), st.just(3)), elements=st.integers(0, 3))


@given(FEW)
def test_the_front_is_what_nothing_dominates(values: Any) -> None:
    front = pareto_front(values)
    kept = values[front]
    assert len(np.unique(kept, axis=0)) == len(kept)
    for row in values:
        beaten = any((each <= row).all() and (each < row).any() for each in values)
        assert beaten != any((each == row).all() for each in kept)


@given(FEW, st.integers(1, 5), st.integers(-3, 3))
def test_the_knee_depends_on_no_unit(values: Any, scale: int, shift: int) -> None:
    assert knee(values) == knee(values * scale + shift)


def test_a_bag_that_is_bent_towards_the_least_of_all_is_the_knee() -> None:
    bags = [
        ScoredBag(1, nll=0.30, accuracy=0.9, cost_seconds=10.0, flops=10),
        ScoredBag(4, nll=0.11, accuracy=0.9, cost_seconds=11.0, flops=40),
        ScoredBag(64, nll=0.10, accuracy=0.9, cost_seconds=100.0, flops=640),
        ScoredBag(8, nll=0.11, accuracy=0.9, cost_seconds=12.0, flops=80),
    ]
    assert trade_off(bags) == ([0, 1, 2], 1)


def test_objectives_say_what_they_weigh() -> None:
    bag = ScoredBag(4, nll=0.2, accuracy=0.9, cost_seconds=16.0, flops=8)
    assert Nll().of(bag) == 0.2
    assert Accuracy().of(bag) == pytest.approx(0.1)
    # Four doublings of a second and three of an operation.
    assert PenalisedNll(cost=0.01, inference=0.1).of(bag) == pytest.approx(0.2 + 0.04 + 0.3)
