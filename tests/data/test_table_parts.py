"""Parts of a table: whole groups, folds that cover all rows, and what cannot be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bend_ray.data.datasets import Table
from bend_ray.data.splits import ByGroup, ByTime, Random, Stratified
from bend_ray.errors import DataError
from bend_ray.tasks import Classification, Regression

NAMES = ("train", "validation", "calibration", "test")


def written(folder: Path, groups: list[int], **columns: object) -> str:
    """Rows whose target is their number, so that they are known in every part."""
    path = folder / "rows.parquet"
    count = len(groups)
    x = np.random.default_rng(0).normal(size=count)
    pd.DataFrame({"x": x, "g": groups, "y": np.arange(count) + 0.5, **columns}).to_parquet(path)
    return str(path)


def rows_of(spec: Table) -> dict[str, set[int]]:
    parts = spec.load()
    known = {name: getattr(parts, name) for name in NAMES if name != "test" or parts.load_test}
    return {
        name: set((part.labels_N[:, 0] - 0.5).int().tolist())
        for name, part in known.items()
        if part is not None
    }


def groups_of(spec: Table, groups: list[int]) -> list[set[int]]:
    return [{groups[row] for row in rows} for rows in rows_of(spec).values()]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    share=st.sampled_from([0.0, 0.2, 0.5]),
    folds=st.sampled_from([None, 2, 3, 5]),
    seed=st.integers(0, 5),
    calibration=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_no_group_is_in_two_parts(
    sizes: list[int],
    share: float,
    folds: int | None,
    seed: int,
    calibration: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes).tolist()
    drawn = {"folds": folds} if folds else {"test_share": share}
    spec = Table(
        train=written(tmp_path_factory.mktemp("t"), groups),
        target="y",
        split=ByGroup(column="g"),
        task=Regression(),
        split_seed=seed,
        num_calibration=calibration,
        **drawn,  # type: ignore[arg-type]
    )
    try:
        found = groups_of(spec, groups)
    except DataError:
        assume(False)
    assert sum(map(len, found)) == len(set.union(*found)) == len(sizes)


@pytest.mark.parametrize("groups", [[1] * 300, [0] * 60 + [1] * 240])
@pytest.mark.parametrize("kind", ["group", "time"])
def test_one_large_group_is_refused(groups: list[int], kind: str, tmp_path: Path) -> None:
    split = {"kind": kind, "column": "g"}
    uri = written(tmp_path, groups)
    for seed in range(4):
        spec = Table(train=uri, target="y", split=split, test_share=0.2, split_seed=seed)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"expected rows for each part, .* or groups of fewer"):
            spec.load()


@pytest.mark.parametrize(
    ("split", "groups"),
    [
        (ByGroup(column="g"), np.repeat(np.arange(12), 25).tolist()),
        (Random(), list(range(300))),
        (Stratified(), list(range(300))),
    ],
)
@pytest.mark.parametrize("folds", [5, 7])
def test_every_row_is_tested_once(
    split: ByGroup | Random | Stratified, groups: list[int], folds: int, tmp_path: Path
) -> None:
    uri, tested = written(tmp_path, groups), []
    for seed in range(folds):
        spec = Table(train=uri, target="y", split=split, folds=folds, split_seed=seed)
        rows = rows_of(spec)
        assert not rows["train"] & (rows["validation"] | rows["test"])
        tested += rows["test"]
    assert sorted(tested) == list(range(300))


@pytest.mark.parametrize(
    ("groups", "folds", "told"),
    [
        (list(range(300)), 400, "got rows for 300 of 400"),
        ([0] * 250 + list(range(1, 51)), 5, r"got rows for \d of 5; lower it"),
    ],
)
def test_folds_without_rows_are_refused(
    groups: list[int], folds: int, told: str, tmp_path: Path
) -> None:
    uri = written(tmp_path, groups)
    for seed in range(4):
        spec = Table(train=uri, target="y", split=ByGroup(column="g"), folds=folds, split_seed=seed)
        with pytest.raises(DataError, match=rf"^dataset\.folds: expected .*{told}"):
            spec.load()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"folds": 3, "split": {"kind": "time", "column": "t"}}, "expected none with a split by"),
        ({"folds": 3, "test_share": 0.2}, "expected one of test, test_share and folds"),
        ({"test": "other.csv", "test_share": 0.2}, "expected one of test, test_share and folds"),
        ({"target": ""}, "at least 1 character"),
        ({"target": ["y", ""]}, "at least 1 character"),
    ],
)
def test_settings_that_contradict(more: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Table(train="rows.csv", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["group", "time"])
@pytest.mark.parametrize("values", [[None, 1.0, 2.0] * 4, [None] * 12])
def test_rows_of_no_group_or_time_are_refused(
    kind: str, values: list[float | None], tmp_path: Path
) -> None:
    uri = written(tmp_path, list(range(12)), when=values)
    split = {"kind": kind, "column": "when"}
    with pytest.raises(DataError, match="when: expected a value in every row, got none in"):
        Table(train=uri, target="y", split=split).load()  # type: ignore[arg-type]


def test_groups_of_a_named_validation_part_stay_together(tmp_path: Path) -> None:
    groups = np.repeat(np.arange(10), 4).tolist()
    held = tmp_path / "held"
    held.mkdir()
    spec = Table(
        train=written(tmp_path, list(range(40))),
        validation=written(held, groups),
        target="y",
        split=ByGroup(column="g"),
        num_calibration=6,
    )
    parts = spec.load()
    assert parts.calibration is not None
    each = [
        {groups[int(row)] for row in part.labels_N[:, 0]}
        for part in (parts.validation, parts.calibration)
    ]
    assert len(parts.calibration) == 8
    assert not each[0] & each[1]
    with pytest.raises(DataError, match="got 37 and the rest of their group; lower it"):
        spec.model_copy(update={"num_calibration": 37}).load()


def test_calibration_without_groups_is_as_many_as_asked(tmp_path: Path) -> None:
    spec = Table(train=written(tmp_path, [0] * 100), target="y", num_calibration=7)
    assert len(rows_of(spec)["calibration"]) == 7


def test_times_of_calibration_stay_together(tmp_path: Path) -> None:
    days = np.repeat(np.arange(20), 6).tolist()
    split = ByTime(column="g")
    spec = Table(
        train=written(tmp_path, days), target="y", split=split, num_validation=40, num_calibration=9
    )
    found = groups_of(spec, days)
    assert sum(map(len, found)) == 20


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"num_validation": 500}, "give more, or a lower dataset.num_validation"),
        ({"test_share": 0.0001}, "test_share: expected a row at least, got 0.0001 of 100 rows"),
        ({"target": ("y", "y")}, "target: expected each column once, got y, y"),
        ({"target": ("x", "y"), "task": Classification()}, "expected one column of classes, got x"),
    ],
)
def test_settings_that_rows_do_not_fit(more: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        Table(**{"train": written(tmp_path, list(range(100))), "target": "y"} | more).load()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "labels",
    [
        [f"{i % 20}x" for i in range(120)],
        [["yes", "no"][i % 2] for i in range(120)],
        [float(i) * 1e19 for i in range(120)],
        [i % 60 for i in range(120)],
    ],
)
def test_strata_are_drawn_of_any_target(labels: list[object], tmp_path: Path) -> None:
    uri = written(tmp_path, list(range(120)), label=labels)
    parts = Table(train=uri, target="label", split=Stratified(), test_share=0.25).load()
    assert len(parts.test) == 30


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (pd.date_range("2020-01-01", periods=60), "as target, got dates"),
        (
            pd.to_timedelta(range(60), "s"),
            "expected numbers, truth values, dates or texts, got dur",
        ),
        ([f"name {i}" for i in range(60)], "two training rows of a class of label on average"),
        (
            ["a"] * 30 + ["b"] * 29 + ["c"],
            "expected training rows of every class of label, got none",
        ),
        (["a"] * 59 + [""], r"label: expected a value in every row, .* row 59"),
        ([1.0] * 30 + [np.nan] * 30, r"label: expected a value in every row, .* row 30"),
    ],
)
def test_targets_that_are_no_classes(labels: object, told: str, tmp_path: Path) -> None:
    uri = written(tmp_path, list(range(60)), label=labels)
    spec = Table(train=uri, target="label", num_validation=20, split_seed=2)
    with pytest.raises(DataError, match=told):
        spec.load()


def test_a_class_may_be_a_long_number(tmp_path: Path) -> None:
    long = "9" * 5000
    uri = written(tmp_path, list(range(60)), label=["10", "9", long] * 20)
    assert Table(train=uri, target="label").load().class_names == ("9", "10", long)


@pytest.mark.parametrize("target", ["label", "y"])
def test_targets_of_a_named_part_are_looked_through(target: str, tmp_path: Path) -> None:
    uri = written(tmp_path, list(range(60)), label=["a", "b"] * 30)
    other = tmp_path / "other.parquet"
    told = pd.read_parquet(uri).head(8)
    told.loc[3, target] = None
    told.to_parquet(other)
    with pytest.raises(DataError, match=rf"the test part: {target}: .* row 3; drop"):
        Table(train=uri, test=str(other), target=target).load()
