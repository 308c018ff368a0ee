"""The estimators: scikit-learn's own checks, its tools around them, and what a table may hold."""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, make_regression
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from bend_ray.api import load_bag
from bend_ray.errors import ConfigError
from bend_ray.networks.fitting import Training
from bend_ray.sklearn import BagClassifier, BagRegressor
from bend_ray.sklearn.rows import folds_of, repeated, units_of

SMALL = {"members": 4, "folds": 1, "random_state": 0}


@parametrize_with_checks(
    [BagClassifier(members=4, folds=1, epochs=20), BagRegressor(members=4, folds=1, epochs=30)]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_own_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def people(rows: int = 200) -> tuple[pd.DataFrame, np.ndarray]:
    """Of mixed columns, some missing, and a class that two of them decide."""
    rng = np.random.default_rng(0)
    city = rng.choice(["Ulm", "Bonn", "Köln"], rows)
    age = rng.normal(40, 10, rows)
    frame = pd.DataFrame(
        {
            "age": np.where(rng.random(rows) < 0.1, np.nan, age),
            "city": pd.Series(city).where(rng.random(rows) > 0.1),
            "joined": pd.date_range("2020-01-01", periods=rows),
            "active": rng.random(rows) > 0.5,
            "kind": pd.Categorical(rng.choice([1, 2], rows)),
        }
    )
    return frame, np.where((city == "Ulm") ^ (age > 40), "yes", "no")


@pytest.mark.trains
def test_it_learns_classes_and_is_calibrated_where_it_does_not_know() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, random_state=0)
    bag = BagClassifier(members=8, random_state=0).fit(x, y)
    assert bag.score(x_test, y_test) > 0.93
    confidence = bag.predict_proba(x_test).max(axis=1).mean()
    assert abs(confidence - bag.score(x_test, y_test)) < 0.05


@pytest.mark.trains
def test_it_learns_numbers_and_how_sure_it_is() -> None:
    x, y = load_diabetes(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, random_state=0)
    bag = BagRegressor(members=8, random_state=0).fit(x, y)
    assert bag.score(x_test, y_test) > 0.25
    low, high = bag.predict_interval(x_test, coverage=0.9).T
    assert 0.8 < ((low < y_test) & (y_test < high)).mean() <= 1.0
    mean, std = bag.predict(x_test, return_std=True)
    assert mean.shape == std.shape == y_test.shape
    assert (std > 0).all()


@pytest.mark.trains
def test_a_frame_of_mixed_columns_is_taken_as_it_is() -> None:
    frame, y = people()
    bag = BagClassifier(**SMALL).fit(frame, y)
    assert bag.score(frame, y) > 0.8
    assert {n: c.kind for n, c in bag.columns_.items()} == {
        "x0": "number",
        "x1": "category",
        "x2": "date",
        "x3": "boolean",
        "x4": "category",
    }
    assert bag.feature_names_in_.tolist() == list(frame.columns)
    # What was never seen, and what is missing, have an answer too.
    strange = frame.head(3).assign(city=["Rome", None, "Ulm"], age=[np.nan, 1e9, -1e9])
    assert np.isfinite(bag.predict_proba(strange)).all()
    with pytest.raises(ValueError, match="age: expected a column of kind number"):
        bag.predict(frame.assign(age="old"))
    with pytest.raises(ValueError, match="Feature names"):
        bag.predict(frame.drop(columns="age"))
    with pytest.raises(ValueError, match="same order"):
        bag.predict(frame[frame.columns[::-1]])


@pytest.mark.parametrize("estimator", [BagClassifier(**SMALL), BagRegressor(**SMALL)])
def test_what_says_nothing_leaves_the_targets_own_distribution(estimator: Any) -> None:
    y = np.arange(60) % 2
    x = np.full((60, 2), 3.0)
    x[:, 1] = np.nan
    bag = clone(estimator).fit(x, y)
    answers = bag.predict_proba(x)[:, 1] if hasattr(bag, "predict_proba") else bag.predict(x)
    assert np.ptp(answers) == 0
    assert answers[0] == pytest.approx(0.5, abs=0.2)


@pytest.mark.filterwarnings("ignore:left out are")
@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        ([[1.0, np.inf], [2.0, 3.0]], [0, 1], "infinity"),
        ([[1.0, 2.0]], [0], "1 sample"),
        ([[1.0], [2.0], [3.0]], [0, 1], "inconsistent numbers of samples"),
        ([["a"], ["b"], ["c"]], [0, 1, 0], "could not convert string"),
        (pd.DataFrame({1: [1.0, 2], "a": [1.0, 2]}), [0, 1], "column names"),
        (pd.DataFrame({"a": [1, "x", None]}), [0, 1, 0], "column a with type object: .*'x'"),
        (pd.DataFrame({"a": [1.0, np.inf], "b": ["u", "v"]}), [0, 1], "a: .* infinity"),
        (pd.DataFrame([[1.0, "u"], [2.0, "v"]], columns=["a", "a"]), [0, 1], "unique column names"),
        (pd.DataFrame([[1.0, 2.0]] * 3, columns=["a", "a"]), [0, 1, 0], "unique column names"),
        (pd.DataFrame({"a": [1.0, 2, 3], "b": list("uvu")}), [0, 1, 0], "^expected two training"),
        (pd.DataFrame({"a": [[1], [2], [3]]}), [0, 1, 0], "a: expected numbers"),
        (pd.Series([1.0, 2.0, 3.0]), [0, 1, 0], "Expected 2D array, got 1D array"),
        (pd.DataFrame(index=range(3)), [0, 1, 0], r"0 feature\(s\)"),
        (pd.DataFrame({"a": ["u"]}), [0], "1 sample"),
    ],
)
def test_what_is_refused(x: Any, y: Any, told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        BagClassifier(**SMALL).fit(x, y)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"members": 0}, "'members' parameter"),
        ({"members": -3}, "'members' parameter"),
        ({"candidates": 0}, "'candidates' parameter"),
        ({"batch_size": 0}, "'batch_size' parameter"),
        ({"folds": 0}, "'folds' parameter"),
        ({"epochs": 0}, "'epochs' parameter"),
        ({"time_limit": -1}, "'time_limit' parameter"),
        ({"calibration": -0.5}, "'calibration' parameter"),
        ({"calibration": 2}, "'calibration' parameter"),
        ({"calibration": 0.999}, "expected two training examples at least .* calibration 0.999"),
        ({"settings": 5}, "'settings' parameter"),
        ({"settings": {5: 1}}, "settings: expected paths of knobs"),
        ({"settings": {"dataset.kind": "digits"}}, "settings: expected paths of knobs"),
        ({"store": 5}, "'store' parameter"),
        ({"network": "nonsense"}, "expected module:function as in shop.nets:make_net"),
        ({"draw": "no"}, "'draw' parameter"),
        ({"draw": True, "folds": 3}, "folds: expected 1 with seeds.protocol independent, got 3"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any], told: str) -> None:
    x, y = load_iris(return_X_y=True)
    for estimator in BagClassifier(**wrong), BagRegressor(**wrong):
        with pytest.raises(ValueError, match=told) as refused:
            estimator.fit(x, y)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("members", "folds"), [(3, None), (12, None), (2, 3), (5, 1)])
def test_exactly_so_many_votes_are_given(members: int, folds: int | None) -> None:
    x, y = load_iris(return_X_y=True)
    bag = BagRegressor(members=members, folds=folds, candidates=1, epochs=1).fit(x, y)
    votes = bag._weight_K * members
    assert votes.sum() == pytest.approx(members)
    assert (votes - votes.round()).abs().max() < 1e-6


def test_what_cannot_be_asked_is_told_in_one_line(tmp_path: Path) -> None:
    frame, _ = people(40)
    for bag, asked in (
        (BagClassifier(), "predict"),
        (BagClassifier(), "predict_set"),
        (BagRegressor(), "predict_interval"),
    ):
        with pytest.raises(NotFittedError):
            getattr(bag, asked)(frame)
    with pytest.raises(ValueError, match="export: expected a bag of two classes at least"):
        BagClassifier().fit(frame, np.zeros(40)).export(tmp_path / "bag")
    with pytest.raises(ValueError, match="got 1 of 2 classes"):
        BagClassifier(**SMALL).fit([[1.0], [2.0]], [0, 1])
    bag = BagRegressor(**SMALL, epochs=1, calibration=0.3).fit(frame, np.arange(40.0))
    with pytest.raises(ValueError, match=r"^X: expected a frame, as the bag was fitted on one"):
        bag.predict(frame.to_numpy())
    with pytest.raises(ValueError, match="coverage"):
        bag.predict_interval(frame, 0.9999)
    for coverage in (-0.5, 1, 2):
        for each in bag, BagRegressor(**SMALL, epochs=1).fit(frame, np.arange(40.0)):
            with pytest.raises(ValueError, match="coverage"):
                each.predict_interval(frame, coverage)


@pytest.mark.filterwarnings("ignore:left out are")
@pytest.mark.parametrize(
    "change",
    [
        {"city": ["Rome"] + ["Ulm"] * 199},  # a level of one row
        {"city": [f"{i}" for i in range(200)]},
        {"city": None},
        {"age": np.nan},
        {"age": 7.0, "active": True},
    ],
)
def test_columns_that_say_little_are_no_harm(change: dict[str, Any]) -> None:
    frame, y = people()
    bag = BagClassifier(members=2, folds=2, epochs=2).fit(frame.assign(**change), y)
    assert np.isfinite(bag.predict_proba(frame)).all()


def test_other_types_of_the_same_columns_are_taken() -> None:
    frame, y = people()
    bag = BagClassifier(**SMALL, epochs=2).fit(frame.set_axis(range(5), axis=1), y)
    texts = frame.assign(age=frame["age"].map(str, na_action="ignore"), active=1)
    whole = frame.assign(active=True)
    asked = [bag.predict_proba(each.set_axis(range(5), axis=1)) for each in (texts, whole)]
    assert (asked[0] == asked[1]).all()
    fine = frame.assign(joined=frame["joined"].astype("datetime64[ns]") + pd.Timedelta(1, "ns"))
    given = [bag.predict_proba(each.set_axis(range(5), axis=1)) for each in (fine, frame)]
    np.testing.assert_allclose(*given)
    floor = pd.DataFrame({"floor": ["1", "2", "3", "1"] * 10})
    bag = BagClassifier(**SMALL, epochs=2).fit(floor, y[:40])
    assert (bag.predict_proba(floor) == bag.predict_proba(floor.astype(int))).all()


@pytest.mark.parametrize("estimator", [BagClassifier(**SMALL), BagRegressor(**SMALL)])
def test_a_target_of_one_value_is_told_for_ever(estimator: Any) -> None:
    frame, _ = people(20)
    bag = clone(estimator).set_params(epochs=20).fit(frame, np.full(20, 3.0))
    assert bag.predict(frame) == pytest.approx(3.0, abs=0.05)


def test_many_columns_and_few_rows() -> None:
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(12, 10_000))
    assert BagClassifier(members=2, folds=1, epochs=1).fit(wide, np.arange(12) % 2).n_features_in_
    assert BagRegressor(members=2, folds=1, epochs=1).fit(wide[:3], [1.0, 2.0, 3.0]).scale_ > 0


def test_it_stands_in_scikit_learns_tools() -> None:
    x, y = load_iris(return_X_y=True)
    quick = BagClassifier(**SMALL, epochs=4)
    assert len(cross_val_score(make_pipeline(StandardScaler(), quick), x, y, cv=2)) == 2
    search = GridSearchCV(quick, {"learning_rate": [0.003, 0.01]}, cv=2).fit(x, y)
    assert search.best_params_["learning_rate"] in (0.003, 0.01)
    assert CalibratedClassifierCV(quick, cv=2).fit(x, y).predict_proba(x).shape == (150, 3)
    parallel = joblib.Parallel(n_jobs=2, backend="threading")
    one, two = parallel(joblib.delayed(clone(quick).fit)(x, y) for _ in range(2))
    assert (one.predict_proba(x) == two.predict_proba(x)).all()
    again = pickle.loads(pickle.dumps(one))
    assert (again.predict_proba(x) == one.predict_proba(x)).all()


def test_several_targets_have_a_column_each() -> None:
    x, y = make_regression(80, 4, n_targets=3, random_state=0)
    bag = BagRegressor(**SMALL, epochs=4).fit(x, y)
    assert bag.predict(x).shape == y.shape
    assert bag.predict_interval(x).shape == (80, 3, 2)


def test_drawn_models_vote_where_they_are_asked_for() -> None:
    x, y = load_iris(return_X_y=True)
    drawn = BagClassifier(members=6, folds=1, epochs=4, random_state=0, draw=True).fit(x, y)
    assert drawn.predict_proba(x).shape == (150, 3)


def test_what_is_exported_answers_alike(tmp_path: Path) -> None:
    frame, y = people()
    bag = BagClassifier(**SMALL, epochs=4, calibration=0.3).fit(frame, y)
    bag.export(tmp_path / "bag")
    served = load_bag(tmp_path / "bag")
    assert list(served.card.inputs) == list(frame.columns)
    assert served.card.class_names == ("no", "yes")
    np.testing.assert_allclose(served.predict_proba(frame), bag.predict_proba(frame), atol=1e-5)
    others, _ = people(300)  # of which none is the one kept back where sets end
    assert (served.predict_set(others, 0.8) == bag.predict_set(others, 0.8)).all()
    numbers = frame[["age", "active"]].to_numpy(float)
    bag.fit(numbers, y).export(tmp_path / "bag")
    assert list(load_bag(tmp_path / "bag").card.inputs) == ["x0", "x1"]
    bag.fit(frame.rename(columns={"age": ""}), y).export(tmp_path / "bag")
    assert list(load_bag(tmp_path / "bag").card.inputs) == ["x0", *frame.columns[1:]]
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match=r"mine\.txt"):
        bag.export(tmp_path)
    bag.fit(frame.rename(columns={"age": "probabilities"}), y)
    with pytest.raises(ConfigError, match="probabilities: expected inputs that are called"):
        bag.export(tmp_path / "bag")


def test_what_is_exported_of_numbers_answers_alike(tmp_path: Path) -> None:
    frame, _ = people()
    y = np.stack([frame["age"].fillna(30), frame["active"] * 3.0], axis=1)
    bag = BagRegressor(**SMALL, epochs=4, calibration=0.3).fit(frame, y)
    bag.export(tmp_path / "bag")
    served = load_bag(tmp_path / "bag")
    assert served.card.class_names == ("y0", "y1")
    for told, said in zip(
        bag.predict(frame, return_std=True), served.predict(frame, return_std=True), strict=True
    ):
        np.testing.assert_allclose(told, said, rtol=1e-4, atol=1e-4)
    ends = bag.predict_interval(frame, 0.8)
    np.testing.assert_allclose(ends, served.predict_interval(frame, 0.8), atol=1e-3)


def test_sets_hold_the_truth_as_often_as_they_say() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, random_state=1)
    bag = BagClassifier(**SMALL, epochs=4, calibration=0.4).fit(x, y)
    assert bag.calibration_.examples == -(-4 * len(y) // 10)
    # Two standard deviations, of the examples kept back and of the test's, below 0.9.
    assert bag.predict_set(x_test, 0.9)[range(len(y_test)), y_test].mean() > 0.82
    with pytest.raises(ValueError, match=r"coverage: expected at most 0\.99.., which is what"):
        bag.predict_set(x_test, 0.999)
    with pytest.raises(ValueError, match="expected calibration"):
        BagClassifier(**SMALL, epochs=1).fit(x, y).predict_set(x)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_a_cluster_trains_the_same_members(tmp_path: Path) -> None:
    x, y = load_iris(return_X_y=True)
    quick = BagClassifier(members=4, folds=2, epochs=4, random_state=0)
    here = clone(quick).fit(x, y)
    there = clone(quick).set_params(address="local", store=str(tmp_path)).fit(x, y)
    assert (here.predict_proba(x) == there.predict_proba(x)).all()


def test_a_time_limit_shortens_the_training() -> None:
    x, y = load_iris(return_X_y=True)
    bag = BagClassifier(**SMALL, epochs=100_000, time_limit=1.0)
    started = time.monotonic()
    assert bag.fit(x, y).predict_proba(x).shape == (150, 3)
    assert time.monotonic() - started < 60


def test_when_time_is_up_all_folds_have_come_as_far(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = load_iris(return_X_y=True)
    steps: dict[int, int] = {}
    advance = Training.advance

    def counted(training: Training, *given: Any) -> None:
        advance(training, *given)
        steps[id(training)] = training.step

    monkeypatch.setattr(Training, "advance", counted)
    BagClassifier(members=6, folds=3, epochs=100_000, time_limit=0.05).fit(x, y)
    assert len(steps) == 3
    assert len(set(steps.values())) == 1


def test_weights_are_how_often_a_row_counts() -> None:
    rows = np.arange(4)
    assert repeated(rows, [2, 0, 1, 3]).tolist() == [0, 0, 2, 3, 3, 3]
    assert repeated(rows, None) is rows
    # Others count to a quarter of a row, whatever their scale.
    counts = np.bincount(repeated(np.arange(1000), np.linspace(0, 0.5, 1000)), minlength=1000)
    assert counts.sum() == 4000
    assert abs(counts - 8 * np.linspace(0, 1, 1000)).max() <= 1.0


def test_the_order_of_rows_is_theirs() -> None:
    frame, y = people(50)
    raw = {"age": frame["age"].to_numpy(), "city": frame["city"].fillna("").to_numpy(dtype=str)}
    codes = (y == "yes").astype(np.int64)
    shuffled = np.random.default_rng(1).permutation(50)
    before, _ = units_of(raw, codes, None)
    after, _ = units_of({n: v[shuffled] for n, v in raw.items()}, codes[shuffled], None)
    assert (shuffled[after] == before).all()


@pytest.mark.parametrize("weights", [(1, 2), (0.5, 1), (10, 30)])
def test_copies_of_an_example_are_on_one_side(weights: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    raw, codes = {"x0": rng.normal(size=60), "x1": rng.normal(size=60)}, np.arange(60) % 2
    rows, units = units_of(raw, codes, np.tile(weights, 30))
    counts = np.bincount(rows)
    for row in range(60):
        assert len(set(units[rows == row])) == 1
    assert abs(counts[1::2].sum() / counts[::2].sum() - weights[1] / weights[0]) < 0.1
    plain = units_of(raw, codes, None)
    twice = {name: np.tile(values, 2) for name, values in raw.items()}
    again, alike = units_of(twice, np.tile(codes, 2), None)
    assert (again % 60 == plain[0]).all()
    assert (alike == plain[1]).all()
    # What all weigh alike is no weight.
    for same in (2.0, 0.5, 0.3, 10.0):
        for one, other in zip(units_of(raw, codes, np.full(60, same)), plain, strict=True):
            np.testing.assert_array_equal(one, other)
    # Of two columns of few values examples are alike by chance, and each counts by itself.
    few = {name: (values > 0).astype(float) for name, values in raw.items()}
    rows, units = units_of(few, codes, None)
    assert len(set(units)) == 60


@pytest.mark.trains
def test_what_is_kept_back_is_like_what_is_learnt() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"sex": rng.choice(["m", "f"], 1000), "city": rng.choice(list("ABC"), 1000)}
    )
    y = rng.random(1000) < 0.3
    asked = pd.DataFrame([(s, c) for s in "mf" for c in "ABC"], columns=["sex", "city"])
    bag = BagClassifier(members=8, random_state=0, calibration=0.2).fit(frame, y)
    assert abs(bag.predict_proba(asked)[:, 1] - 0.3).max() < 0.15


@pytest.mark.trains
def test_weights_do_not_make_a_bag_surer() -> None:
    rng = np.random.default_rng(0)
    x, y, asked = rng.normal(size=(200, 5)), rng.integers(0, 2, 200), rng.normal(size=(500, 5))
    plain = BagClassifier(members=8, random_state=0).fit(x, y)
    twice = BagClassifier(members=8, random_state=0).fit(x, y, np.full(200, 2.0))
    sure = [bag.predict_proba(asked).max(axis=1).mean() for bag in (plain, twice)]
    assert sure[1] < sure[0] + 0.05


def test_one_example_of_a_class_is_learnt() -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    bag = BagClassifier(members=4, epochs=2, random_state=0).fit(x, np.r_[1, np.zeros(39)])
    assert bag.predict_proba(x).shape == (40, 2)


def test_texts_of_many_values_are_left_out_with_a_word() -> None:
    frame, y = people(40)
    frame["id"] = [f"k{i}" for i in range(40)]
    with pytest.warns(UserWarning, match="left out are 1 columns of texts of many values"):
        bag = BagClassifier(**SMALL, epochs=1).fit(frame, y)
    assert len(bag.columns_) == 5
    for kept in (frame[["id"]], frame[["id"]].assign(id="a"), frame[["id"]].assign(id=None)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for estimator in BagClassifier(**SMALL, epochs=1), BagRegressor(**SMALL, epochs=1):
                bag = estimator.fit(kept, np.arange(40) % 2)
                assert np.ptp(bag.predict(kept)) == 0
        with pytest.raises(ValueError, match="export: expected a column that varies"):
            bag.export("nowhere")


def test_tiny_and_constant_targets_keep_their_units() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    tiny = BagRegressor(**SMALL, epochs=5).fit(x, x[:, 0] * 1e-100)
    assert abs(tiny.predict(x)).max() < 1e-98
    flat = BagRegressor(**SMALL, epochs=5).fit(x, np.full(60, 1e-6))
    assert flat.predict(x) == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize("folds", [1, 3, None])
def test_every_example_is_validated_by_those_who_never_saw_it(folds: int | None) -> None:
    parts = folds_of(np.arange(40) % 4, folds, 0)
    for train, validation in parts:
        assert not set(train) & set(validation)
        assert np.ptp(np.bincount(np.arange(40)[train] % 4)) <= 1
    tested = np.sort(np.concatenate([validation for _, validation in parts]))
    assert tested.tolist() == (list(range(40)) if folds != 1 else sorted(set(tested.tolist())))
