"""Calibration, what is out of distribution and shift, from a run to the bag that promises."""

import copy
import re

import numpy as np
import pytest
import torch
from inprocess import client
from starlette.testclient import TestClient
from tiny import TINY

import bend_ray as bend
from bend_ray.config.reading import load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.inputs import CALIBRATION, SEVERITIES, VALIDATION
from bend_ray.ensemble.conformal import SetCalibration
from bend_ray.ensemble.metrics import score
from bend_ray.errors import ConfigError, DataError
from bend_ray.export.student import _mixtures, distil
from bend_ray.populations.answers import Answers
from bend_ray.report.page import report
from bend_ray.report.runs import read_run
from bend_ray.serve.bag import Bag, Cascade
from bend_ray.serve.settings import ServeSettings

ASKED = (
    *(knob for knob in TINY if "rivals" not in knob and "temperature" not in knob),
    "evaluation.rivals=[{kind: originals_bag}, {kind: deep_ensemble}, {kind: trunk_averages}]",
    "dataset.num_calibration=100",
    "dataset.left_out=['3', '7']",
    "evaluation.ood=[{kind: left_out}, {kind: noise}]",
    "evaluation.shift=[gaussian_noise, rotate]",
)


@pytest.fixture(scope="module")
def config() -> PipelineConfig:
    return load_config(None, ASKED)


@pytest.fixture(scope="module")
def run(config: PipelineConfig, tmp_path_factory: pytest.TempPathFactory) -> bend.Run:
    return bend.run(config, store=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def bag(run: bend.Run) -> Bag:
    return run.bag()


def test_every_bag_is_told_of_everything(run: bend.Run) -> None:
    names = {"bag", "member", "originals_bag", "deep_ensemble", "trunk_averages"}
    assert set(run.evaluation.trust) >= names
    for trust in run.evaluation.trust.values():
        assert set(trust.sets) == {"thr", "aps", "raps"}
        assert set(trust.ood) == {"left_out", "noise"}
        assert {*trust.shift} == {"gaussian_noise", "rotate"}
        assert [*trust.shift["rotate"]] == [str(i + 1) for i in range(SEVERITIES)]


def test_calibrating_images_chose_nothing(run: bend.Run, config: PipelineConfig) -> None:
    question = run.graph.questions["samples"]
    asked = [Answers(question.about(part).answers) for part in (VALIDATION, CALIBRATION)]
    assert [each.shape[1] for each in asked] == [len(each.labels_N) for each in asked]
    parts = config.dataset.load()
    assert parts.calibration is not None
    assert asked[0].labels_N.tolist() == parts.validation.labels_N.tolist()
    assert asked[1].labels_N.tolist() == parts.calibration.labels_N.tolist()
    voted = torch.cat([each for each, _ in asked[1].blocks()], dim=1).double().softmax(-1).mean(0)
    temperature = run.evaluation.bag.temperature
    assert temperature is not None
    logs = voted.clamp(min=2.0**-126).log() / temperature
    expected = SetCalibration.of(logs.softmax(-1).numpy(), asked[1].labels_N.numpy())
    assert run.evaluation.calibration is not None
    assert run.evaluation.calibration.scores["thr"] == pytest.approx(expected.scores["thr"])


def test_figures_of_shift_are_those_of_the_bag_asked_about_such_images(
    run: bend.Run, config: PipelineConfig, bag: Bag
) -> None:
    rotated = run.graph.scored[-1].of(config.dataset.load())
    last = slice(-len(rotated) // SEVERITIES, None)
    probs, labels = bag.predict_proba(rotated.take(last)), rotated.labels_N[last]
    expected = score(torch.from_numpy(probs), labels)
    told = run.evaluation.trust["bag"].shift["rotate"]["5"]
    assert (told.accuracy, told.nll) == pytest.approx(
        (expected["accuracy"], expected["nll"]), rel=1e-4
    )
    inside = bag.predict_set(rotated.take(last), 0.9)
    assert told.coverage == pytest.approx(inside[range(len(labels)), labels].mean())


def test_served_sets_have_the_coverage_that_was_told(
    run: bend.Run, config: PipelineConfig, bag: Bag
) -> None:
    test = config.dataset.load().test
    inside = bag.predict_set(test.take(slice(None)), 0.95, "raps")
    told = run.evaluation.trust["bag"].sets["raps"]["0.95"]
    assert inside[range(len(test)), test.labels_N].mean() == pytest.approx(told.coverage)
    assert inside.sum(1).mean() == pytest.approx(told.size)


def test_the_page_and_the_table_show_it(run: bend.Run) -> None:
    page = report([read_run(run.graph.evaluation.store, run.fingerprint)])
    titles = [table.title for table in page.tables[1:]]
    assert [title.split()[0] for title in titles] == ["Sets", "Refusing", "Out"]
    shown = {panel.name: panel for panels in page.chapters.values() for panel in panels}
    assert {f"shift_{score}" for score in ("accuracy", "nll", "ece", "coverage")} <= set(shown)
    accuracy = run.evaluation.trust["bag"].shift.values()
    worst = np.mean([each["5"].accuracy for each in accuracy])
    assert f" to {100 * worst:.2f} % at 5" in shown["shift_accuracy"].alt
    assert re.search(r"left_out +bag of generated( +\d+\.\d\d)+", run.summary())


def test_a_part_of_a_bag_promises_by_examples_of_its_own(
    run: bend.Run, config: PipelineConfig, bag: Bag
) -> None:
    part, parts = run.bag(members=2), config.dataset.load()
    assert parts.calibration is not None
    probs = part.predict_proba(parts.calibration.take(slice(None)))
    expected = SetCalibration.of(probs, parts.calibration.labels_N.numpy())
    own = part.card.promises
    assert own.kind == "sets"
    assert own.scores["thr"] == pytest.approx(expected.scores["thr"], abs=1e-5)
    assert own != bag.card.calibration
    inside = part.predict_set(parts.test.take(slice(None)), 0.9)
    assert inside[range(len(inside)), parts.test.labels_N].mean() > 0.8


def test_a_bag_that_nothing_calibrated_promises_nothing(bag: Bag) -> None:
    plain = copy.copy(bag)
    plain.card = bag.card.model_copy(update={"calibration": None})
    with pytest.raises(ConfigError, match=r"examples kept back .* dataset\.num_calibration"):
        plain.predict_set(np.zeros((1, 1, 8, 8)))


@pytest.fixture(scope="module")
def http(bag: Bag) -> TestClient:
    return client(bag.uri)


def test_over_http_a_set_is_that_of_python(
    http: TestClient, bag: Bag, config: PipelineConfig
) -> None:
    images = config.dataset.load().test.take(slice(20)).numpy()
    for kind in ("thr", "aps"):
        asked = http.post(
            f"/predict?coverage=0.95&sets={kind}&confidence=0.5",
            json={"instances": images.tolist()},
        )
        names = np.array(bag.card.class_names)
        expected = [names[row].tolist() for row in bag.predict_set(images, 0.95, kind)]  # type: ignore[arg-type]
        said = asked.json()["predictions"]
        assert [each["set"] for each in said] == expected
        assert all(each["members_used"] == each["members"] for each in said)


def test_over_http_what_is_not_sure_enough_has_no_label_and_the_reason(
    http: TestClient, bag: Bag, config: PipelineConfig
) -> None:
    test = config.dataset.load().test
    images = test.take(slice(32)).numpy()
    assert bag.card.calibration is not None
    promised = bag.card.calibration.thresholds
    wanted = (promised[0].accuracy + max(each.accuracy for each in promised)) / 2
    least = bag.card.calibration.threshold(wanted).least
    said = http.post(f"/predict?refuse_below={wanted}", json={"instances": images.tolist()}).json()[
        "predictions"
    ]
    sure = bag.predict_proba(images).max(1) >= least
    assert [each["label"] is not None for each in said] == sure.tolist()
    assert not sure.all()
    refused = next(each["refused"] for each in said if each["label"] is None)
    assert re.fullmatch(
        r"not sure: its probability is 0\.\d+; of answers from .* are right", refused
    )
    asked = http.post("/predict?refuse_below=0.9999", json={"instances": images.tolist()})
    assert asked.status_code == 422
    assert "which is what 100 examples kept back can promise" in asked.json()["error"]


def test_what_is_no_coverage_is_refused_over_http(http: TestClient) -> None:
    asked = http.post("/predict?coverage=1.5", json={"instances": []})
    assert asked.status_code == 422


def test_inputs_have_names_of_their_own() -> None:
    with pytest.raises(ConfigError, match="each of ood and shift once, got noise"):
        load_config(None, ["evaluation.ood=[{kind: noise}, {kind: noise}]"])


@pytest.fixture(scope="module")
def student(run: bend.Run, tmp_path_factory: pytest.TempPathFactory) -> Bag:
    folder = tmp_path_factory.mktemp("student") / "bag"
    distil(run.config, run.graph, str(folder), epochs=2)
    return bend.load_bag(folder)


@pytest.mark.trains
def test_a_student_answers_as_its_bag_for_the_price_of_one(
    run: bend.Run, config: PipelineConfig, bag: Bag, student: Bag
) -> None:
    test = config.dataset.load().test
    card = student.card
    assert (len(card.members), card.class_names) == (1, bag.card.class_names)
    assert card.model_version == f"{bag.card.model_version}-student"
    theirs, own = (each.predict_proba(test.take(slice(None))) for each in (bag, student))
    scores = score(torch.from_numpy(own), test.labels_N)
    assert card.scores is not None
    assert card.scores.accuracy == pytest.approx(scores["accuracy"])
    assert card.scores.nll == pytest.approx(scores["nll"], rel=1e-4)
    # Told the labels alone it could differ from the bag as a member does.
    assert (theirs.argmax(1) == own.argmax(1)).mean() > 0.8
    assert scores["nll"] < np.log(8) / 2
    assert student.predict_set(test.take(slice(5))).shape == (5, 8)


def test_a_mixture_lies_between_two_training_images(config: PipelineConfig) -> None:
    parts = config.dataset.load()
    mixed = _mixtures(parts, 50, torch.Generator().manual_seed(0))
    train = parts.train.take(slice(None))
    assert mixed.dtype == torch.uint8
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randint(len(train), (2, 50), generator=generator)
    low, high = (f(train[one], train[other]) for f in (torch.minimum, torch.maximum))
    assert ((low <= mixed) & (mixed <= high)).all()


def test_a_cascade_asks_the_bag_where_the_student_is_unsure(
    config: PipelineConfig, bag: Bag, student: Bag
) -> None:
    images = config.dataset.load().test.take(slice(60))
    theirs, own = (each.predict_proba(images) for each in (bag, student))
    below = float(np.median(own.max(1)))
    found = Cascade(student, bag, below).predict_proba(images)
    sure = own.max(1) >= below
    assert 0 < sure.sum() < 60
    np.testing.assert_array_equal(found[sure], own[sure])
    np.testing.assert_allclose(found[~sure], theirs[~sure], atol=1e-6)
    for share, expected in ((0.0, own), (1.0, theirs)):
        alone = Cascade(student, bag, share).predict_proba(images)
        np.testing.assert_allclose(alone, expected, atol=1e-6)


def test_over_http_who_wants_a_promise_asks_the_bag(
    config: PipelineConfig, bag: Bag, student: Bag
) -> None:
    settings = ServeSettings(student=student.uri, unsure_below=0.0)
    http = client(bag.uri, settings)
    body = {"instances": config.dataset.load().test.take(slice(3)).tolist()}  # type: ignore[union-attr]
    for query, used in (("", 0), ("?coverage=0.9", len(bag.card.members))):
        said = http.post(f"/predict{query}", json=body).json()["predictions"]
        assert [each["members_used"] for each in said] == [used] * 3


def test_a_student_is_of_the_same_inputs_and_classes(bag: Bag, student: Bag) -> None:
    other = copy.copy(student)
    other.card = student.card.model_copy(update={"class_names": tuple("abcdefgh")})
    with pytest.raises(DataError, match="expected a student of bag"):
        Cascade(other, bag, 0.5)


@pytest.mark.trains
def test_intervals_of_numbers_hold_what_they_say(tmp_path_factory: pytest.TempPathFactory) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(900, 3)).astype(np.float32)
    y = x[:, 0] + 0.5 * np.abs(x[:, 1]) * generator.normal(size=900)
    knobs = dict(knob.split("=") for knob in TINY if knob.startswith(("autoencoder", "generator")))
    settings = {name: float(value) if "." in value else int(value) for name, value in knobs.items()}
    run = bend.fit(
        bend.Mlp(hidden=[8]),
        (x[:600], y[:600]),
        (x[600:], y[600:]),
        epochs=4,
        members=4,
        store=tmp_path_factory.mktemp("store"),
        settings=settings
        | {
            "seeds.protocol.trunks": 2,
            "dataset.num_validation": 300,
            "dataset.num_calibration": 200,
            "evaluation.rivals": [{"kind": "originals_bag"}],
            "evaluation.ood": [{"kind": "noise"}],
            "evaluation.shift": ["noisy_columns"],
        },
    )
    trust = run.evaluation.trust["bag"]
    for kind in ("cqr", "residual"):
        coverage = [trust.sets[kind][wanted].coverage for wanted in ("0.8", "0.9", "0.95")]
        # Of 300 rows, calibrated on 200: four errors of both.
        for found, wanted in zip(coverage, (0.8, 0.9, 0.95), strict=True):
            assert abs(found - wanted) < 4 * np.sqrt(wanted * (1 - wanted) * (1 / 300 + 1 / 200))
    assert set(trust.ood["noise"]) == {"entropy"}
    told = [each.accuracy for each in trust.shift["noisy_columns"].values()]
    assert told[0] > told[-1]
    assert trust.shift["noisy_columns"]["1"].coverage is not None
    assert "cqr coverage %" in run.summary()
    (head,) = (line for line in run.summary().splitlines() if line.startswith("shift of the bag"))
    assert head.endswith("% at severity 5")
    # What is exported says so, too, and a part of it by examples of its own.
    bag, parts = run.bag(), run.config.dataset.load()
    mean, std = bag.predict(x[600:], return_std=True)
    assert bag.card.scores is not None
    z = (y[600:] - mean) / std
    nll = (0.5 * (z**2 + np.log(2 * np.pi * std**2))).mean()
    assert (run.evaluation.bag.nll, bag.card.scores.nll) == pytest.approx((nll, nll), rel=1e-4)
    for kind in ("cqr", "residual"):
        low, high = bag.predict_interval(x[600:], 0.9, kind).T
        held = ((low <= y[600:]) & (y[600:] <= high)).mean()
        assert held == pytest.approx(trust.sets[kind]["0.9"].coverage)
    part = run.bag(members=2)
    own = part.card.promises
    assert parts.calibration is not None
    held = part.predict(parts.calibration.take(slice(None)))
    assert own.kind == "intervals"
    errors = np.abs(parts.calibration.labels_N[:, 0].numpy() - held)
    assert own.errors[0] == pytest.approx(errors, abs=1e-4)
    with pytest.raises(ConfigError, match="distill: expected a bag of classes, got one of a reg"):
        distil(run.config, run.graph, str(tmp_path_factory.mktemp("student")))
