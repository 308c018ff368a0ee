"""Sets, refusals and intervals, held to MAPIE, to closed forms and to their own promise."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from bend_ray.ensemble.conformal import (
    FREE_RANKS,
    MOST_SCORES,
    PENALTY,
    RISK,
    SHARES,
    IntervalCalibration,
    SetCalibration,
    nonconformity,
)
from bend_ray.errors import ConfigError
from bend_ray.tasks import Classification

COVERAGES = (0.8, 0.9, 0.95)


def answers(seed: int = 0, num: int = 300, sharpness: float = 2.0) -> tuple[Any, Any]:
    """Probabilities that are as likely to be right as they say."""
    generator = np.random.default_rng(seed)
    powers = np.exp(sharpness * generator.normal(size=(num, 5)))
    probs = powers / powers.sum(1, keepdims=True)
    labels = (probs.cumsum(1) < generator.random(num)[:, None]).sum(1).clip(max=4)
    return probs, labels


class Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Inputs are probabilities already."""

    classes_ = np.arange(5)

    def fit(self, x: Any, y: Any) -> "Given":
        return self

    def predict_proba(self, x: Any) -> Any:
        return x

    def predict(self, x: Any) -> Any:
        return x.argmax(1)

    def __sklearn_is_fitted__(self) -> bool:
        return True


class Column(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Predicts a column of its inputs."""

    fitted_ = True

    def __init__(self, column: int = 0) -> None:
        self.column = column

    def fit(self, x: Any, y: Any) -> "Column":
        return self

    def predict(self, x: Any) -> Any:
        return x[:, self.column]

    def __sklearn_is_fitted__(self) -> bool:
        return True


class Ones(np.random.RandomState):
    """What MAPIE draws at random, as our scores have it."""

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return np.ones(size)


@pytest.mark.parametrize("coverage", COVERAGES)
def test_sets_are_those_of_mapie(coverage: float) -> None:
    mapie = pytest.importorskip("mapie.classification")
    held, other = answers(1), answers(2)
    ours = SetCalibration.of(*held)
    theirs = {}
    for kind, name in (("thr", "lac"), ("aps", "aps")):
        found = mapie.SplitConformalClassifier(
            Given(), coverage, conformity_score=name, prefit=True, random_state=Ones(0)
        )
        found.conformalize(*held)
        theirs[kind] = found.predict_set(other[0])[1][:, :, 0]
    inside = ours.sets(other[0], coverage, "thr")
    top = np.eye(5, dtype=bool)[other[0].argmax(1)]
    np.testing.assert_array_equal(inside, theirs["thr"] | top)
    np.testing.assert_array_equal(ours.sets(other[0], coverage, "aps"), theirs["aps"])


def test_scores_of_raps_are_those_of_mapie() -> None:
    mapie = pytest.importorskip("mapie.conformity_scores.sets.raps")
    probs, labels = answers(3)
    theirs = mapie.RAPSConformityScore()
    theirs.classes, theirs.random_state = np.arange(5), Ones(0)
    # As RAPS, which without its penalty is APS.
    plain = super(mapie.RAPSConformityScore, theirs).get_conformity_scores(labels, probs, labels)
    scores = theirs._regularize_conformity_score(
        np.array([FREE_RANKS]), PENALTY, plain, theirs.cutoff
    )
    ours = nonconformity(probs, "raps")[range(len(labels)), labels]
    np.testing.assert_allclose(ours, scores[:, 0, 0])


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize(("free", "penalty"), [(1, 0.01), (3, 0.2), (4, 0.2)])
def test_sets_of_raps_are_those_of_mapie(
    coverage: float, free: int, penalty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapie = pytest.importorskip("mapie.conformity_scores.sets.raps")
    monkeypatch.setattr("bend_ray.ensemble.conformal.FREE_RANKS", free)
    monkeypatch.setattr("bend_ray.ensemble.conformal.PENALTY", penalty)
    (held, labels), (other, _) = answers(1), answers(2)
    told = Classification().calibration(torch.from_numpy(held), torch.from_numpy(labels))
    ours = told.sets(other, coverage, "raps")
    theirs = mapie.RAPSConformityScore()
    theirs.classes, theirs.random_state = np.arange(5), Ones(0)
    # Theirs would choose free ranks and penalty by a part of what is kept back: as we have them.
    theirs.k_star, theirs.lambda_star, alpha = np.array([free]), penalty, np.array([1 - coverage])
    plain = super(mapie.RAPSConformityScore, theirs).get_conformity_scores(labels, held, labels)
    scores = theirs._regularize_conformity_score(theirs.k_star, penalty, plain, theirs.cutoff)
    theirs.quantiles_ = mapie._compute_classification_quantile(scores, alpha)
    inside = theirs.get_prediction_sets(
        other[:, :, None], scores, alpha, "prefit", include_last_label="randomized"
    )[:, :, 0]
    # Their draw for the last class counts its penalty once more for each rank beyond the first.
    alike = ours.sum(axis=1) <= free + 1
    assert alike.all() if free == 4 else alike.any()
    np.testing.assert_array_equal(ours[alike], inside[alike])
    assert (ours[~alike] >= inside[~alike]).all()


def test_intervals_are_those_of_mapie() -> None:
    mapie = pytest.importorskip("mapie.regression")
    generator = np.random.default_rng(0)
    mean, std = generator.normal(size=400), generator.uniform(0.2, 2.0, size=400)
    targets = generator.normal(scale=2, size=400)
    half = norm.ppf(0.95) * std
    columns = np.stack([mean - half, mean + half, mean], axis=1)
    held, other = slice(200), slice(200, 400)
    answers = np.stack([mean, std**2], axis=1)
    calibration = IntervalCalibration.of(answers[held], targets[held, None])
    theirs = mapie.ConformalizedQuantileRegressor(
        [Column(0), Column(1), Column(2)], 0.9, prefit=True
    )
    theirs.conformalize(columns[held], targets[held])
    found = theirs.predict_interval(columns[other], symmetric_correction=True)[1]
    np.testing.assert_allclose(calibration.sets(answers[other], 0.9, "cqr"), found[:, :, 0])
    plain = mapie.SplitConformalRegressor(Column(2), 0.9)
    plain.conformalize(columns[held], targets[held])
    residual = calibration.sets(answers[other], 0.9, "residual")
    np.testing.assert_allclose(residual, plain.predict_interval(columns[other])[1][:, :, 0])


@pytest.mark.parametrize("kind", SetCalibration.kinds)
def test_the_promise_is_kept_whatever_the_probabilities_are_worth(kind: Any) -> None:
    # Over many draws coverage is not below what is wanted.
    for power in (0.3, 1.0, 4.0):  # too modest, right, too sure
        held = []
        for seed in range(100):
            probs, labels = answers(seed, 120)
            probs = probs**power / (probs**power).sum(1, keepdims=True)
            inside = SetCalibration.of(probs[:60], labels[:60]).sets(probs[60:], 0.8, kind)
            held.append(inside[range(60), labels[60:]].mean())
        error = np.std(held) / math.sqrt(len(held))
        assert np.mean(held) > 0.8 - 4 * error


def test_a_set_is_what_a_closed_form_says() -> None:
    # Nine scores 0.1, ..., 0.9: nine of ten is the ninth.
    probs = np.array([[1 - s, s] for s in np.linspace(0.1, 0.9, 9)])
    ours = SetCalibration.of(probs, np.zeros(9, np.int64))
    assert ours.quantile("thr", 0.9) == pytest.approx(0.9)
    assert ours.quantile("thr", 0.5) == pytest.approx(0.5)
    assert ours.quantile("thr", 0.95) == math.inf  # nine examples say nothing of it
    assert ours.sets(np.array([[0.95, 0.05]]), 0.95).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.floats(0.01, 0.99))
def test_of_many_examples_the_next_higher_score_is_kept(count: int, coverage: float) -> None:
    true = np.random.default_rng(count).random(count)
    ours = SetCalibration.of(np.stack([1 - true, true], axis=1), np.zeros(count, np.int64))
    rank = math.ceil((count + 1) * coverage - 1e-9)
    kept = ours.quantile("thr", coverage)
    assert len(ours.scores["thr"]) <= MOST_SCORES
    if rank > count:
        assert kept == math.inf
        return
    place = np.searchsorted(np.sort(1 - (1 - true)), kept - 1e-12) + 1
    assert rank <= place <= rank + count / MOST_SCORES + 1


@pytest.mark.parametrize(
    ("coverage", "kind", "told"),
    [
        (0.0, "thr", "^coverage: expected more than 0 and less than 1, got 0$"),
        (1.0, "aps", "^coverage: expected more than 0 and less than 1, got 1$"),
        (0.9, "top", "^sets: expected one of thr, aps, raps, got top$"),
    ],
)
def test_what_is_no_coverage_is_refused(coverage: float, kind: Any, told: str) -> None:
    probs, labels = answers()
    with pytest.raises(ConfigError, match=told):
        SetCalibration.of(probs, labels).sets(probs, coverage, kind)


@pytest.mark.parametrize("count", [1, 2, 6, 9, 40, 99, 200])
def test_the_most_that_can_be_promised_is_told_and_then_given(count: int) -> None:
    probs, labels = answers(0, count)
    numbers = IntervalCalibration.of(np.ones((count, 2)), np.zeros((count, 1)))
    for ours in (SetCalibration.of(probs, labels), numbers):
        with pytest.raises(ConfigError, match="coverage: expected at most") as refused:
            ours.check(0.9999, None)
        most = float(str(refused.value).split()[4].rstrip(","))
        ours.check(most, None)
        assert most == pytest.approx(count / (count + 1), abs=1e-4)


def test_thresholds_answer_fewer_and_promise_what_clopper_and_pearson_do() -> None:
    probs, labels = answers(5, 1000)
    for each in SetCalibration.of(probs, labels).thresholds:
        answered = probs.max(1) >= each.least
        right = int((probs.argmax(1) == labels)[answered].sum())
        assert each.answered == pytest.approx(answered.mean())
        # Were it as low as that, so many right would have had a chance of the risk alone.
        chance = binom.sf(right - 1, answered.sum(), each.accuracy)
        assert chance == pytest.approx(RISK / SHARES, rel=1e-6)


def test_a_refusals_promise_is_broken_no_more_often_than_its_risk() -> None:
    broken, answered = 0, []
    for seed in range(120):
        probs, labels = answers(seed, 600, 3.0)
        try:
            found = SetCalibration.of(probs, labels).threshold(0.9)
        except ConfigError:
            continue
        answered.append(found.answered)
        # Probabilities are right, so that this is the accuracy over all examples there could be.
        fresh = answers(10_000, 20_000, 3.0)[0].max(1)
        broken += fresh[fresh >= found.least].mean() < 0.9
    assert len(answered) > 60
    assert broken <= binom.ppf(0.999, len(answered), RISK)


def test_what_cannot_be_promised_is_told() -> None:
    probs, labels = answers(0, 40)
    with pytest.raises(ConfigError, match=r"expected an accuracy of at most 0\.[0-9]+, which"):
        SetCalibration.of(probs, labels).threshold(0.999)
