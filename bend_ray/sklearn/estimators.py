"""``BagClassifier`` and ``BagRegressor``.

Shape letters: N examples, F numbers of an example, C classes, T targets, K members, P parameters.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from numbers import Integral, Real
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state, validation
from sklearn.utils._param_validation import Interval
from sklearn.utils.multiclass import check_classification_targets

from bend_ray.api import architecture_of
from bend_ray.data.arrays import SINGLE, Arrays
from bend_ray.data.columns import Column, Columns, Kind, encode
from bend_ray.data.files import Part
from bend_ray.ensemble import conformal
from bend_ray.ensemble.votes import SoftVote
from bend_ray.errors import BendError
from bend_ray.export.card import Card
from bend_ray.export.files import refuse_strangers
from bend_ray.export.folder import publish_bag, raw_input
from bend_ray.networks.architectures import Architecture, Mlp
from bend_ray.networks.stacking import Stack, form_for, predict_logits
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.process.log import quiet
from bend_ray.sklearn.members import Workshop
from bend_ray.sklearn.rows import Raw, divide, holds_numbers, named, raw_of
from bend_ray.storage.masking import utf8
from bend_ray.tasks import Classification, Regression, Task
from bend_ray.version import __version__

_COUNT = Interval(Integral, 1, None, closed="left")
_POSITIVE = Interval(Real, 0, None, closed="neither")
CHUNK = 4096
"""Examples answered at a time."""
TOGETHER = 2**12
"""Examples that all models of a step see: more need memory and save no time (measured)."""
NOTHING = ""
"""The column of examples that say nothing, always 0."""
STEPS = 300
"""Of the training of models that a generator learns, at least."""
MOST_STEPS = 1200
"""Of others', which ends when their bag gets no better."""


class _Bag(BaseEstimator):  # type: ignore[misc]
    """What both estimators have in common: what there is to set, training and answering.

    Args:
        network: as of ``bend_ray.fit``; None: a small dense one.
        members: votes that networks have together, over all folds; of fewer than folds each has one
            of its own.
        candidates: networks that begin for each vote, every one with a rate, decay, smoothing and
            dropout of its own, 1: all alike. Who votes, and as it was when, is chosen by validation
            while they train; most are given up soon.
        folds: parts of the examples, each of which is validated by members that never saw it; 1
            holds a fifth out; None: 4 up to 5,000 examples, else 1.
        epochs: of the training, at most; None: of 1,200 steps. It ends when the bag's NLL on
            validation examples gets no better.
        learning_rate: of AdamW; None: 0.003.
        batch_size: examples a step; None: by how many there are.
        draw: whether models drawn by a generator vote, instead of those it is learnt from.
        time_limit: seconds in which to be done, about: training is shortened; None: none.
        random_state: of everything.
        calibration: share of the examples kept back from all else, by which ``predict_set`` or
            ``predict_interval`` promise what they hold; 0: none.
        store: with ``draw``, folder or URI where artifacts stay; None: they are removed.
        address: of a Ray cluster to train on; with ``draw`` it must reach the store; None: here.
        settings: further knobs by path, as in ``{"seeds.recipe.label_smoothing": 0.05}``.
        verbose: whether to tell of progress on stderr.
    """

    def __init__(
        self,
        network: Any = None,
        *,
        members: int = 64,
        candidates: int = 2,
        folds: int | None = None,
        epochs: int | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        draw: bool = False,
        time_limit: float | None = None,
        random_state: Any = None,
        calibration: float = 0.0,
        store: str | None = None,
        address: str | None = None,
        settings: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        self.network = network
        self.members = members
        self.candidates = candidates
        self.folds = folds
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.draw = draw
        self.time_limit = time_limit
        self.random_state = random_state
        self.calibration = calibration
        self.store = store
        self.address = address
        self.settings = settings
        self.verbose = verbose

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **{key: [_COUNT] for key in ("members", "candidates")},
        **{key: [_COUNT, None] for key in ("folds", "batch_size")},
        **{key: [_POSITIVE, None] for key in ("epochs", "learning_rate", "time_limit")},
        "calibration": [Interval(Real, 0, 1, closed="left")],
        "draw": ["boolean"],
        "verbose": ["verbose"],
        "store": [str, os.PathLike, None],
        "address": [str, None],
        "settings": [Mapping, None],
    }
    calibration_: conformal.Calibration | None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _raw(self, X: Any, *, reset: bool) -> Raw:
        """Raw columns of what a user gives: an array of numbers, or a frame."""
        if reset:
            self._validate_params()
        is_frame = hasattr(X, "__arrow_c_stream__")
        if is_frame and (len(getattr(X, "shape", (1, 1))) < 2 or min(np.shape(X)) < 1 + reset):
            # scikit-learn's own words of what is no table of examples.
            validation.check_array(np.zeros(np.shape(X)), ensure_min_samples=1 + reset)
        plain = reset or {*self._kinds.values()} <= {"number", "boolean"}
        if not (is_frame or plain):
            raise ValueError(
                "X: expected a frame, as the bag was fitted on one with texts, dates or "
                f"categories, got a {type(X).__name__}"
            )
        if not is_frame or (plain and holds_numbers(X)):
            checks = {"ensure_all_finite": "allow-nan", "ensure_min_samples": 2 if reset else 1}
            X = validation.validate_data(self, X, reset=reset, dtype=np.float64, **checks)
            raw = named(X.T)
            if reset:
                self._kinds: dict[str, Kind] = dict.fromkeys(raw, "number")
            return raw | {NOTHING: np.zeros(len(X))}
        validation._check_feature_names(self, X, reset=reset)
        validation._check_n_features(self, X, reset=reset)
        raw, self._kinds = raw_of(X, None if reset else self._kinds)
        if reset and (dropped := self.n_features_in_ - len(self._kinds)):
            shown = named(map(str, getattr(self, "feature_names_in_", range(len(X)))))
            names = [shown[name] for name in shown if name not in self._kinds]
            warnings.warn(
                f"left out are {dropped} columns of texts of many values, or of none, such as "
                f"{names[0]}; make texts of type category to learn from them",
                stacklevel=3,
            )
        return raw | {NOTHING: np.zeros(len(X))}

    def _weights(self, X: Any, y: Any, sample_weight: Any) -> Any:
        """Weights of the examples, None where all count alike; ValueError where they do not fit."""
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        validation.check_consistent_length(X, y)
        if sample_weight is None:
            return None
        return validation._check_sample_weight(sample_weight, X, ensure_non_negative=True)

    def _fit(self, raw: Raw, labels_N: NDArray[Any], weights: Any, task: Task) -> Self:
        """Train on raw columns and labels: codes of classes, or targets ``(N, T)``."""
        started = time.monotonic()
        for path in self.settings or {}:
            if not isinstance(path, str) or path.split(".")[0] == "dataset":
                raise ValueError(f"settings: expected paths of knobs but dataset's, got {path!r}")
        seed = int(check_random_state(self.random_state).randint(2**31))
        folds = 1 if self.draw and self.folds is None else self.folds
        divided = divide(raw, labels_N, weights, self.calibration, folds, seed)
        rows = divided.rows
        found = {n: Column.fitted(self._kinds[n], raw[n][rows]) for n in self._kinds}
        self.columns_: Columns = {name: column for name, column in found.items() if column}
        if not self.columns_:
            # What never varies says nothing: the bag tells how the targets are distributed.
            self.columns_ = {NOTHING: Column(kind="number", knots=(0.0,), scores=(0.0,))}
        self._task: Task = task.fitted(torch.from_numpy(labels_N[rows]))
        try:
            with quiet(self.verbose), tempfile.TemporaryDirectory() as scratch:
                last = "samples" if self.draw else "seeds"
                workshop = Workshop(self.store or scratch, self.address, last)
                parts = divided.folds[: self.members]
                self._train(workshop, raw, labels_N, parts, seed, started)
        except BendError as error:
            raise ValueError(str(error).removeprefix("dataset: ")) from error
        self.calibration_ = None
        if len(held := divided.held):
            answers = self._answers({name: values[held] for name, values in raw.items()})
            self.calibration_ = self._task.calibration(answers, torch.from_numpy(labels_N[held]))
        return self

    def _train(
        self,
        workshop: Workshop,
        raw: Raw,
        labels_N: NDArray[Any],
        parts: Sequence[Mapping[Part, NDArray[np.int64]]],
        seed: int,
        started: float,
    ) -> None:
        """Members of every fold, and the scale that fits what they say of examples unseen."""
        inputs_NF = encode(self.columns_, raw)
        names = self._class_names or None
        given = [
            {
                part: Arrays.of({SINGLE: inputs_NF[own]}, labels_N[own], names, task=self._task)
                for part, own in fold.items()
            }
            for fold in parts
        ]
        del inputs_NF  # of which folds hold all from here on
        sections = self._sections(len(parts[0]["train"]), self.members // len(parts), seed)
        left = None
        if self.time_limit is not None:
            left = self.time_limit - (time.monotonic() - started)
        found = workshop.train(sections, given, self._task, self.settings or {}, left)
        self._architecture: Architecture = found.architecture
        self._theta_KP, self._weight_K = found.theta_KP, found.weight_K
        answers = self._task.answers(found.ballots_NO)
        self.scale_: float = self._task.fit_scale(answers, found.labels_N)

    def _sections(self, train: int, models: int, seed: int) -> dict[str, Any]:
        """Of the config: a contest, or models trained alike, which a generator learns."""
        batch, steps = self.batch_size or min(256, max(32, train // 10)), STEPS
        rate: dict[str, Any] = {"kind": "adamw", "learning_rate": self.learning_rate or 0.003}
        recipe: dict[str, Any] = {"batch_size": batch, "optimizer": rate}
        protocol: dict[str, Any] = {"kind": "independent", "models": models}
        if not self.draw:
            protocol = {"kind": "varied", "models": models, "candidates": self.candidates}
            protocol["align"] = False
            if self.candidates == 1:
                alike = {"rate": 1, "decay": 1, "label_smoothing": 0, "dropout": 0}
                protocol["variation"] = alike
            else:
                rate["weight_decay"] = 0.3  # around which they differ
            # At a constant rate a moving average is as good at any look as at the end.
            recipe |= {"schedule": {"kind": "constant"}, "ema_decay": 0.99}
            steps = MOST_STEPS
        recipe["epochs"] = self.epochs or max(4, math.ceil(steps * batch / train))
        network = Mlp(hidden=(128,)) if self.network is None else self.network
        seeds = {
            "architecture": architecture_of(network),
            "recipe": recipe,
            "protocol": protocol,
            "held_out": 0.0,
            "cohort_size": max(1, TOGETHER // batch),
        }
        return {"seed": seed, "seeds": seeds}

    def _network(self) -> tuple[torch.nn.Module, ParameterLayout]:
        width = sum(column.width for column in self.columns_.values())
        outputs = self._task.num_outputs(self._class_names or self._task.mean)  # type: ignore
        with torch.random.fork_rng(devices=[]):
            module = self._architecture.build((width,), outputs)
        return module, ParameterLayout.of(module)

    def _answers(self, raw: Raw) -> torch.Tensor:
        """The bag's answers, in float64: nothing hangs on who is asked beside."""
        inputs_NF = torch.from_numpy(encode(self.columns_, raw)).double()
        module, layout = self._network()
        stack = Stack(module.double(), layout, form_for(module, "cpu", inputs_NF[:1]))
        theta_KP, ballots = self._theta_KP.double(), []
        for start in range(0, len(inputs_NF), CHUNK):
            outputs_KNO = predict_logits(stack, theta_KP, inputs_NF[start : start + CHUNK])
            ballots_KNO = self._task.ballots(outputs_KNO)
            ballots.append(torch.tensordot(self._weight_K, ballots_KNO, 1))
        return self._task.scaled(self._task.answers(torch.cat(ballots)), self.scale_)

    def _sets(self, answers: NDArray[Any], coverage: float, kind: str | None = None) -> Any:
        """What examples kept back promise; ValueError where they cannot."""
        assert self.calibration_ is not None
        try:
            self.calibration_.check(coverage, kind)
            return self.calibration_.sets(answers, coverage, kind)
        except BendError as error:
            raise ValueError(str(error)) from error

    def export(self, output: str | Path) -> None:
        """Write the bag as ``bend export`` does: for ``bend serve``, ``bend_ray.load_bag``, ONNX.

        Its inputs are the columns by name; those without one are x0, x1, ... by their place.

        Args:
            output: folder or URI; new, empty, or an earlier export, which is replaced.

        Raises:
            ConfigError: something else is there.
            StoreError: it cannot be written.
            ValueError: there was one class alone.
        """
        validation.check_is_fitted(self)
        if getattr(self, "_only", None) is not None:
            raise ValueError("export: expected a bag of two classes at least, was fitted on one")
        if NOTHING in self.columns_:
            raise ValueError("export: expected a column that varies, was fitted on none")
        refuse_strangers(str(output))
        own, count = [*named(range(self.n_features_in_))], len(self._theta_KP)
        told = map(str, getattr(self, "feature_names_in_", own))
        names = {name: shown or name for name, shown in zip(own, told, strict=True)}
        inputs = {names[name]: raw_input(column) for name, column in self.columns_.items()}
        content = f"{inputs}".encode() + self._theta_KP.numpy().tobytes()
        card = Card(
            model_version=hashlib.sha256(content).hexdigest()[:12],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            bend_ray=__version__,
            architecture=self._architecture,
            inputs=inputs,
            task=self._task,
            class_names=self._told_names,
            vote=SoftVote(),
            members=tuple(range(count)),
            weights=tuple(self._weight_K.tolist()),
            temperature=self.scale_,
            calibration=self.calibration_,
            dataset="table",
        )
        publish_bag(str(output), card, self._network()[1].unflatten(self._theta_KP))

    @property
    def _class_names(self) -> list[str]:
        return []

    @property
    def _told_names(self) -> tuple[str, ...]:
        """Of targets, which have no names here."""
        count = len(self._task.mean)  # type: ignore[union-attr]
        return ("y",) if count == 1 else tuple(f"y{target}" for target in range(count))


class BagClassifier(ClassifierMixin, _Bag):  # type: ignore[misc]
    """A bag of networks that tells classes apart.

    A frame's columns may be numbers, truth values, dates and categories, also missing or new ones.
    Whole sample weights repeat an example; others are rounded to quarters of one, on average.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on examples ``X`` and their classes ``y``."""
        weights = self._weights(X, y, sample_weight)
        raw = self._raw(X, reset=True)
        y = validation.column_or_1d(
            validation.check_array(y, ensure_2d=False, dtype=None, input_name="y"), warn=True
        )
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        present = np.unique(codes if weights is None else codes[weights > 0])
        self._only = int(present[0]) if len(present) == 1 else None
        if self._only is not None:
            self.calibration_ = None
            return self
        return self._fit(raw, codes.astype(np.int64), weights, Classification())

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities ``(N, C)``, in the order of ``classes_``."""
        validation.check_is_fitted(self)
        raw = self._raw(X, reset=False)
        if self._only is not None:
            certain_C = np.eye(len(self.classes_))[self._only]
            return np.tile(certain_C, (len(next(iter(raw.values()))), 1))
        return self._answers(raw).numpy()

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each example."""
        best_N = self.predict_proba(X).argmax(axis=1)
        predicted: NDArray[Any] = self.classes_[best_N]
        return predicted

    def predict_set(
        self, X: Any, coverage: float = 0.9, kind: conformal.SetKind = "thr"
    ) -> NDArray[np.bool_]:
        """Which of ``classes_`` each example's set holds, ``(N, C)``.

        Args:
            X: examples.
            coverage: share of the sets that hold the truth, of examples like those kept back.
            kind: ``thr``, ``aps`` or ``raps``; see ``ensemble.conformal.nonconformity``.

        Raises:
            ValueError: none were kept back, or too few for the coverage.
        """
        probs_NC = self.predict_proba(X)
        if self._only is not None:
            return probs_NC > 0
        if self.calibration_ is None:
            raise ValueError("predict_set: expected calibration, a share kept back, got 0; fit so")
        return np.asarray(self._sets(probs_NC, coverage, kind), dtype=np.bool_)

    @property
    def _class_names(self) -> list[str]:
        return list(map(str, range(len(self.classes_))))

    @property
    def _told_names(self) -> tuple[str, ...]:
        return tuple(utf8(str(name)) for name in self.classes_.tolist())


class BagRegressor(RegressorMixin, _Bag):  # type: ignore[misc]
    """A bag of networks that tells numbers, and how sure it is of each.

    A frame's columns may be numbers, truth values, dates and categories, also missing or new ones.
    Whole sample weights repeat an example; others are rounded to quarters of one, on average.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on examples ``X`` and their targets ``y``, ``(N,)`` or ``(N, T)``."""
        weights = self._weights(X, y, sample_weight)
        raw = self._raw(X, reset=True)
        y = validation.check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        if y.ndim == 2 and y.shape[1] == 1:
            y = validation.column_or_1d(y, warn=True)
        self._is_flat = y.ndim == 1
        return self._fit(raw, y.reshape(len(y), -1), weights, Regression())

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Means of the targets; with ``return_std`` also their standard deviations."""
        validation.check_is_fitted(self)
        mean, variance = (a.numpy() for a in self._answers(self._raw(X, reset=False)).chunk(2, 1))
        found = mean, np.sqrt(variance)
        if self._is_flat:
            found = mean[:, 0], found[1][:, 0]
        return found if return_std else found[0]

    def predict_interval(self, X: Any, coverage: float = 0.9) -> NDArray[np.float64]:
        """Lower and upper ends of central intervals, ``(..., 2)``.

        They hold the truth as often as ``coverage`` says where examples were kept back.
        """
        validation.check_is_fitted(self)
        if self.calibration_ is not None:
            answers = self._answers(self._raw(X, reset=False)).numpy()
            return np.asarray(self._sets(answers, coverage), dtype=np.float64)
        if not (isinstance(coverage, int | float) and 0 < coverage < 1):
            raise ValueError(f"coverage: expected a share between 0 and 1, got {coverage!r}")
        mean, std = self.predict(X, return_std=True)
        half = NormalDist().inv_cdf(0.5 + coverage / 2) * std
        return np.stack([mean - half, mean + half], axis=-1)


for _estimator in (BagClassifier, BagRegressor):
    # What there is to set is said once.
    _, _, _settings = (_Bag.__doc__ or "").partition("answering.\n")
    _estimator.__doc__ = (_estimator.__doc__ or "").rstrip() + f"\n{_settings}"
