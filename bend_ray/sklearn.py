"""Estimators that scikit-learn accepts: ``BagClassifier`` and ``BagRegressor``.

>>> from sklearn.datasets import load_iris
>>> from bend_ray.sklearn import BagClassifier
>>> x, y = load_iris(return_X_y=True)
>>> BagClassifier(members=8, random_state=0).fit(x, y).score(x, y) > 0.9
True
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _check_sample_weight,
    check_array,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from bend_ray.api import Architecture, _architecture
from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import DATASETS, graph_of, identified
from bend_ray.config.reading import validated, with_knobs
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.arrays import SINGLE, Arrays
from bend_ray.data.columns import Column, Columns, encode, kind_of, raw_column
from bend_ray.data.given import spilled
from bend_ray.data.splits import Stratified
from bend_ray.errors import BendError
from bend_ray.networks.architectures import Mlp
from bend_ray.networks.fitting import initial_parameters
from bend_ray.networks.recipe import Stretch
from bend_ray.networks.stacking import Stack, form_for, predict_logits
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.pipeline import connect, make_stage
from bend_ray.populations.networks import Classifiers
from bend_ray.process.log import quiet
from bend_ray.runtime.local import LocalRuntime
from bend_ray.storage.uris import joined
from bend_ray.tasks import Classification, Regression, Task

MOST_FOLDED = 5000
"""Examples of which every member's own fold validates it; of more a part of them is held out."""
FINE_WEIGHTS = 4
"""Rows an example, on average, that weights which are no whole numbers are rounded to."""
CHUNK = 4096
"""Examples answered at a time."""
STEPS = 300
"""Of a member's training, at least."""
TIMED_STEPS = 5
"""By which a time limit is planned."""
USED = 0.7
"""Share of the time that is left which is planned for training."""


class _Bag(BaseEstimator):  # type: ignore[misc]
    """What both estimators do; their docstrings say what there is to set."""

    def __init__(
        self,
        network: Any = None,
        *,
        members: int = 32,
        folds: int | None = None,
        epochs: int | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        draw: bool = False,
        time_limit: float | None = None,
        random_state: Any = None,
        store: str | None = None,
        address: str | None = None,
        settings: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        self.network = network
        self.members = members
        self.folds = folds
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.draw = draw
        self.time_limit = time_limit
        self.random_state = random_state
        self.store = store
        self.address = address
        self.settings = settings
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = tags.input_tags.string = False
        return tags

    def _fit(
        self, raw: dict[str, NDArray[Any]], labels: NDArray[Any], weights: Any, task: Task
    ) -> Self:
        """Train on raw columns and labels, codes of classes or targets."""
        started = time.monotonic()
        rows = _repeated(_in_order(raw, labels), weights, check_random_state(self.random_state))
        found = {n: Column.fitted(self._kinds[n], values[rows]) for n, values in raw.items()}
        columns: Columns = {name: column for name, column in found.items() if column}
        if not columns:
            # What never varies says nothing: a bag of it tells the targets' own distribution.
            first = next(iter(raw))
            columns = {first: Column(kind="number", knots=(0.0,), scores=(0.0,))}
            raw = {first: np.zeros(len(labels))}
        self.columns_: Columns = columns
        inputs_NF = encode(columns, {name: raw[name][rows] for name in columns})
        self._task: Task = task.fitted(torch.from_numpy(labels[rows]))
        try:
            with quiet(self.verbose), torch.random.fork_rng(devices=[]):
                self._train(inputs_NF, labels[rows], started)
        except BendError as error:
            raise ValueError(str(error)) from error
        return self

    def _train(self, inputs_NF: NDArray[Any], labels: NDArray[Any], started: float) -> None:
        """Members of every fold, and the scale that fits what they say of examples unseen."""
        seed = int(check_random_state(self.random_state).randint(2**31))
        parts = _folds(labels, self.folds, self._task, seed)
        runtime: Any = None
        thetas, said, told = [], [], []
        for fold, (train, validation) in enumerate(parts):
            left = math.inf
            if self.time_limit is not None:
                left = (self.time_limit - time.monotonic() + started) / (len(parts) - fold)
                if left <= 0 and fold:
                    break
            with tempfile.TemporaryDirectory() as scratch:
                store = Store(self.store or scratch)
                data = {
                    part: spilled(
                        self._arrays(inputs_NF[rows], labels[rows]), joined(store.uri, DATASETS)
                    )
                    for part, rows in (("train", train), ("validation", validation))
                }
                config = identified(self._config(data, len(train), len(parts), seed + fold))
                last = "samples" if self.draw else "seeds"
                steps = graph_of(config, store).steps(last)
                if runtime is None:
                    joins = self.address is not None
                    runtime = connect(self.address, config, steps) if joins else LocalRuntime()
                dataset = runtime.share(config.dataset).load()
                classifiers = Classifiers(config, dataset, "cpu")
                if left < math.inf:
                    config = _affordable(config, classifiers, left)
                graph = graph_of(config, store)
                for step in steps:
                    make_stage(step, config, graph, runtime)
                population = read_population(graph[last])
            theta_KP = torch.from_numpy(population.theta_KP)
            outputs_KNO = classifiers.logits(
                theta_KP, dataset.validation, population.trunk.tolist()
            )
            thetas.append(theta_KP)
            said.append(self._task.ballots(outputs_KNO).mean(dim=0))
            told.append(dataset.validation.labels_N)
        self._network: Architecture = config.seeds.architecture
        self._theta_KP = torch.cat(thetas)
        self.scale_: float = self._task.fit_scale(
            self._task.answers(torch.cat(said)), torch.cat(told)
        )

    def _arrays(self, inputs_NF: NDArray[Any], labels: NDArray[Any]) -> Arrays:
        names = [str(c) for c in range(self._num_classes)] or None
        return Arrays.of({SINGLE: inputs_NF}, labels, names, task=self._task)

    def _config(self, data: Mapping[str, str], train: int, folds: int, seed: int) -> PipelineConfig:
        """What a fold's members are: ordinary trainings, of a few hundred steps at least."""
        batch = self.batch_size or min(256, max(32, train // 10))
        epochs = self.epochs or max(4, math.ceil(STEPS * batch / train))
        network = Mlp(hidden=(128,)) if self.network is None else self.network
        recipe = {
            "epochs": epochs,
            "batch_size": batch,
            "optimizer": {"kind": "adamw", "learning_rate": self.learning_rate or 0.003},
        }
        seeds = {
            "architecture": _architecture(network),
            "protocol": {
                "kind": "independent",
                "models": max(1, round(self.members / folds)),
                "align": self.draw,
            },
            "recipe": recipe,
            "held_out": 0.0,
        }
        arrays = {"kind": "arrays", "standardise": False, "task": self._task, **data}
        config = validated({"seed": seed, "dataset": arrays, "seeds": seeds})
        return with_knobs(config, self.settings) if self.settings else config

    def _answers(self, raw: Mapping[str, NDArray[Any]]) -> torch.Tensor:
        """The bag's answers about raw columns, in float64: nothing hangs on who is asked beside."""
        inputs_NF = torch.from_numpy(encode(self.columns_, raw)).double()
        architecture: Architecture = self._network
        with torch.random.fork_rng(devices=[]):
            module = architecture.build(
                tuple(inputs_NF.shape[1:]), self._task.num_outputs(self._names)
            )
        layout = ParameterLayout.of(module)
        stack = Stack(module.double(), layout, form_for(module, "cpu", inputs_NF[:1]))
        theta_KP = self._theta_KP.double()
        answers = []
        for part in inputs_NF.split(CHUNK):
            outputs_KNO = predict_logits(stack, theta_KP, part)
            answers.append(self._task.answers(self._task.ballots(outputs_KNO).mean(dim=0)))
        return self._task.scaled(torch.cat(answers), self.scale_)

    @property
    def _num_classes(self) -> int:
        return 0

    @property
    def _names(self) -> list[str]:
        return list(map(str, range(self._num_classes or len(getattr(self._task, "mean", ())))))

    def _raw(self, X: Any, *, reset: bool) -> dict[str, NDArray[Any]]:
        """Raw columns of what a user gives: an array of numbers, or a frame."""
        mixed = hasattr(X, "__arrow_c_stream__") and not _is_numbers(X)
        if not mixed:
            X = validate_data(
                self,
                X,
                reset=reset,
                dtype=np.float64,
                ensure_all_finite="allow-nan",
                ensure_min_samples=2 if reset else 1,
            )
            names = [f"x{i}" for i in range(X.shape[1])]
            if reset:
                self._kinds = dict.fromkeys(names, "number")
            return dict(zip(names, X.T, strict=True))
        _check_feature_names(self, X, reset=reset)
        _check_n_features(self, X, reset=reset)
        table = pa.table(X.reset_index(drop=True) if hasattr(X, "iloc") else X)
        columns = {f"x{i}": table.column(i) for i in range(table.num_columns)}
        shown = dict(zip(columns, table.column_names, strict=True))
        try:
            if reset:
                found = {n: kind_of(values, shown[n]) for n, values in columns.items()}
                self._kinds = {name: kind for name, kind in found.items() if kind}
            return {n: raw_column(columns[n], kind, shown[n]) for n, kind in self._kinds.items()}
        except BendError as error:
            raise ValueError(str(error)) from None


class BagClassifier(ClassifierMixin, _Bag):  # type: ignore[misc]
    """A bag of networks that tells classes apart.

    Numbers, truth values, dates and categories of a frame may be missing, and categories new.

    Args:
        network: as of ``bend_ray.fit``; None for a small dense one.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on examples ``X`` and their classes ``y``."""
        raw = self._raw(X, reset=True)
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        count = len(next(iter(raw.values())))
        if len(y) != count:
            raise ValueError(f"expected as many labels as examples, got {len(y)} of {count}")
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X)
        seen = np.ones(count, bool) if weights is None else weights > 0
        self.classes_, codes = np.unique(y, return_inverse=True)
        present = np.unique(codes[seen])
        if len(present) < 2:
            self._only: int | None = int(present[0])
            return self
        self._only = None
        return self._fit(raw, codes.astype(np.int64), weights, Classification())

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities ``(N, C)``, in the order of ``classes_``."""
        check_is_fitted(self)
        raw = self._raw(X, reset=False)
        if self._only is not None:
            certain = np.zeros((len(next(iter(raw.values()))), len(self.classes_)))
            certain[:, self._only] = 1.0
            return certain
        probs: NDArray[np.float64] = self._answers(raw).numpy()
        return probs

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each example."""
        best_N = self.predict_proba(X).argmax(axis=1)
        predicted: NDArray[Any] = self.classes_[best_N]
        return predicted

    @property
    def _num_classes(self) -> int:
        return len(self.classes_)


class BagRegressor(RegressorMixin, _Bag):  # type: ignore[misc]
    """A bag of networks that tells numbers, with how sure it is.

    Args:
        network: as of ``bend_ray.fit``; None for a small dense one.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on examples ``X`` and their targets ``y``, ``(N,)`` or ``(N, T)``."""
        raw = self._raw(X, reset=True)
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._is_flat = y.ndim == 1
        count = len(next(iter(raw.values())))
        if len(y) != count:
            raise ValueError(f"expected as many targets as examples, got {len(y)} of {count}")
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X)
        return self._fit(raw, y.reshape(len(y), -1), weights, Regression())

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Means of the targets; with ``return_std`` also their standard deviations."""
        check_is_fitted(self)
        mean, variance = self._answers(self._raw(X, reset=False)).chunk(2, dim=1)
        found = [each.numpy()[:, 0] if self._is_flat else each.numpy() for each in (mean, variance)]
        return (found[0], np.sqrt(found[1])) if return_std else found[0]

    def predict_interval(self, X: Any, coverage: float = 0.9) -> NDArray[np.float64]:
        """Lower and upper ends of central intervals, ``(..., 2)``."""
        mean, std = self.predict(X, return_std=True)
        half = NormalDist().inv_cdf(0.5 + coverage / 2) * std
        return np.stack([mean - half, mean + half], axis=-1)


def _is_numbers(frame: Any) -> bool:
    """Whether all columns hold numbers or truth values."""
    try:
        schema = pa.table(frame.iloc[:0] if hasattr(frame, "iloc") else frame).schema
    except (pa.ArrowException, TypeError, ValueError):
        return True  # scikit-learn says what is wrong with it
    return all(
        pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_boolean(t)
        for t in schema.types
    )


def _in_order(raw: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Rows in an order that their content decides: a fit does not hang on how they come."""
    mixed_N = np.zeros(len(labels), np.uint64)
    for values in (*raw.values(), *labels.reshape(len(labels), -1).T):
        if values.dtype.kind == "U":
            _, values = np.unique(values, return_inverse=True)
        bits_N = (values.astype(np.float64) + 0.0).view(np.uint64)
        mixed_N = (mixed_N ^ bits_N) * np.uint64(0x9E3779B97F4A7C15)
        mixed_N ^= mixed_N >> np.uint64(29)
    return np.argsort(mixed_N, kind="stable")


def _repeated(rows: NDArray[np.int64], weights: Any, chance: Any) -> NDArray[np.int64]:
    """Rows as often as their weights say: whole numbers as they are, others rounded finely."""
    if weights is None:
        return rows
    weights_N = np.asarray(weights)[rows]
    if (weights_N != np.rint(weights_N)).any():
        weights_N = weights_N * FINE_WEIGHTS * len(rows) / weights_N.sum()
    # Systematic resampling: each row its weight, rounded down or up.
    ends = np.floor(np.cumsum(weights_N) + 0.5).astype(np.int64)
    return rows.repeat(np.diff(ends, prepend=0))


def _folds(
    labels: NDArray[Any], folds: int | None, task: Task, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Training and validation rows, of each fold."""
    count = len(labels)
    chance_N = np.random.default_rng(seed).permutation(count)
    table = pa.table({"y": labels.reshape(count, -1)[:, 0]})
    order_N, _ = Stratified().order(table, "y", chance_N)
    if folds is None:
        folds = 4 if count <= MOST_FOLDED else 1
    if folds == 1:
        held = min(MOST_FOLDED, count // 5)
        return [(order_N[held:], order_N[:held])]
    parts = np.array_split(order_N, min(folds, count))
    return [(np.setdiff1d(order_N, part), part) for part in parts]


def _affordable(config: PipelineConfig, classifiers: Classifiers, seconds: float) -> PipelineConfig:
    """The config, its training as short as can be done in so many seconds, of a few steps timed."""
    recipe, models = config.seeds.recipe, config.seeds.num_models
    whole = recipe.num_steps(1, len(classifiers.dataset.train))
    fresh_P = initial_parameters(classifiers.build, classifiers.whole.flatten, 0)
    generators = [torch.Generator().manual_seed(model) for model in range(models)]
    started = time.monotonic()
    stretch = Stretch(start=0.0, epochs=TIMED_STEPS / whole)
    classifiers.fit(classifiers.stack, fresh_P.repeat(models, 1), stretch, generators)
    spent = time.monotonic() - started
    epochs = int((seconds - spent) * USED / (spent / TIMED_STEPS * whole))
    return with_knobs(config, {"seeds.recipe.epochs": max(1, min(recipe.epochs, epochs))})
