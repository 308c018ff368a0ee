"""A row means the same by every door: in Python, JSON, CSV, the form, the protocol, and files."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inprocess import client
from test_columns import KINDS, columns_of, inputs_of, people, write_people
from test_numbers import Context

from bend_ray.data.columns import Kind, raw_column
from bend_ray.data.csv_text import read_csv
from bend_ray.errors import DataError
from bend_ray.export.card import read_card
from bend_ray.serve.answering import Answering
from bend_ray.serve.bag import Bag
from bend_ray.serve.bulk import _Predictor
from bend_ray.serve.meters import Meters, Prometheus
from bend_ray.serve.oip_grpc import MESSAGES, GrpcInference
from bend_ray.serve.pictures import lines
from bend_ray.serve.queries import given_inputs, inputs_of_csv, inputs_of_json
from bend_ray.serve.settings import ServeSettings

Row = dict[str, Any]

_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
_CELLS: dict[str, st.SearchStrategy[Any]] = {
    "number": st.none()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False),
    "boolean": st.none() | st.booleans(),
    "date": st.none()
    | st.datetimes(min_value=pd.Timestamp("1800-01-01"), max_value=pd.Timestamp("2200-01-01")).map(
        lambda moment: moment.isoformat()
    ),
    "category": st.none()
    | _TEXT
    | st.sampled_from(
        ["Ulm", "Köln", "NA", "nan", "null", "007", "1.50", "True", "10:30", "1e5", "0x1", " Ulm"]
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


ROWS = st.lists(
    st.fixed_dictionaries({name: _CELLS[kind] for name, kind in KINDS.items()}),
    min_size=1,
    max_size=5,
)


def as_text(value: Any) -> str:
    """A value as it stands in JSON, without quotes; nothing where it is missing."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def as_csv(rows: list[Row]) -> bytes:
    told = io.StringIO()
    writer = csv.writer(told, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([[*KINDS], *([as_text(row[name]) for name in KINDS] for row in rows)])
    return told.getvalue().encode()


def as_json(rows: list[Row]) -> bytes:
    return json.dumps({"instances": rows}).encode()


def as_form(rows: list[Row]) -> bytes:
    """What fields of the page hold: texts, and null where they are left empty."""
    return as_json([{n: as_text(value) or None for n, value in row.items()} for row in rows])


def as_lists(rows: list[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in KINDS}


def as_frame(rows: list[Row]) -> pd.DataFrame:
    """As pandas has what JSON's types are; dates as moments."""
    frame = pd.DataFrame({n: pd.Series(v, dtype=object) for n, v in as_lists(rows).items()})
    frame["joined"] = frame["joined"].astype("datetime64[us]")
    return frame.assign(**{name: frame[name].astype(float) for name in ("age", "total")})


def as_table(rows: list[Row]) -> pa.Table:
    """As Parquet has it."""
    return pa.Table.from_pandas(as_frame(rows), preserve_index=False)


def raw_doors(folder: Path, rows: list[Row]) -> dict[str, dict[str, np.ndarray]]:
    """What is asked about, by doors that read a row."""
    card = read_card(folder)
    doors: dict[str, Callable[[], Any]] = {
        "json": lambda: inputs_of_json(as_json(rows), card),
        "form": lambda: inputs_of_json(as_form(rows), card),
        "csv": lambda: inputs_of_csv(as_csv(rows), card),
        "bulk csv": lambda: given_inputs(read_csv(io.BytesIO(as_csv(rows)), "a.csv"), card),
        "rows": lambda: given_inputs(rows, card),
        "lists": lambda: given_inputs(as_lists(rows), card),
        "objects": lambda: given_inputs(pd.DataFrame(as_lists(rows), dtype=object), card),
        "frame": lambda: given_inputs(as_frame(rows), card),
        "parquet": lambda: given_inputs(as_table(rows), card),
    }
    return {name: door() for name, door in doors.items()}


@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_a_row_is_read_alike_by_every_door(folder: Path, rows: list[Row]) -> None:
    by_door = raw_doors(folder, rows)
    wanted = by_door.pop("json")
    for door, found in by_door.items():
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values, f"{door}: {name}")
    for row, own in enumerate(rows):  # whatever is beside it
        for door, found in raw_doors(folder, [own]).items():
            for name, values in wanted.items():
                np.testing.assert_array_equal(found[name], values[[row]], f"{door}: {name}")


@lru_cache(1)
def _served(folder: Path) -> tuple[Any, Answering, _Predictor]:
    service = Answering(ServeSettings(), Meters(Prometheus()))
    service.go_live(Bag.load(str(folder)))
    return client(folder), service, _Predictor(str(folder), "image", False)


def by_protocol(folder: Path, rows: list[Row], binary: bool) -> np.ndarray:
    """Probabilities over HTTP, of tensors in JSON or behind it."""
    inputs, tail = [], b""
    for name, values in given_inputs(as_lists(rows), read_card(folder)).items():
        is_text = values.dtype == object
        tensor: Row = {"name": name, "datatype": "BYTES" if is_text else "FP64"}
        tensor["shape"] = [len(rows)]
        if binary:
            texts = [str(value).encode() for value in values]
            content = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
            content = content if is_text else values.tobytes()
            tensor["parameters"] = {"binary_data_size": len(content)}
            tail += content
        else:
            tensor["data"] = [None if v != v or v == "" else v for v in values.tolist()]
        inputs.append(tensor)
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    url = "/v2/models/bag/infer"
    said = _served(folder)[0].post(url, content=head + tail, headers=headers)
    assert said.status_code == 200, said.text
    found = {each["name"]: each["data"] for each in said.json()["outputs"]}
    return np.reshape(found["probabilities"], (len(rows), 2))


def by_grpc(folder: Path, rows: list[Row]) -> np.ndarray:
    asked = MESSAGES["ModelInferRequest"](model_name="bag")
    for name, values in given_inputs(as_lists(rows), read_card(folder)).items():
        kind = "BYTES" if values.dtype == object else "FP64"
        tensor = asked.inputs.add(name=name, datatype=kind, shape=[len(rows)])
        if kind == "BYTES":
            tensor.contents.bytes_contents.extend(str(value).encode() for value in values)
        else:
            tensor.contents.fp64_contents.extend(values)
    context = Context()
    call = GrpcInference(_served(folder)[1], None).call
    said = asyncio.run(call("ModelInfer", asked.SerializeToString(), context))
    assert context.told is None
    found = {each.name: each.contents.fp32_contents for each in said.outputs}
    return np.reshape(found["probabilities"], (len(rows), 2))


@given(rows=ROWS)
@settings(max_examples=15, deadline=None)
def test_every_door_answers_alike_and_notes_the_same(
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
) -> None:
    http, _, predictor = _served(folder)
    wanted = Bag.load(str(folder)).predict_proba(as_frame(rows))

    def posted(content: bytes, kind: str) -> list[Row]:
        said = http.post("/predict", content=content, headers={"Content-Type": kind})
        assert said.status_code == 200, said.text
        return said.json()["predictions"]  # type: ignore[no-any-return]

    told = posted(as_json(rows), "application/json")
    assert posted(as_form(rows), "application/json") == told
    assert posted(as_csv(rows), "text/csv") == told
    answers = {
        "json": [[*each["probabilities"].values()] for each in told],
        "protocol": by_protocol(folder, rows, binary=False),
        "binary": by_protocol(folder, rows, binary=True),
        "grpc": by_grpc(folder, rows),
    }
    for name, table in {
        "bulk csv": read_csv(io.BytesIO(as_csv(rows)), "a.csv"),
        "bulk parquet": as_table(rows),
    }.items():
        answers[name] = predictor(table)["probabilities"].to_pylist()
    for door, found in answers.items():
        np.testing.assert_allclose(found, wanted, atol=1e-6, err_msg=door)
    file = tmp_path_factory.mktemp("asked") / "rows.csv"
    file.write_bytes(as_csv(rows))
    for line, each in zip(lines(folder, [file]), told, strict=True):
        assert f": {each['label']}  " in line
        assert line.partition(" nats")[2] == "".join(f"; {note}" for note in each["notes"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("age", value) for value in ("NA", "old", True, "inf", "1,5")),
        *(("active", value) for value in (2, 0.5, -1, "yes", "2")),
        *(("joined", value) for value in (2020, True, 1577836800.5, "2020", "soon")),
    ],
)
def test_what_is_no_value_of_a_column_is_refused_by_every_door(
    folder: Path,
    name: str,
    value: Any,
) -> None:
    good = {"age": 1, "city": "Ulm", "joined": "2020-01-05", "active": True, "total": 2.5}
    card, http, told = read_card(folder), _served(folder)[0], f"{name}: expected a column of kind"
    for rows in ([good | {name: value}], [good, good | {name: value}]):
        for kind, content in (
            ("application/json", as_json(rows)),
            ("application/json", as_form(rows)),
            ("text/csv", as_csv(rows)),
        ):
            said = http.post("/predict", content=content, headers={"Content-Type": kind})
            assert (said.status_code, told in said.text) == (422, True), said.text
        frame = pd.DataFrame(as_lists(rows), dtype=object)
        for x in (rows, as_lists(rows), frame, frame.convert_dtypes()):
            with pytest.raises(DataError, match=told):
                given_inputs(x, card)


@given(
    kind=st.sampled_from(["number", "boolean", "date", "category"]),
    values=st.lists(
        st.none()
        | st.booleans()
        | st.integers(-(2**66), 2**66)
        | st.floats()
        | _TEXT
        | st.sampled_from(["1", "0", "2020-01-05", "true"]),
        min_size=1,
        max_size=4,
    ),
)
def test_a_value_means_the_same_whatever_is_beside_it(kind: Kind, values: list[Any]) -> None:
    def read(own: list[Any]) -> list[Any] | None:
        try:
            return raw_column(own, kind, "x").tolist()
        except DataError:
            return None

    each = [read([value]) for value in values]
    wanted = None if None in each else [value for one in each if one for value in one]
    found = read(values)
    assert (found is None) == (wanted is None)
    for ours, its in zip(found or [], wanted or [], strict=True):
        assert ours == its or (ours != ours and its != its)


def test_an_array_is_of_numbers_alone(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^x: expected a frame, .* as city is a category, got a"):
        Bag.load(str(folder)).predict(np.zeros((2, 5)))
    own = {
        name: column for name, column in columns_of(people()).items() if name in ("age", "total")
    }
    card = read_card(folder).model_copy(update={"inputs": inputs_of(own)})
    for x in (np.array([[1, 2.5]]), [[1, 2.5]], [{"total": 2.5, "age": 1}]):
        raw = given_inputs(x, card)
        assert [raw["age"].tolist(), raw["total"].tolist()] == [[1.0], [2.5]]
    assert np.isnan(given_inputs([[None, 2.5]], card)["age"]).all()
    for x, told in ((np.zeros((2, 3)), "expected 2 columns, got shape"), ([["a", 1]], "'a'")):
        with pytest.raises(DataError, match=f"^x: .*{told}"):
            given_inputs(x, card)


def test_what_no_training_example_lacked_is_told(folder: Path) -> None:
    row = {"age": None, "city": "", "joined": None, "active": None, "total": None}
    for content, kind in ((as_json([row]), "application/json"), (as_csv([row]), "text/csv")):
        said = _served(folder)[0].post("/predict", content=content, headers={"Content-Type": kind})
        (one,) = said.json()["predictions"]
        lacked = ["joined", "active", "total"]  # as some of age and city were
        assert one["notes"] == [f"{name}: no training example lacked it" for name in lacked]
    late = row | {"joined": "2030-01-01", "active": True, "total": 2.5}
    said = _served(folder)[0].post(
        "/predict", content=as_json([late]), headers={"Content-Type": "application/json"}
    )
    assert said.json()["predictions"][0]["notes"] == [
        "joined: some numbers are outside of the training part's, 2020-01-01 to 2020-02-29"
    ]


def test_who_asks_here_is_told_nothing_of_curl(folder: Path, tmp_path: Path) -> None:
    for content in ("", "age,city,joined,active,total\n"):
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(DataError, match=r"a\.csv: CSV: expected a line .* at most one line$"):
            list(lines(folder, [tmp_path / "a.csv"]))
