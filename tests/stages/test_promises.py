"""Calibration, what is out of distribution and shift, from a run to the bag that promises."""

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
from bend_ray.data.corruptions import SEVERITIES
from bend_ray.data.inputs import CALIBRATION, VALIDATION
from bend_ray.ensemble.conformal import Calibration
from bend_ray.ensemble.metrics import score
from bend_ray.errors import ConfigError, DataError
from bend_ray.populations.answers import Answers
from bend_ray.report.page import report
from bend_ray.report.runs import read_run
from bend_ray.serve.bag import Bag

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
    expected = Calibration.of(logs.softmax(-1).numpy(), asked[1].labels_N.numpy())
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
    assert (told.accuracy, told.nll) == pytest.approx((expected.accuracy, expected.nll), rel=1e-4)
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
    assert f" to {worst:.4f}" in shown["shift_accuracy"].alt
    assert re.search(r"left_out +bag of generated( +\d+\.\d\d)+", run.summary())


def test_a_part_of_a_bag_promises_nothing(run: bend.Run) -> None:
    with pytest.raises(ConfigError, match=r"examples kept back .* dataset\.num_calibration"):
        run.bag(members=2).predict_set(np.zeros((1, 1, 8, 8)))


@pytest.fixture(scope="module")
def http(bag: Bag) -> TestClient:
    return client(bag.folder)


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


def test_of_left_out_classes_there_must_be_some() -> None:
    config = load_config(None, [*TINY, "evaluation.ood=[{kind: left_out}]"])
    with pytest.raises(DataError, match=r"needs classes in dataset\.left_out"):
        config.evaluation.ood[0].of(config.dataset.load())


def test_inputs_have_names_of_their_own() -> None:
    with pytest.raises(ConfigError, match="each of ood and shift once, got noise"):
        load_config(None, ["evaluation.ood=[{kind: noise}, {kind: noise}]"])
