"""Tables: what columns become, how parts are drawn, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bend_ray.api import _dataset
from bend_ray.data.columns import KNOTS, MOST_LEVELS, Column, encode, raw_column
from bend_ray.data.datasets import Table
from bend_ray.data.splits import ByGroup, ByTime, Stratified
from bend_ray.errors import ConfigError, DataError
from bend_ray.runtime.interface import Runtime
from bend_ray.tasks import Classification, Regression


def frame(rows: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": rng.normal(40, 10, rows),
            "city": rng.choice(["Ulm", "Bonn", "Köln"], rows),
            "when": pd.date_range("2024-01-01", periods=rows),
            "ok": rng.random(rows) > 0.5,
            "same": 1.0,
            "name": [f"person {i}" for i in range(rows)],
        }
    )
    table.loc[::7, "age"] = np.nan
    table.loc[::9, "city"] = None
    table["y"] = rng.normal(size=rows)
    table["label"] = np.where(rng.random(rows) > 0.7, "yes", "no")
    return table


def write(table: pd.DataFrame, folder: Path, ending: str = "parquet") -> str:
    path = folder / f"rows.{ending}"
    if ending == "csv":
        table.to_csv(path, index=False)
    elif ending == "arrow":
        pa.feather.write_feather(pa.Table.from_pandas(table), str(path))
    else:
        table.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("ending", ["parquet", "csv", "arrow"])
def test_columns_are_what_they_look_like(
    ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = Table(train=write(frame(), tmp_path, ending)).load()
    kinds = {name: column.kind for name, column in parts.columns.items()}
    expected = {"age": "number", "city": "category", "when": "date", "ok": "boolean", "y": "number"}
    assert kinds == expected
    assert parts.columns["city"].levels == ("Bonn", "Köln", "Ulm")
    assert [name for name, column in parts.columns.items() if column.missing] == ["age", "city"]
    assert parts.input_shape == (2 + 4 + 1 + 1 + 1,)
    assert (parts.class_names, parts.num_outputs, parts.load_test) == (("no", "yes"), 2, None)
    assert "columns same: left out, as they never vary" in caplog.text
    assert "columns name: left out, as texts of many values" in caplog.text


def test_a_column_may_be_meant_otherwise(tmp_path: Path) -> None:
    table = frame().assign(zip=np.arange(120) % 3)
    given = {"zip": "category", "when": "ignore"}
    parts = Table(train=write(table, tmp_path), target="y", columns=given).load()
    assert parts.columns["zip"].levels == ("0", "1", "2")
    assert "when" not in parts.columns
    assert isinstance(parts.task, Regression)
    assert parts.train.labels_N.shape == (96, 1)


@given(st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=200))
@settings(max_examples=50, deadline=None)
def test_numbers_become_rising_scores_whatever_they_are(values: list[float]) -> None:
    array = np.array(values)
    column = Column.fitted("number", array)
    if column is None:
        assert len(np.unique(array)) == 1
        return
    assert len(column.knots) <= KNOTS
    scores = encode({"x": column}, {"x": np.sort(array)})[:, 0]
    assert np.isfinite(scores).all()
    assert (np.diff(scores) >= 0).all()
    assert abs(scores).max() < 4
    beyond = encode({"x": column}, {"x": np.array([-np.inf, np.inf])})[:, 0]
    assert beyond.tolist() == [scores[0], scores[-1]]


def test_scores_are_normal_whatever_the_units() -> None:
    values = np.random.default_rng(0).lognormal(sigma=3, size=5000)
    column = Column.fitted("number", values)
    assert column is not None
    scores = encode({"x": column}, {"x": values})[:, 0]
    assert scores.mean() == pytest.approx(0, abs=0.05)
    assert scores.std() == pytest.approx(1, abs=0.05)


def test_an_unseen_level_and_a_missing_one() -> None:
    column = Column.fitted("category", np.array(["a", "b", "b", ""]))
    assert column is not None
    rows = encode({"x": column}, {"x": np.array(["b", "zzz", "", "A"])})
    assert rows.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    # Where none was missing, a missing one is like an unseen one.
    whole = Column.fitted("category", np.array(["a", "b"]))
    assert whole is not None
    assert encode({"x": whole}, {"x": np.array([""])}).tolist() == [[0, 0]]


def test_rare_levels_are_left_out() -> None:
    many = np.array([f"{i:03}" for i in range(100)] + ["007"] * 5)
    column = Column.fitted("category", many)
    assert column is not None
    assert len(column.levels) == MOST_LEVELS
    assert "007" in column.levels


def test_floats_that_are_whole_are_the_same_levels() -> None:
    assert raw_column([3.0, None], "category", "x").tolist() == ["3", ""]
    assert raw_column([3, 4], "category", "x").tolist() == ["3", "4"]
    assert raw_column(["2024-01-02"], "date", "x").tolist() == [1704153600.0]
    assert raw_column([True, None], "boolean", "x").tolist()[0] == 1.0


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        (["abc"], "number", "expected a column of kind number"),
        ([1.0, np.inf], "number", "infinity"),
        ([[1, 2]], "number", "kind number"),
        (["soon"], "date", "kind date"),
        ([["a"]], "category", "kind category"),
        ([1704153600], "date", "kind date, got: int64, such as 1704153600"),
        (["1704153600"], "date", "kind date"),
        ([2], "boolean", "got: 2; give true, false, 1 or 0"),
        ([True], "number", "kind number, got: bool"),
    ],
)
def test_what_a_column_is_not(values: list[object], kind: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        raw_column(values, kind, "x")  # type: ignore[arg-type]


def rows_of(table: pd.DataFrame, parts: object, name: str) -> set[float]:
    """The targets of a part, which are all different."""
    return {round(float(y), 9) for y in getattr(parts, name).labels_N[:, 0]}


def test_parts_share_no_row_and_folds_cover_all(tmp_path: Path) -> None:
    table = frame()
    spec = Table(train=write(table, tmp_path), target="y", folds=4)
    tested: list[float] = []
    for seed in range(4):
        parts = spec.model_copy(update={"split_seed": seed}).load()
        each = [rows_of(table, parts, name) for name in ("train", "validation", "test")]
        assert sum(map(len, each)) == len(set.union(*each)) == len(table)
        tested += each[2]
    assert sorted(tested) == sorted(round(y, 9) for y in table["y"])


def test_groups_stay_together_and_times_in_order(tmp_path: Path) -> None:
    table = frame().assign(team=np.arange(120) // 5, t=np.arange(120)[::-1])
    uri = write(table, tmp_path)
    team = {round(y, 9): g for y, g in zip(table["y"], table["team"], strict=True)}
    grouped = Table(train=uri, target="y", split=ByGroup(column="team"), test_share=0.2).load()
    assert "team" not in grouped.columns
    teams = [
        {team[y] for y in rows_of(table, grouped, name)} for name in ("train", "validation", "test")
    ]
    assert sum(map(len, teams)) == len(set.union(*teams)) == 24
    timed = Table(train=uri, target="y", split=ByTime(column="t"), test_share=0.25).load()
    time = {round(y, 9): t for y, t in zip(table["y"], table["t"], strict=True)}
    spans = [
        sorted(time[y] for y in rows_of(table, timed, name))
        for name in ("train", "validation", "test")
    ]
    assert spans[0][-1] < spans[1][0]
    assert spans[1][-1] < spans[2][0]
    assert len(spans[2]) == 30


@pytest.mark.parametrize("target", ["label", "y"])
def test_a_stratified_part_is_like_the_whole(target: str, tmp_path: Path) -> None:
    table = frame(400)
    spec = Table(train=write(table, tmp_path), target=target, split=Stratified(), test_share=0.25)
    labels = spec.load().test.labels_N.double()
    if target == "label":
        share = (table["label"] == "yes").mean()
        assert labels.mean().item() == pytest.approx(share, abs=0.01)
    else:
        found = np.quantile(labels.numpy(), [0.2, 0.5, 0.8])
        assert found == pytest.approx(table["y"].quantile([0.2, 0.5, 0.8]), abs=0.2)


def test_the_test_part_is_read_by_name_and_without_its_statistics(tmp_path: Path) -> None:
    table = frame()
    uri = write(table, tmp_path)
    other = tmp_path / "test.csv"
    table[table.columns[::-1]].head(20).assign(city="Rome").to_csv(other, index=False)
    parts = Table(train=uri, test=str(other)).load()
    alone = Table(train=uri).load()
    assert parts.columns == alone.columns
    assert len(parts.test) == 20


@pytest.mark.parametrize(
    ("change", "more", "told"),
    [
        ({"label": None}, {}, "label: expected a value in every row, got none in 120 of 120"),
        ({}, {"target": "price"}, "expected a column price"),
        ({}, {"columns": {"city": "number"}}, "city: expected a column of kind number"),
        ({"age": np.inf}, {}, "infinity"),
        ({"label": "yes"}, {}, "expected examples of two classes"),
        ({"y": 3.5}, {"target": "y"}, r"expected values of y that vary, .* all 3\.5"),
        ({"deep": [[[1]]] * 120}, {}, "deep: expected numbers, truth values, dates or texts"),
    ],
)
def test_what_is_refused(
    change: dict[str, object], more: dict[str, object], told: str, tmp_path: Path
) -> None:
    uri = write(frame().assign(**change), tmp_path)
    with pytest.raises(DataError, match=told) as refused:
        Table(train=uri, **more).load()  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_without_a_target_all_columns_are_told(tmp_path: Path) -> None:
    table = frame().drop(columns=["y", "label"]).assign(**{f"c{i}": i for i in range(12)})
    with pytest.raises(DataError, match=r"^dataset\.target: expected the name .* age, .*, c11$"):
        Table(train=write(table, tmp_path)).load()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"age,label\n", r"expected rows in rows\.csv, got no rows"),
        (b"age;label\n3;yes\n", "expected commas between columns, .* delimiter ';'"),
        (b"age;label\n3,5;yes\n", "expected commas between columns, .* delimiter ; or a tab"),
        ("city,label\nKöln,yes\n".encode("latin-1"), "expected UTF-8, .* in city; is it Latin-1"),
        ("größe,label\n3,yes\n".encode("latin-1"), "expected UTF-8, .* in the header"),
    ],
)
def test_files_that_are_no_such_csv(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told) as refused:
        Table(train=str(path)).load()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("values", [range(120), [1.5] * 60 + [2.0, 3.0] * 30])
def test_a_sign_of_missing_numbers_is_told(
    values: Sequence[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weight = ["?" if i % 9 == 0 else str(each) for i, each in enumerate(values)]
    Table(train=write(frame().assign(weight=weight), tmp_path, "csv")).load()
    assert "columns weight: texts, as they hold ? beside numbers" in caplog.text
    assert caplog.text.count("beside numbers") == 1


def test_rows_are_told_in_the_words_of_their_task(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    Runtime().share(Table(train=write(frame(), tmp_path), target="y", num_calibration=4))
    told = "96 training and 20 validation examples of 10, 1 target, 4 kept back for calibration"
    assert told in caplog.text


def test_a_test_part_that_does_not_fit(tmp_path: Path) -> None:
    uri = write(frame(), tmp_path)
    for change, told in (
        ({"label": "maybe"}, "expected the classes of the training part in label"),
        ({"age": "old"}, "age: expected a column of kind number"),
    ):
        other = tmp_path / "test.csv"
        frame().assign(**change).to_csv(other, index=False)
        with pytest.raises(DataError, match=told):
            Table(train=uri, test=str(other)).load()
    frame().drop(columns="age").to_csv(other, index=False)
    with pytest.raises(DataError, match="the test part: expected a column age"):
        Table(train=uri, test=str(other)).load()


@pytest.mark.parametrize("ending", ["parquet", "csv", "arrow"])
def test_two_columns_of_a_name_are_refused(ending: str, tmp_path: Path) -> None:
    twice = pa.table([pa.array([1.0, 2.0])] * 2 + [pa.array([0, 1])], names=["a", "a", "y"])
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        path.write_text("a,a,y\n1,1,0\n2,2,1\n")
    else:
        writer = pa.parquet.write_table if ending == "parquet" else pa.feather.write_feather
        writer(twice, str(path))
    with pytest.raises(DataError, match=r"expected columns of different names, got a twice"):
        Table(train=str(path)).load()


def test_thousands_of_columns_and_three_rows(tmp_path: Path) -> None:
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(3, 10_000))).add_prefix("x")
    parts = Table(train=write(wide.assign(y=[0.1, 0.2, 0.3]), tmp_path)).load()
    assert parts.input_shape == (10_000,)
    with pytest.raises(DataError, match="expected rows for each part, got 0 for training"):
        Table(train=write(wide[:1].assign(y=0.1), tmp_path)).load()


@pytest.mark.parametrize(
    ("change", "width"),
    [
        ({"city": ["Rome"] + ["Ulm", "Bonn"] * 59 + ["Ulm"]}, 3),  # a level of one row
        ({"city": None}, 0),
        ({"city": [f"{i}" for i in range(120)]}, 0),
    ],
)
def test_levels_that_say_little(change: dict[str, object], width: int, tmp_path: Path) -> None:
    table = frame()[["age", "label"]].assign(**change)
    columns = Table(train=write(table, tmp_path), num_validation=1, split_seed=1).load().columns
    assert (columns["city"].width if width else len(columns) - 1) == width


def test_another_order_and_other_types_are_the_same_columns(tmp_path: Path) -> None:
    uri, other = write(frame().drop(columns="name"), tmp_path), tmp_path / "test.csv"
    whole = frame().drop(columns="name").assign(age=lambda t: t["age"].round(), more=1)
    whole[whole.columns[::-1]].to_csv(other, index=False)
    as_texts = Table(train=uri, test=str(other)).load().test
    whole.to_parquet(tmp_path / "same.parquet")
    as_they_are = Table(train=uri, test=str(tmp_path / "same.parquet")).load().test
    assert (as_texts.inputs == as_they_are.inputs).all()


def test_few_whole_numbers_are_classes_and_many_are_numbers(tmp_path: Path) -> None:
    table = frame().drop(columns="label").assign(few=np.arange(120) % 3 - 1, many=np.arange(120))
    uri = write(table, tmp_path)
    few = Table(train=uri, target="few").load()
    assert (few.task, few.class_names) == (Classification(), ("-1", "0", "1"))
    many = Table(train=uri, target="many").load()
    assert isinstance(many.task, Regression)
    both = Table(train=uri, target=("y", "many")).load()
    assert (both.num_outputs, both.class_names) == (4, ("y", "many"))


def test_frames_are_tables_and_arrays_are_not(tmp_path: Path) -> None:
    table = frame().drop(columns="name")
    found = _dataset(table, None, table.head(20), str(tmp_path))
    assert found["kind"] == "table"
    again = _dataset(table.copy(), None, table.head(20), str(tmp_path))
    assert again == found
    parts = Table(**found).load()
    assert (len(parts.train), len(parts.validation)) == (120, 20)
    beside = _dataset((table.drop(columns="label"), table["label"]), None, None, str(tmp_path))
    assert Table(**beside).load().class_names == ("no", "yes")
    arrays = _dataset((table[["y"]].to_numpy(), [0, 1] * 60), None, None, str(tmp_path))
    assert arrays["kind"] == "arrays"
    lists = pd.DataFrame({"tokens": [[1, 2]] * 8, "label": [0, 1] * 4})
    assert _dataset(lists, None, None, str(tmp_path))["kind"] == "arrays"


@pytest.mark.parametrize("name", ["label", "votes", "entropy", "probabilities", "logits"])
def test_an_input_that_is_called_as_an_answer_is_refused_when_it_is_read(
    tmp_path: Path, name: str
) -> None:
    uri = write(frame().drop(columns="label").assign(**{name: np.arange(120)}), tmp_path)
    spec = Table(train=uri, target="ok")
    with pytest.raises(ConfigError, match=f"^dataset: {name}: expected"):
        spec.load()
    assert spec.model_copy(update={"columns": {name: "ignore"}}).load().columns
    if name in ("label", "votes", "probabilities"):  # answers about numbers are called otherwise
        assert name in Table(train=uri, target="y").load().columns
