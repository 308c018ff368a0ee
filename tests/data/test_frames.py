"""Frames as tables: what pandas and polars hold, and what has no place in a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from bend_ray.api import _dataset
from bend_ray.data.columns import kind_of, raw_column
from bend_ray.data.datasets import Table
from bend_ray.errors import DataError
from bend_ray.sklearn.rows import holds_numbers, raw_of


def frame(rows: int = 40) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    cities = rng.choice(["Ulm", "Bonn", "NA"], rows)
    return pd.DataFrame({"x": rng.normal(size=rows), "city": cities, "label": ["a", "b"] * 20})


def loaded(given: Any, folder: Path) -> Any:
    return Table(**_dataset(given, None, None, str(folder))).load()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda f: (f, [0, 1]), "expected a label of each of 40 rows, got shape (2,)"),
        (
            lambda f: (f, np.zeros((40, 2))),
            "expected a label of each of 40 rows, got shape (40, 2)",
        ),
        (lambda f: f.assign(m=[1, "x"] * 20), "got: Conversion failed for column m with type"),
        (lambda f: f.assign(c=1j), "got: Conversion failed for column c with type complex"),
        (
            lambda f: f.assign(d=pd.to_timedelta(f["x"], "s")),
            "d: expected numbers, truth values, d",
        ),
        (lambda f: f.assign(**{"": 1}), "expected a name of every column, got none of column 4"),
        (lambda f: pd.concat([f, f[["x"]]], axis=1), "got: Duplicate column names found"),
    ],
)
def test_frames_that_are_no_tables(
    make: Callable[[pd.DataFrame], Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as refused:
        loaded(make(frame()), tmp_path)
    assert str(refused.value).startswith("train: ")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def polars_frame() -> Any:
    pl = pytest.importorskip("polars", reason="polars is not installed")
    whole = pl.from_pandas(frame())
    its = {"kind": pl.Categorical, "enum": pl.Enum(["Bonn", "NA", "Ulm"])}
    return whole.with_columns(pl.col("city").cast(to).alias(name) for name, to in its.items())


def test_texts_of_polars_are_texts(tmp_path: Path) -> None:
    given = polars_frame()
    given.write_ipc(tmp_path / "rows.arrow")
    for parts in (loaded(given, tmp_path), Table(train=str(tmp_path / "rows.arrow")).load()):
        for name in ("city", "kind", "enum"):
            assert parts.columns[name].levels == ("Bonn", "NA", "Ulm")


def test_estimators_take_texts_of_polars() -> None:
    raw, kinds = raw_of(polars_frame(), None)
    assert [*kinds.values()] == ["number", *["category"] * 4]
    assert (raw["x1"] == raw["x3"]).all()
    assert (raw["x1"] == raw["x4"]).all()


def test_what_arrow_does_not_hold_is_said_in_a_line() -> None:
    pl = pytest.importorskip("polars", reason="polars is not installed")
    given = pl.DataFrame({"x": pl.Series(range(4)).cast(pl.Int128)})
    assert not holds_numbers(given)
    with pytest.raises(ValueError, match=r"^X: expected columns of .* got: "):
        raw_of(given, None)


@pytest.mark.parametrize("its", [pa.string(), pa.large_string(), pa.string_view()])
def test_texts_are_read_alike_however_they_are_stored(its: pa.DataType) -> None:
    dates = pa.chunked_array([["2024-01-02", None]]).cast(its)
    assert raw_column(dates, "date", "x").tolist()[0] == 1704153600.0
    texts = pa.chunked_array([["a", "b"], ["a", "a"]]).cast(its)
    assert raw_column(texts, "category", "x").tolist() == ["a", "b", "a", "a"]
    assert raw_column(texts.dictionary_encode(), "category", "x").tolist() == ["a", "b", "a", "a"]
    assert kind_of(texts, "x") == "category"


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_the_names_that_pandas_gives_rows_are_no_input(ending: str, tmp_path: Path) -> None:
    shuffled = frame().sample(frac=1.0, random_state=0)
    path = tmp_path / f"rows.{ending}"
    given = pa.Table.from_pandas(shuffled)
    assert "__index_level_0__" in given.column_names
    writer = pa.parquet.write_table if ending == "parquet" else pa.feather.write_feather
    writer(given, str(path))
    assert [*Table(train=str(path)).load().columns] == ["x", "city"]


def test_a_csv_file_with_the_names_of_rows_is_refused(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "rows.csv")
    with pytest.raises(
        DataError, match=r"^rows\.csv: expected a name of every column, .* column 1"
    ):
        Table(train=str(tmp_path / "rows.csv")).load()


@pytest.mark.parametrize("name", ["rows.tsv", "rows.csv.gz", "rows.xlsx", "rows.json", "rows"])
def test_other_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x,label\n1,a\n2,b\n")
    with pytest.raises(
        DataError, match=rf"^{name}: expected a file that ends in \.parquet, .*\.csv"
    ):
        Table(train=str(tmp_path / name)).load()


def test_thousands_of_columns_that_say_nothing_are_told_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    same = pd.DataFrame(np.ones((40, 1000))).add_prefix("c")
    wide = pd.concat([frame().assign(big=2**62 + np.arange(40)), same], axis=1)
    wide.to_parquet(tmp_path / "rows.parquet")
    Table(train=str(tmp_path / "rows.parquet")).load()
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(told) == 2
    assert "columns big: left out, as float64 does not tell their numbers apart" in told[0]
    assert "and 980 more: left out, as they never vary" in told[1]
