"""A bag of numbers: mean, deviation and intervals in Python, in ONNX, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import io
import json
import re
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from inprocess import client
from safetensors.torch import load_file
from starlette.testclient import TestClient
from test_columns import KINDS, columns_of, inputs_of, people, strange

from bend_ray.data.columns import encode, raw_column
from bend_ray.ensemble.conformal import IntervalCalibration
from bend_ray.ensemble.votes import MajorityVote, SoftVote
from bend_ray.errors import BendError, ConfigError, DataError
from bend_ray.export.card import Card, read_card
from bend_ray.export.folder import publish_bag
from bend_ray.networks.architectures import Mlp
from bend_ray.serve.bag import Bag, Cascade
from bend_ray.serve.settings import ServeSettings
from bend_ray.tasks import Regression

INFER = "/v2/models/bag/infer"
JSON = "application/json"
WEIGHTS, SCALE = (0.25, 0.25, 0.5), 1.7


def card_of(targets: tuple[str, ...], variance: str, **more: Any) -> Card:
    columns = columns_of(people())
    count = len(targets)
    task = Regression(
        variance=variance,  # type: ignore[arg-type]
        mean=tuple(100.0 + 7 * t for t in range(count)),
        std=tuple(3.0 + t for t in range(count)),
    )
    given: dict[str, Any] = {
        "model_version": "numbers",
        "created": "2026-11-30T00:00:00+00:00",
        "bend_ray": "0",
        "architecture": Mlp(hidden=(6,)),
        "inputs": inputs_of(columns),
        "task": task,
        "class_names": targets,
        "vote": SoftVote(),
        "members": (0, 1, 2),
        "weights": WEIGHTS,
        "temperature": SCALE,
    }
    return Card(**given | more)


def calibration(targets: int, held: int = 99) -> IntervalCalibration:
    rng = np.random.default_rng(3)
    answers = np.concatenate([rng.normal(100, 3, (held, targets)), np.ones((held, targets))], 1)
    return IntervalCalibration.of(answers, rng.normal(100, 4, (held, targets)))


def write(folder: Path, card: Card) -> Path:
    torch.manual_seed(0)
    build = [card.architecture.build(card.input_shape, card.num_outputs) for _ in range(3)]
    states = [each.state_dict() for each in build]
    folder.mkdir(parents=True)
    publish_bag(folder, card, {n: torch.stack([s[n] for s in states]) for n in states[0]})
    return folder


BAGS = {"one": (("price",), "head"), "two": (("price", "rent"), "head"), "flat": (("p",), "fitted")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("numbers")
    return {
        name: write(root / name, card_of(*given, calibration=calibration(len(given[0]))))
        for name, given in BAGS.items()
    }


def by_hand(folder: Path, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation ``(N, T)`` of the members' mixture, from their outputs in torch."""
    card, members = read_card(folder), load_file(folder / "members.safetensors")
    raw = {n: raw_column(frame[n], k, n) for n, k in KINDS.items()}  # type: ignore[arg-type]
    x, said = torch.from_numpy(encode(card.columns, raw)), []
    for k in range(3):
        network = card.architecture.build(card.input_shape, card.num_outputs)
        network.load_state_dict({n: t[k] for n, t in members.items()})
        said.append(network(x).detach().double().numpy())
    task = card.task
    assert task.kind == "regression"
    if task.variance == "head":
        halves = [np.split(each, 2, axis=1) for each in said]
        means, variances = [m for m, _ in halves], [np.exp(v) for _, v in halves]
    else:
        means, variances = said, [np.ones_like(s) for s in said]
    mean = np.einsum("k,kbt->bt", WEIGHTS, means)
    second = np.einsum("k,kbt->bt", WEIGHTS, np.array(variances) + np.array(means) ** 2)
    variance = SCALE * (second - mean**2)
    return mean * task.std + np.array(task.mean), np.sqrt(variance) * task.std


@pytest.mark.parametrize("frame", [people(), strange()], ids=["known", "strange"])
@pytest.mark.parametrize("name", BAGS)
def test_the_bag_says_mean_and_deviation_of_the_mixture(
    folders: dict[str, Path], name: str, frame: pd.DataFrame
) -> None:
    means, stds = by_hand(folders[name], frame)
    if len(BAGS[name][0]) == 1:
        means, stds = means[:, 0], stds[:, 0]
    for groups in (1, 3):
        bag = Bag.load(folders[name], ServeSettings(groups=groups))
        said, std = bag.predict(frame, return_std=True)
        assert said == pytest.approx(means, rel=1e-5)
        assert std == pytest.approx(stds, rel=1e-5)
        assert bag.predict(frame[frame.columns[::-1]]) == pytest.approx(means, rel=1e-5)
    whole = bag.answer(raw_inputs(frame, bag.card), [stop()] * len(frame))
    parts = bag.answer_in_groups(raw_inputs(frame, bag.card), [stop()] * len(frame))
    assert whole.keys() == parts.keys()
    for key, values in whole.items():
        assert values == pytest.approx(parts[key], rel=1e-6), key


def stop() -> Any:
    from bend_ray.serve.settings import Stop

    return Stop()


def raw_inputs(frame: pd.DataFrame, card: Card) -> dict[str, np.ndarray]:
    from bend_ray.serve.queries import given_inputs

    return given_inputs(frame, card)


def test_uncertainty_is_that_of_normals(folders: dict[str, Path]) -> None:
    bag, frame = Bag.load(folders["two"]), people(9)
    said = bag.answer(raw_inputs(frame, bag.card), [stop()] * 9)
    uncertainty = bag.uncertainty(frame)
    normal = 0.5 * np.log(2 * np.pi * np.e * said["std"] ** 2).mean(axis=1)
    assert uncertainty.entropy == pytest.approx(normal)
    own = np.einsum("k,bkt->b", WEIGHTS, np.log(said["member_stds"])) / 2
    spread = np.log(said["std"] / np.sqrt(SCALE)).mean(axis=1) - own
    assert uncertainty.mutual_information == pytest.approx(spread)
    assert (uncertainty.mutual_information > 0).all()
    assert uncertainty.votes is None


def test_the_readme_runs_without_us(folders: dict[str, Path], monkeypatch: Any) -> None:
    for name, folder in folders.items():
        monkeypatch.chdir(folder)
        card, frame = read_card(folder), strange()
        raw = raw_inputs(frame, card)
        blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        assert len(blocks) == 2
        means, stds = by_hand(folder, frame)
        width = card.input_shape[0]
        for code in blocks:
            exec(code, {"build": lambda: Mlp(hidden=(6,)).build((width,), card.num_outputs)})  # noqa: B023
            own = re.sub(r"inputs = \{  # yours.*?\n\}", "inputs = own", code, flags=re.DOTALL)
            assert own != code
            network = Mlp(hidden=(6,)).build((width,), card.num_outputs)
            names: dict[str, Any] = {"own": raw, "build": lambda network=network: network}
            exec(own, names)
            assert np.asarray(names["mean"]) == pytest.approx(means, rel=1e-5), name
            assert np.asarray(names["std"]) == pytest.approx(stds, rel=1e-5), name


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    plain = frame.assign(joined=frame["joined"].dt.strftime("%Y-%m-%d"))
    return json.loads(plain.to_json(orient="records"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", BAGS)
def test_json_csv_and_the_protocol_answer_as_python_does(
    folders: dict[str, Path], name: str
) -> None:
    http, bag, frame = client(folders[name]), Bag.load(folders[name]), strange()
    targets = bag.card.class_names
    means, stds = (np.reshape(each, (4, -1)) for each in bag.predict(frame, return_std=True))
    ends = np.reshape(bag.predict_interval(frame, 0.8, "residual"), (4, -1, 2))
    asked = {"instances": records(frame)}
    said = http.post("/predict?coverage=0.8&sets=residual", json=asked).json()["predictions"]
    for row, one in enumerate(said):
        for place, target in enumerate(targets):
            assert one["mean"][target] == pytest.approx(means[row, place])
            assert one["std"][target] == pytest.approx(stds[row, place])
            assert one["interval"][target] == pytest.approx(ends[row, place])
        assert one["members_used"] == one["members"] == 3
    buffer = io.StringIO()
    frame.assign(joined=frame["joined"].dt.strftime("%Y-%m-%d")).to_csv(buffer, index=False)
    csv = http.post(
        "/predict?coverage=0.8&sets=residual",
        content=buffer.getvalue(),
        headers={"Content-Type": "text/csv"},
    )
    assert csv.json()["predictions"] == said
    told = {each["name"]: each for each in http.get("/v2/models/bag").json()["outputs"]}
    assert told["mean"] == {"name": "mean", "datatype": "FP64", "shape": [-1, len(targets)]}
    outputs = infer(http, bag, frame, {"coverage": 0.8, "sets": "residual"})
    assert outputs["mean"] == pytest.approx(means)
    assert outputs["std"] == pytest.approx(stds)
    assert outputs["interval"] == pytest.approx(bag.predict_interval(frame, 0.8, "residual"))
    assert "interval" not in infer(http, bag, frame, {})


def body_of(bag: Bag, frame: pd.DataFrame, **more: Any) -> dict[str, Any]:
    inputs = [
        {
            "name": name,
            "datatype": "BYTES" if values.dtype == object else "FP64",
            "shape": [len(values)],
            "data": [None if v != v else v for v in values.tolist()],
        }
        for name, values in raw_inputs(frame, bag.card).items()
    ]
    return {"inputs": inputs, **more}


def infer(
    http: TestClient, bag: Bag, frame: pd.DataFrame, parameters: dict[str, Any]
) -> dict[str, Any]:
    done = http.post(INFER, json=body_of(bag, frame, parameters=parameters))
    assert done.status_code == 200, done.text
    return {
        each["name"]: np.reshape(each["data"], each["shape"]) for each in done.json()["outputs"]
    }


class Context:
    """Of a gRPC call, as far as we look at it."""

    told: tuple[Any, str] | None = None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_code(self, code: Any) -> None:
        self.told = (code, "")

    def set_details(self, details: str) -> None:
        assert self.told is not None
        self.told = (self.told[0], details)


def call(folder: Path, bag: Bag, frame: pd.DataFrame, parameters: dict[str, Any]) -> Any:
    """What gRPC answers, or the code and the words of its refusal."""
    from bend_ray.serve.answering import Answering
    from bend_ray.serve.meters import Meters, Prometheus
    from bend_ray.serve.oip_grpc import MESSAGES, GrpcInference

    service = Answering(ServeSettings(), Meters(Prometheus()))
    service.go_live(bag)
    asked = MESSAGES["ModelInferRequest"](model_name="bag")
    for name, values in raw_inputs(frame, bag.card).items():
        kind = "BYTES" if values.dtype == object else "FP64"
        tensor = asked.inputs.add(name=name, datatype=kind, shape=[len(values)])
        if kind == "BYTES":
            tensor.contents.bytes_contents.extend(text.encode() for text in values)
        else:
            tensor.contents.fp64_contents.extend(values)
    for name, value in parameters.items():
        kind = {float: "double_param", str: "string_param", int: "int64_param"}[type(value)]
        setattr(asked.parameters[name], kind, value)
    context = Context()
    said = asyncio.run(
        GrpcInference(service, None).call("ModelInfer", asked.SerializeToString(), context)
    )
    return context.told or {
        each.name: np.reshape(
            [value for _, values in each.contents.ListFields() for value in values], each.shape
        )
        for each in said.outputs
    }


@pytest.mark.parametrize("coverage", [0.8, "0.8"])
def test_grpc_answers_as_python_does(folders: dict[str, Path], coverage: Any) -> None:
    bag, frame = Bag.load(folders["two"]), people(5)
    said = call(folders["two"], bag, frame, {"coverage": coverage})
    mean, std = bag.predict(frame, return_std=True)
    assert said["mean"] == pytest.approx(mean)
    assert said["std"] == pytest.approx(std)
    assert said["interval"] == pytest.approx(bag.predict_interval(frame, 0.8))


def test_an_interval_is_what_a_closed_form_says() -> None:
    # Nine errors of 0.1, ..., 0.9: nine of ten is the ninth.
    answers = np.stack([np.zeros(9), np.full(9, 0.04)], axis=1)
    ours = IntervalCalibration.of(answers, np.linspace(0.1, 0.9, 9)[:, None])
    assert ours.sets(np.array([[5.0, 1.0]]), 0.9, "residual") == pytest.approx(
        np.array([[4.1, 5.9]])
    )
    z = NormalDist().inv_cdf(0.95)
    wide = z * 1.0 + 0.9 - z * 0.2
    assert ours.sets(np.array([[5.0, 1.0]]), 0.9) == pytest.approx(
        np.array([[5.0 - wide, 5.0 + wide]])
    )
    assert np.isinf(ours.sets(np.array([[5.0, 1.0]]), 0.95)).all()
    with pytest.raises(ConfigError, match=r"coverage: expected at most 0\.9000, which is what 9"):
        ours.check(0.95, None)


def test_intervals_keep_their_promise_whatever_the_deviations_are_worth() -> None:
    for factor in (0.3, 1.0, 4.0):  # too sure, right, too modest
        for kind in IntervalCalibration.kinds:
            held = []
            for seed in range(150):
                rng = np.random.default_rng(seed)
                std = rng.uniform(0.5, 2.0, 120)
                targets = rng.normal(0, std)[:, None]
                answers = np.stack([np.zeros(120), (factor * std) ** 2], axis=1)
                ours = IntervalCalibration.of(answers[:60], targets[:60])
                ends = ours.sets(answers[60:], 0.8, kind)
                held.append(ours.scored(ends, targets[60:])["coverage"])
            assert np.mean(held) > 0.8 - 4 * np.std(held) / np.sqrt(len(held))


ROW = {"age": 41.5, "city": "Ulm", "joined": "2020-01-05", "active": True, "total": 3.0}


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("refuse_below=0.9", "refuse_below: expected of coverage, sets, as the bag is of a reg"),
        ("stop_when_decided=true", "stop_when_decided: expected of coverage, sets"),
        ("confidence=0.5", "confidence: expected of coverage, sets"),
        ("member_labels=true", "member_labels: expected of coverage, sets"),
        ("coverage=0.9&sets=thr", "sets: expected one of cqr, residual, got thr"),
        ("coverage=0.995", "coverage: expected at most 0.9900, which is what 99 examples"),
        ("coverage=2", "coverage: Input should be less than 1"),
        ("coverage=nan", "coverage: Input should be"),
        ("sets=best", "sets: expected one of cqr, residual, got best"),
        ("sets=cqr", "sets: expected a coverage beside it"),
        ("covrage=0.9", "covrage: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_asked_of_numbers_is_told_at_every_door(
    folders: dict[str, Path], query: str, told: str
) -> None:
    http, bag = client(folders["one"]), Bag.load(folders["one"])
    asked = http.post(f"/predict?{query}", json={"instances": [ROW]})
    assert (asked.status_code, told in asked.json()["error"]) == (422, True), asked.text
    # The names there are answer a name that there is not, not a value.
    assert ("expected of stop_when_decided" in asked.text) == query.startswith("covrage")
    pairs = dict(pair.split("=") for pair in query.split("&"))
    texts = {"true": True}
    typed: dict[str, Any] = {}
    for name, text in pairs.items():
        try:
            typed[name] = float(text)
        except ValueError:
            typed[name] = texts.get(text, text)
    if "member_labels" in typed or typed.get("coverage") != typed.get("coverage"):
        return
    frame = people(1)
    done = http.post(INFER, json=body_of(bag, frame, parameters=typed))
    assert 400 <= done.status_code < 500
    assert told in done.json()["error"]
    if True not in typed.values():
        code, words = call(folders["one"], bag, frame, typed)
        assert code.name == "INVALID_ARGUMENT"
        assert told in words
        assert "\n" not in words


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({k: v for k, v in ROW.items() if k != "age"}, "; missing: age"),
        (ROW | {"age": "old"}, "age: expected a column of kind number"),
        (ROW | {"age": [1, 2]}, "age: expected a column of kind number"),
        (ROW | {"age": 1e999}, "expected JSON"),
        (ROW | {"age": 10**400}, "age: expected a column of kind number"),
        (ROW | {"joined": 10**40}, "joined: expected a column of kind date"),
        (ROW | {"city": {"a": 1}}, "city: expected a column of kind category"),
        (ROW | {"joined": "soon"}, "joined: expected a column of kind date"),
        ([1, 2, 3], "instances[0]: expected an object"),
        (7, "instances[0]: expected an object"),
    ],
)
def test_rows_that_are_none_are_told(folders: dict[str, Path], row: Any, told: str) -> None:
    http = client(folders["two"])
    content = json.dumps({"instances": [row]})
    asked = http.post("/predict", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= asked.status_code < 500, asked.text
    assert told in asked.json()["error"], asked.text


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"instances": []}', JSON, 422),
        (json.dumps({"instances": [ROW] * 33}).encode(), JSON, 422),
        (b'{"instances": [{"age": NaN}]}', JSON, 400),
        (
            json.dumps({"instances": [ROW | {"city": "x" * 10**6}]}).encode(),
            "application/json",
            413,
        ),
        (b"", "text/csv", 422),
        (b"age,city\n1,Ulm\n", "text/csv", 422),
        (b"age,age,city,joined,active,total\n1,2,Ulm,2020-01-05,true,3\n", "text/csv", 422),
        (b"age,city,joined,active,total\n", "text/csv", 422),
        (b"age,city,joined,active,total\n1,Ulm\n", "text/csv", 422),
        (b"\xff\xfe,\x00\n", "text/csv", 422),
        (b"x", "image/png", 415),
    ],
)
def test_bodies_that_are_none_are_told(
    folders: dict[str, Path], content: bytes, kind: str, status: int
) -> None:
    asked = client(folders["one"]).post("/predict", content=content, headers={"Content-Type": kind})
    assert asked.status_code == status, asked.text
    assert "\n" not in asked.json()["error"]


def test_frames_that_are_no_tables_are_told_in_python(folders: dict[str, Path]) -> None:
    bag, frame = Bag.load(folders["one"]), people(3)
    twice = pd.concat([frame, frame[["age"]]], axis=1)
    mixed = frame.assign(city=["Ulm", 3, {"a": 1}])
    for wrong in (twice, mixed, frame.assign(age=np.inf), np.ones((3, 2)), [[1], [2]], "age", 7):
        with pytest.raises(DataError, match=r"^[^\n]*expected[^\n]*$"):
            bag.predict(wrong)
    assert bag.predict(frame[:0]).shape == (0,)


def test_empty_values_are_missing_ones(folders: dict[str, Path]) -> None:
    bag, http = Bag.load(folders["one"]), client(folders["one"])
    row = dict.fromkeys(ROW)
    said = http.post("/predict", json={"instances": [row]}).json()["predictions"][0]
    frame = people(1).assign(age=np.nan, city=None, active=None, total=np.nan)
    frame["joined"] = pd.NaT
    assert said["mean"]["price"] == pytest.approx(bag.predict(frame)[0])


def test_a_bag_that_nothing_calibrated_promises_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "bag", card_of(("price",), "head"))
    bag = Bag.load(folder)
    with pytest.raises(ConfigError, match=r"examples kept back .* dataset\.num_calibration"):
        bag.predict_interval(people(1))
    asked = client(folder).post("/predict?coverage=0.9", json={"instances": [ROW]})
    assert (asked.status_code, "num_calibration" in asked.json()["error"]) == (422, True)
    code, words = call(folder, bag, people(1), {"coverage": 0.9})
    assert (code.name, "num_calibration" in words) == ("INVALID_ARGUMENT", True)


def test_what_is_of_classes_is_told_in_python(folders: dict[str, Path], folder: Path) -> None:
    bag = Bag.load(folders["one"])
    with pytest.raises(ConfigError, match="expected of a regression one of mean, std"):
        bag.predict_proba(people(1))
    with pytest.raises(ConfigError, match="use predict_interval"):
        bag.predict_set(people(1))
    with pytest.raises(DataError, match="expected a bag of classes"):
        Cascade(bag, bag, 0.9)
    with pytest.raises(ConfigError, match="stop_when_decided, confidence: expected none"):
        client(folders["one"], ServeSettings(stop_when_decided=True))
    images = np.zeros((1, 1, 8, 8), np.uint8)
    with pytest.raises(ConfigError, match="got std"):
        Bag.load(folder).predict(images, return_std=True)


@pytest.mark.parametrize(
    "change", [{"class_names": ("a", "b", "c")}, {"vote": MajorityVote()}, {"temperature": 0.0}]
)
def test_a_card_whose_parts_disagree_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, BendError)):
        write(tmp_path / "bag", card_of(("a", "b"), "head", **change))


def test_the_page_has_what_its_form_is_made_of(folders: dict[str, Path]) -> None:
    about = client(folders["two"]).get("/about").json()
    assert about["task"]["kind"] == "regression"
    assert about["class_names"] == ["price", "rent"]
    row = {"age": "41.5", "city": "Ulm", "joined": "2020-01-05", "active": "true", "total": None}
    asked = client(folders["two"]).post("/predict?seen=true", json={"instances": [row]})
    assert set(asked.json()["predictions"][0]["mean"]) == {"price", "rent"}


def test_the_configuration_names_types_as_triton_does(folders: dict[str, Path]) -> None:
    from google.protobuf import json_format

    from bend_ray.serve.oip_grpc import MESSAGES

    told = client(folders["one"]).get("/v2/models/bag/config").json()
    message = json_format.ParseDict(told, MESSAGES["ModelConfig"](), ignore_unknown_fields=True)
    kinds = {each.name: each.data_type for each in (*message.input, *message.output)}
    assert (kinds["city"], kinds["age"], kinds["mean"], kinds["members_used"]) == (13, 12, 12, 9)


def test_the_command_that_a_server_tells_works(folders: dict[str, Path]) -> None:
    from bend_ray.serve.listening import Listening, welcome

    told = welcome(Listening("127.0.0.1", 80), "", read_card(folders["two"]), 1.0)
    found = re.search(r"-d '(.*)' http", told)
    assert found is not None
    asked = client(folders["two"]).post("/predict", json=json.loads(found[1]))
    assert asked.status_code == 200, asked.text
