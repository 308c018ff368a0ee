"""A bag of tables takes raw columns: in Python, in ONNX, as JSON, as CSV and by the protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from inprocess import client

from bend_ray.data.columns import Column, encode, raw_column
from bend_ray.ensemble.votes import SoftVote
from bend_ray.errors import DataError
from bend_ray.export.card import Card, Input, read_card
from bend_ray.export.folder import publish_bag
from bend_ray.networks.architectures import Mlp
from bend_ray.serve.bag import Bag
from bend_ray.serve.bulk import predict
from bend_ray.serve.listening import Listening, welcome
from bend_ray.serve.pictures import lines

KINDS = {
    "age": "number",
    "city": "category",
    "joined": "date",
    "active": "boolean",
    "total": "number",
}


def people(rows: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": rng.normal(40, 10, rows),
            "city": rng.choice(["Ulm", "Bonn", "Köln"], rows),
            "joined": pd.date_range("2020-01-01", periods=rows),
            "active": rng.random(rows) > 0.5,
            "total": rng.lognormal(3, 3, rows),
        }
    )
    frame.loc[::7, "age"] = np.nan
    frame.loc[::9, "city"] = None
    return frame


def columns_of(frame: pd.DataFrame) -> dict[str, Column]:
    columns = {}
    for name, kind in KINDS.items():
        column = Column.fitted(kind, raw_column(frame[name], kind, name))  # type: ignore[arg-type]
        assert column is not None
        columns[name] = column
    return columns


def inputs_of(columns: dict[str, Column]) -> dict[str, Input]:
    return {
        name: Input(shape=(), dtype="string", column=column)
        if column.kind == "category"
        else Input(
            shape=(),
            dtype="float64",
            low=column.knots[0],
            high=column.knots[-1],
            column=column,
        )
        for name, column in columns.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("tables"))


def write_people(path: Path, names: Sequence[str] = tuple(KINDS)) -> Path:
    """A bag of three random networks over what people's columns become, called by ``names``."""
    inputs = dict(zip(names, inputs_of(columns_of(people())).values(), strict=True))
    card = Card(
        model_version="tables",
        created="2026-11-30T00:00:00+00:00",
        bend_ray="0",
        architecture=Mlp(hidden=(6,)),
        inputs=inputs,
        class_names=("no", "yes"),
        vote=SoftVote(),
        members=(0, 1, 2),
        weights=(0.25, 0.25, 0.5),
    )
    assert card.input_shape == (2 + 4 + 1 + 1 + 1,)
    torch.manual_seed(0)
    states = [card.architecture.build(card.input_shape, 2).state_dict() for _ in range(3)]
    publish_bag(path, card, {n: torch.stack([s[n] for s in states]) for n in states[0]})
    return path


def expected(folder: Path, frame: pd.DataFrame) -> np.ndarray:
    """What the members say of encoded rows, in torch."""
    from safetensors.torch import load_file

    bag = Bag.load(folder)
    raw = {n: raw_column(frame[n], k, n) for n, k in KINDS.items()}  # type: ignore[arg-type]
    x = torch.from_numpy(encode(bag.card.columns, raw))
    members, weights = load_file(folder / "members.safetensors"), bag.card.weights
    said = 0.0
    for k, weight in enumerate(weights):
        network = bag.card.architecture.build(bag.card.input_shape, 2)
        network.load_state_dict({n: t[k] for n, t in members.items()})
        said = said + weight * network(x).softmax(dim=1)
    return said.detach().numpy()


def strange() -> pd.DataFrame:
    """People of another kind: a new city, numbers beyond all that were seen, nothing at all."""
    frame = people(4)
    frame["city"] = ["Rome", None, "Ulm", ""]
    frame["age"] = [np.nan, 1e300, -1e300, 40.0]
    frame["active"] = frame["active"].astype(object).where([True, False, True, True], None)
    return frame


@pytest.mark.parametrize("frame", [people(), strange()], ids=["known", "strange"])
def test_the_program_makes_of_raw_columns_what_training_did(
    folder: Path, frame: pd.DataFrame
) -> None:
    bag = Bag.load(folder)
    assert bag.way is not None
    assert bag.predict_proba(frame) == pytest.approx(expected(folder, frame), abs=1e-5)
    # Columns are known by their names.
    turned = frame[frame.columns[::-1]].assign(more=1)
    assert bag.predict_proba(turned) == pytest.approx(bag.predict_proba(frame))
    assert set(bag.predict(frame)) <= {"no", "yes"}


def test_json_csv_and_the_protocol_answer_alike(folder: Path) -> None:
    frame = strange()
    wanted = expected(folder, frame)
    plain = frame.assign(joined=frame["joined"].dt.strftime("%Y-%m-%d"))
    rows = json.loads(plain.to_json(orient="records"))
    http = client(folder)
    said = http.post("/predict", json={"instances": rows}).json()["predictions"]
    assert [each["probabilities"]["yes"] for each in said] == pytest.approx(wanted[:, 1], abs=1e-5)
    csv = plain.to_csv(index=False)
    kind = {"Content-Type": "text/csv"}
    assert http.post("/predict", content=csv, headers=kind).json()["predictions"] == said
    told = http.get("/v2/models/bag").json()["inputs"]
    types = {each["name"]: (each["datatype"], each["shape"]) for each in told}
    assert types["city"] == ("BYTES", [-1])
    assert types["age"] == types["joined"] == ("FP64", [-1])
    raw = {n: raw_column(frame[n], k, n) for n, k in KINDS.items()}  # type: ignore[arg-type]
    body = {
        "inputs": [
            {
                "name": name,
                "datatype": types[name][0],
                "shape": [4],
                "data": [None if v != v else v for v in values.tolist()],
            }
            for name, values in raw.items()
        ]
    }
    outputs = http.post("/v2/models/bag/infer", json=body).json()["outputs"]
    probabilities = next(each for each in outputs if each["name"] == "probabilities")
    assert np.reshape(probabilities["data"], (4, 2)) == pytest.approx(wanted, abs=1e-5)


def test_texts_come_in_binary_too(folder: Path) -> None:
    city = b"".join(len(t).to_bytes(4, "little") + t for t in ("Köln".encode(), b""))
    inputs, tail = [], b""
    for name, kind in KINDS.items():
        numbers = np.array([1.0 if kind == "boolean" else 40.0, np.nan])
        content = city if kind == "category" else numbers.tobytes()
        datatype = "BYTES" if kind == "category" else "FP64"
        size = {"binary_data_size": len(content)}
        inputs.append({"name": name, "datatype": datatype, "shape": [2], "parameters": size})
        tail += content
    head = json.dumps({"inputs": inputs}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    answer = client(folder).post("/v2/models/bag/infer", content=head + tail, headers=length)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"age": "old"}, "age: expected a column of kind number"),
        ({"joined": "soon"}, "joined: expected a column of kind date"),
        ({"active": "perhaps"}, "active: expected a column of kind boolean"),
    ],
)
def test_what_a_column_is_not_is_told(folder: Path, change: dict[str, object], told: str) -> None:
    frame = people(2).assign(**change)
    with pytest.raises(DataError, match=told):
        Bag.load(folder).predict(frame)
    plain = frame.assign(joined=frame["joined"].astype(str))
    rows = json.loads(plain.to_json(orient="records"))
    answer = client(folder).post("/predict", json={"instances": rows})
    assert (answer.status_code, told in answer.text) == (422, True)


def test_a_column_that_is_absent_is_told(folder: Path) -> None:
    frame = people(2).drop(columns="age")
    with pytest.raises(
        DataError, match=r"^x: expected age, city, joined, active, total; missing: age$"
    ):
        Bag.load(folder).predict(frame)
    answer = client(folder).post(
        "/predict", content=frame.to_csv(index=False), headers={"Content-Type": "text/csv"}
    )
    assert (answer.status_code, "missing: age" in answer.text) == (422, True)


def test_a_row_and_a_line_may_have_columns_of_their_own(folder: Path) -> None:
    http, frame = client(folder), people(3).assign(joined="2020-01-05", note="mine")
    rows = json.loads(frame.to_json(orient="records"))
    as_csv = {"content": frame.to_csv(index=False), "headers": {"Content-Type": "text/csv"}}
    answers = [http.post("/predict", **how) for how in ({"json": {"instances": rows}}, as_csv)]
    first, second = (each.json()["predictions"] for each in answers)
    assert first == second
    del rows[1]["city"], rows[1]["total"]
    lacking = http.post("/predict", json={"instances": rows}).json()["error"]
    assert lacking.startswith("instances[1]: ")
    assert lacking.endswith("; missing: city, total")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "--data-binary @FILE"),
        ("age,city,joined,active,total1,Ulm,2020-01-05,true,3", "--data-binary @FILE"),
        ("age;city;joined;active;total\n1;Ulm;2020-01-05;true;3", "is its delimiter ';'?"),
        ("1,Ulm,2020-01-05,true,3\n2,Ulm,2020-01-05,true,3\n", "expected a first line of names"),
        ("age,age,city,joined,active,total\n1,1,Ulm,2020-01-05,true,3", "one column age, got 2"),
    ],
)
def test_what_is_no_csv_of_the_bag_is_told(folder: Path, content: str, told: str) -> None:
    headers = {"Content-Type": "text/csv"}
    answer = client(folder).post("/predict", content=content, headers=headers)
    assert (answer.status_code, told in answer.json()["error"]) == (422, True), answer.text


def test_a_date_may_have_an_offset_and_an_empty_text_is_missing(folder: Path) -> None:
    dates = ["2020-01-05T10:00:00Z", "2020-01-05 12:00:00+02:00", "2020-01-05T10:00", "", None]
    raw = raw_column(dates, "date", "joined")
    assert raw[:3].tolist() == [1578218400.0] * 3
    assert np.isnan(raw[3:]).all()
    rows = [{"age": "", "city": "", "joined": d, "active": "", "total": 3.0} for d in dates]
    said = client(folder).post("/predict", json={"instances": rows}).json()["predictions"]
    assert said[0]["probabilities"] == said[1]["probabilities"] == said[2]["probabilities"]
    assert said[3]["probabilities"] == said[4]["probabilities"]


def test_the_readme_and_the_welcome_speak_of_columns_as_people_do(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert "- `city`: string of shape (batch), in training Bonn, Köln, Ulm.\n" in text
    assert "since 1970, in training from 2020-01-01 to 2020-02-29.\n" in text
    assert "- `active`: float64 of shape (batch), 1 for true and 0 for false.\n" in text
    told = welcome(Listening("127.0.0.1", 8000), "", read_card(folder), 1.0)
    body = json.loads(told.split("-d '")[1].split("' http")[0])
    (row,) = body["instances"]
    assert (type(row["active"]), row["joined"][:3]) == (bool, "202")
    assert client(folder).post("/predict", json=body).status_code == 200


def test_ask_and_predict_take_csv(folder: Path, tmp_path: Path) -> None:
    frame, bag = people(3), Bag.load(folder)
    frame.to_csv(tmp_path / "people.csv", index=False)
    told = list(lines(folder, [tmp_path / "people.csv"]))
    expected = [f"people.csv row {n + 1}: {name}" for n, name in enumerate(bag.predict(frame))]
    assert [line.split("/")[-1].split("  ")[0] for line in told] == expected
    (tmp_path / "one.png").write_bytes(b"")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"expected Parquet or \.csv files, .* got images files"):
        predict(str(tmp_path / "one.png"), str(tmp_path / "out"), str(folder), "", None, False)
    frame.drop(columns="age").to_csv(tmp_path / "lacks.csv", index=False)
    with pytest.raises(DataError, match="missing: age"):
        predict(str(tmp_path / "lacks.csv"), str(tmp_path / "out"), str(folder), "", None, False)
    for name, own in (("0", range(3)), ("1", ["01", "x", ""])):
        frame.assign(zip=own).to_parquet(tmp_path / f"of{name}.parquet")
    source = str(tmp_path / "of?.parquet")
    with pytest.raises(DataError, match="same columns, got: Unable to merge: Field zip"):
        predict(source, str(tmp_path / "out"), str(folder), "", None, False)
    assert not list((tmp_path / "out").iterdir())


def test_more_rows_than_a_request_may_have_name_the_option(folder: Path) -> None:
    frame = people(33)
    headers = {"Content-Type": "text/csv"}
    answer = client(folder).post("/predict", content=frame.to_csv(index=False), headers=headers)
    assert answer.status_code == 422
    assert "expected 1 to 32 examples, got 33; the server's option max_batch_size" in answer.text


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_whole_csv_files_are_answered(folder: Path, tmp_path: Path) -> None:
    frame = people(200).assign(id=[f"{n:03d}" for n in range(200)])
    # What a column looks like in one file says nothing of another, nor of what it means.
    frame[:100].to_csv(tmp_path / "0.csv", index=False)
    frame[100:].assign(city="NA").to_csv(tmp_path / "1.csv", index=False)
    source, output = str(tmp_path / "?.csv"), str(tmp_path / "out")
    assert predict(source, output, str(folder), "image", None, False) == 200
    said = pd.read_parquet(output).sort_values("id")
    assert said["id"].tolist() == frame["id"].tolist()
    found = np.stack(said["probabilities"].to_list())
    frame.loc[100:, "city"] = "NA"
    np.testing.assert_allclose(found, Bag.load(folder).predict_proba(frame), atol=1e-6)
    assert "age" not in said
    for content, told in (
        (frame[:0].to_csv(index=False), "expected rows, got none"),
        (frame[:2].to_csv(index=False) + "1,2\n", "CSV parse error: .*Expected 6 columns, got 2"),
        (frame[:2].assign(prediction=1).to_csv(index=False), "different names, .* got prediction"),
    ):
        (tmp_path / "other.csv").write_text(content)
        with pytest.raises(DataError, match=rf"^[^\n]*{told}[^\n]*$"):
            predict(
                str(tmp_path / "other.csv"), f"{output}{told[:9]}", str(folder), "", None, False
            )


def test_the_onnx_program_stands_alone(folder: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "bag.onnx"))
    frame = people(5)
    raw = {n: raw_column(frame[n], k, n) for n, k in KINDS.items()}  # type: ignore[arg-type]
    given = {n: v.astype(object) if v.dtype.kind == "U" else v for n, v in raw.items()}
    (said,) = session.run(["probabilities"], given)
    assert said == pytest.approx(expected(folder, frame), abs=1e-5)


def test_a_column_may_be_called_as_any_value_within_the_program(
    folder: Path, tmp_path: Path
) -> None:
    graph = onnx.load(folder / "bag.onnx").graph
    within = {name for node in graph.node for name in node.output}
    taken = sorted(within - {output.name for output in graph.output} - {"logits"})
    assert "inputs.normalised" in taken
    for start in range(0, len(taken) - 4, 5):
        Bag.load(str(write_people(tmp_path / f"{start}", taken[start : start + 5])))


def test_the_page_has_what_its_form_is_made_of(folder: Path) -> None:
    http = client(folder)
    assert 'id="form"' in http.get("/").text
    told = http.get("/about").json()["inputs"]
    assert told["city"]["column"]["levels"] == ["Bonn", "Köln", "Ulm"]
    # Fields give texts, and nothing where they are left empty.
    row = {"age": "41.5", "city": "Ulm", "joined": "2020-01-05", "active": "true", "total": None}
    said = http.post("/predict", json={"instances": [row]}).json()["predictions"][0]
    frame = people(1).assign(age=41.5, city="Ulm", joined="2020-01-05", active=True, total=np.nan)
    assert said["probabilities"]["yes"] == pytest.approx(expected(folder, frame)[0, 1], abs=1e-5)
    assert said["notes"] == ["total: no training example lacked it"]
    asked = "/predict?seen=true"
    seen = http.post(asked, json={"instances": [row | {"city": "Rome", "age": 900}]}).json()
    assert seen["predictions"][0]["seen"]["total"] is None
    assert "city: no training example had Rome" in seen["predictions"][0]["notes"]
