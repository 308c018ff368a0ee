"""CSV: values are texts, and what columns look like."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bend_ray.data.columns import raw_column
from bend_ray.data.csv_text import as_texts, read_csv, typed
from bend_ray.data.datasets import Table
from bend_ray.errors import DataError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


def read(content: str | bytes) -> pa.Table:
    data = content.encode() if isinstance(content, str) else content
    return read_csv(pa.BufferReader(data), "rows.csv")


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_values_are_the_texts_that_stand_there(rows: list[tuple[str, str]]) -> None:
    sink = io.StringIO()
    csv.writer(sink, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("a", "b"), *rows])
    found = read(sink.getvalue()).to_pydict()
    assert list(zip(found["a"], found["b"], strict=True)) == [
        (a or None, b or None) for a, b in rows
    ]


@given(st.lists(TEXTS, min_size=1, max_size=20), st.integers(0, 19))
@settings(max_examples=50, deadline=None)
def test_a_category_does_not_hang_on_the_rows_beside_it(texts: list[str], index: int) -> None:
    table = pa.table({"a": pa.array(texts, pa.string())})
    own = table.slice(index % len(texts), 1)
    whole = raw_column(typed(table, ["a"]).column("a"), "category", "a")
    assert (
        raw_column(typed(own, ["a"]).column("a"), "category", "a")[0] == whole[index % len(texts)]
    )


@pytest.mark.parametrize(
    ("text", "its"),
    [
        ("1\n-2\n\"\"\n", "int64"),
        ("1\n2.5\n1e5\n.5\nnan\n", "double"),
        ("9007199254740993\n1\n", "int64"),
        (" 1\n2 \n", "int64"),
        ("true\nFalse\n", "bool"),
        ("2024-01-02\n2024-01-02T10:30Z\n", "timestamp[us]"),
        ("10:30\n11:00\n", "string"),
        ("01234\n12345\n", "string"),
        ("0x1F\n0x20\n", "string"),
        ("9" * 20 + "\n1\n", "string"),
        ("NA\nDE\n", "string"),
        ("1\nNA\n", "string"),
        ("\"\"\n\"\"\n", "null"),
    ],
)  # fmt: skip
def test_what_columns_look_like(text: str, its: str) -> None:
    assert str(typed(read(f"a\n{text}"), ()).schema.field("a").type) == its


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1", "boolean", 1.0),
        ("0.0", "boolean", 0.0),
        ("True", "boolean", 1.0),
        ("2024-01-02", "date", 1704153600.0),
        ("2024-01-02T01:00+01:00", "date", 1704153600.0),
        (" 007.50 ", "number", 7.5),
        ("1.50", "category", "1.50"),
        ("NA", "category", "NA"),
    ],
)
def test_a_kind_reads_a_text(text: str, kind: str, value: object) -> None:
    texts = pa.chunked_array([[text]])
    assert raw_column(texts, kind, "x").tolist() == [value]  # type: ignore[arg-type]


def test_options_for_other_readers_are_the_same() -> None:
    content = b"a,b\nNA,007\n,true\n"
    found = pa.csv.read_csv(pa.BufferReader(content), convert_options=as_texts())
    assert (
        found.to_pydict() == read(content).to_pydict() == {"a": ["NA", None], "b": ["007", "true"]}
    )


def test_another_encoding_is_named() -> None:
    with pytest.raises(DataError, match=r"^rows\.csv: expected UTF-8, got UTF-16; convert it"):
        read("a,b\n1,2\n".encode("utf-16"))


def table_of(folder: Path, content: str, **more: object) -> Table:
    path = folder / "rows.csv"
    path.write_text(content)
    return Table(train=str(path), num_validation=4, **more)  # type: ignore[arg-type]


def test_levels_and_classes_are_texts_of_the_file(tmp_path: Path) -> None:
    rows = [
        f"{zip},{land},{i % 2:02}"
        for i in range(10)
        for zip in ("01234", "1234")
        for land in ("NA", "DE")
    ]
    spec = table_of(tmp_path, "\n".join(["zip,land,label", *rows]), columns={"zip": "category"})
    parts = spec.load()
    assert parts.columns["zip"].levels == ("01234", "1234")
    assert parts.columns["land"].levels == ("DE", "NA")
    assert not parts.columns["land"].missing
    assert parts.class_names == ("00", "01")


def test_classes_that_are_one_number_are_two_texts(tmp_path: Path) -> None:
    rows = [f"{i},{label}" for i in range(10) for label in ("1", "01", "2")]
    parts = table_of(tmp_path, "\n".join(["x,label", *rows])).load()
    assert set(parts.class_names) == {"1", "01", "2"}


def test_a_part_of_its_own_is_read_as_training_is(tmp_path: Path) -> None:
    train = "\n".join(["x,code,label", *(f"{i},{i % 3}x,{i % 2}" for i in range(20))])
    (tmp_path / "test.csv").write_text("x,code,label\n1.5,1x,1.0\n2,true,0\n")
    parts = table_of(tmp_path, train, test=str(tmp_path / "test.csv")).load()
    assert parts.test.labels_N.tolist() == [1, 0]


def test_a_sign_of_a_missing_target_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"{i},{label}" for i in range(10) for label in ("0", "1", "NA")]
    assert table_of(tmp_path, "\n".join(["x,label", *rows])).load().class_names == ("0", "1", "NA")
    assert "target label: classes NA beside numbers; leave empty what is missing" in caplog.text
