"""The Pareto front and its knee, against their definitions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bend_ray.artifacts.store import Store
from bend_ray.config.schema import PipelineConfig
from bend_ray.tune.records import BagRecord, TrialRecord
from bend_ray.tune.space import Accuracy, Nll, PenalisedNll, TuneSection
from bend_ray.tune.study import Study, knee, pareto_front

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


def scored(size: int, **figures: Any) -> BagRecord:
    return BagRecord(size=size, accuracy=0.9, **figures)


def test_a_bag_that_is_bent_towards_the_least_of_all_is_the_knee(tmp_path: Path) -> None:
    bags = [
        scored(1, nll=0.30, cost_seconds=10.0, flops=10),
        scored(4, nll=0.11, cost_seconds=11.0, flops=40),
        scored(64, nll=0.10, cost_seconds=100.0, flops=640),
        scored(8, nll=0.11, cost_seconds=12.0, flops=80),
    ]
    trial = TrialRecord(name="t", point={"samples.temperature": 1.0}, status="done", bags=bags)
    section = TuneSection(ensemble_counts=(1, 4, 64), knobs={"samples.temperature": (1.0,)})
    study = Study.of(PipelineConfig(), section, Store(str(tmp_path)))
    front, turn = replace(study, trials=[trial]).front()
    assert [bag.size for _, bag in front] == [64, 4, 1]
    assert turn[1].size == 4


def test_objectives_say_what_they_weigh() -> None:
    bag = scored(4, nll=0.2, cost_seconds=16.0, flops=8)
    assert Nll().of(bag) == 0.2
    assert Accuracy().of(bag) == pytest.approx(0.1)
    # Four doublings of a second and three of an operation.
    assert PenalisedNll(cost=0.01, inference=0.1).of(bag) == pytest.approx(0.2 + 0.04 + 0.3)
