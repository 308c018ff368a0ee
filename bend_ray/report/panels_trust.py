"""Figures of probabilities: reliability before and after temperature scaling, and rejection."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bend_ray.report import ink
from bend_ray.report.results import BAG, DEEP_ENSEMBLE, named
from bend_ray.report.runs import Run

_MEMBER = "member"
_BINS = 15
_FEWEST_IMAGES = 5
_Array = NDArray[np.float64]
_SHIFTED = {
    "accuracy": "answers that are right (%)",
    "nll": "NLL (nats)",
    "ece": "ECE (%)",
    "coverage": "sets for 90 % that hold the truth (%)",
}
_LOOKS: dict[str, ink.Look] = {
    "before": {"color": ink.BLUE, "marker": "o", "linestyle": ink.DASHES[1]},
    "after": {"color": ink.VERMILLION, "marker": "^", "linestyle": "-"},
}

_HALF_90 = 1.6449
"""Deviations to either side of a normal distribution's mean that hold 90 % of it."""


def panels(runs: Sequence[Run]) -> list[ink.Panel]:
    """A member's and the bag's reliability, rejection, single numbers, and scores under shift."""
    found = [_reliability(runs, _MEMBER), _reliability(runs, BAG), _rejection(runs)]
    if numbers := runs[0].evidence["bags"][BAG].get("predictions"):
        found.append(_predictions(numbers))
    if BAG in runs[0].evaluation.trust and runs[0].evaluation.trust[BAG].shift:
        calibrated = runs[0].evaluation.calibration is not None
        shown = [score for score in _SHIFTED if calibrated or score != "coverage"]
        found += [_shift(runs, score, _SHIFTED[score]) for score in shown]
    return found


def _predictions(found: dict[str, list[float]]) -> ink.Panel:
    """Residuals, and intervals of 90 %, by what was predicted."""
    panel = ink.Panel("predictions", "predicted", "target minus predicted", legend_rows=1)
    mean, std, target = (np.array(found[key]) for key in ("mean", "std", "target"))
    order = mean.argsort()
    half = _HALF_90 * std[order]
    panel.axes.axhline(0.0, color=ink.INK, linewidth=0.8)
    panel.axes.vlines(
        mean[order], -half, half, color=ink.SKY, alpha=0.35, linewidth=1.5, label="90 % interval"
    )
    inside = abs(target - mean) <= _HALF_90 * std
    points: ink.Look = {"s": 9, "linewidths": 0}
    for hit, color, name in ((inside, ink.BLUE, "inside"), (~inside, ink.VERMILLION, "outside")):
        panel.axes.scatter(mean[hit], (target - mean)[hit], color=color, label=name, **points)
    share = f"{100 * inside.mean():.1f} % of {len(mean)} targets lie inside"
    return panel.told(
        "Residuals and intervals",
        "What the bag says of single examples, and how sure it is of each.",
        f"{share} their interval of 90 %.",
    )


def _reliability(runs: Sequence[Run], name: str) -> ink.Panel:
    is_classes = runs[0].evaluation.bag.rmse is None
    panel = ink.Panel(
        f"reliability_{name}",
        "probability of the answer given (%)" if is_classes else "targets an interval is for (%)",
        "answers that are right (%)" if is_classes else "targets inside of it (%)",
        legend_rows=2,
    )
    panel.axes.plot([0, 1], [0, 1], color=ink.INK, linewidth=0.8, label="perfectly reliable")
    errors = {}
    for when, look in _LOOKS.items():
        diagrams = [run.evidence["bags"][name]["reliability"][when] for run in runs]
        errors[when] = statistics.fmean(_ece(_pooled([diagram])) for diagram in diagrams)
        bins_3B = _pooled(diagrams)
        x, y, counts = bins_3B[:, bins_3B[2] >= _FEWEST_IMAGES]
        if not len(x):
            continue
        panel.axes.plot(x, y, **look | {"marker": ""}, linewidth=1.0)
        area = 8 + 130 * counts / counts.sum()
        points = {"color": look["color"], "marker": look["marker"]}
        panel.axes.scatter(x, y, s=area, **points, linewidths=0, alpha=0.85)
        panel.axes.plot([], [], **look, label=f"{when} temperature scaling")
    temperature = statistics.fmean(run.evidence["bags"][name]["temperature"] for run in runs)
    whose = "its median member" if name == _MEMBER else "the bag"
    better = f"ECE {100 * errors['before']:.2f} % before and {100 * errors['after']:.2f} % after"
    return panel.told(
        f"Reliability of {whose}",
        f"Temperature {temperature:.2f}, fitted on validation images: {better}. Larger marks hold "
        f"more examples, fewer than {_FEWEST_IMAGES} are not drawn; above the line is too "
        "modest, below too sure.",
        f"Reliability diagram of {whose}: {better} scaling with temperature {temperature:.2f}.",
    )


def _ece(bins_3B: _Array) -> float:
    confidence, accuracy, count = bins_3B
    return float(np.average(abs(accuracy - confidence), weights=count))


def _pooled(diagrams: Sequence[dict[str, list[float]]]) -> _Array:
    """Bins of all repeats together: mean confidence, accuracy and images, a row each."""
    confidence, accuracy, count = (
        np.concatenate([np.array(diagram[key], dtype=np.float64) for diagram in diagrams])
        for key in ("confidence", "accuracy", "count")
    )
    # A bin holds its upper edge, as in ``ensemble.trust.reliability``.
    place = np.ceil(confidence * _BINS).astype(int)
    weights = (confidence * count, accuracy * count, count)
    sums_3B = np.stack([np.bincount(place, each) for each in weights])
    filled_3B = sums_3B[:, sums_3B[2] > 0]
    return np.vstack([filled_3B[:2] / filled_3B[2], filled_3B[2]])


def _rejection(runs: Sequence[Run]) -> ink.Panel:
    panel = ink.Panel(
        "rejection",
        "images that are answered, the surest first (%)",
        "answers that are right (%)" if runs[0].evaluation.bag.rmse is None else "R² (%)",
        legend_rows=2,
    )
    sentences = []
    for name in (_MEMBER, DEEP_ENSEMBLE, BAG):
        if name not in runs[0].evidence["bags"]:
            continue
        curves = [run.evidence["bags"][name]["rejection"] for run in runs]
        accuracy = np.mean([curve["accuracy"] for curve in curves], axis=0)
        coverage = np.array(curves[0]["coverage"])
        look = {key: ink.LOOKS[name][key] for key in ("color", "linestyle")}
        panel.axes.plot(coverage, accuracy, **look, label=named(name))
        answered = accuracy[abs(coverage - 0.9).argmin()]
        sentences.append(f"{named(name)} {100 * answered:.2f} %")
    return panel.told(
        "Refusing the least certain",
        f"The {runs[0].evaluation.score} when the least certain are left to somebody else.",
        f"At 90 % coverage: {', '.join(sentences)}.",
    )


def _shift(runs: Sequence[Run], score: str, label: str) -> ink.Panel:
    """A score by severity, the mean over corruptions and repeats."""
    panel = ink.Panel(f"shift_{score}", "severity of corruption", label, legend_rows=2)
    trusts, sentences = [run.evaluation.trust for run in runs], []
    kinds = list(trusts[0][BAG].shift)
    for name in (_MEMBER, DEEP_ENSEMBLE, "trunk_averages", "multiswag", BAG):
        if name not in trusts[0]:
            continue
        figures = [
            [getattr(each, score) for each in trust[name].shift[kind].values()]
            for trust in trusts
            for kind in kinds
        ]
        mean = np.array(figures, dtype=np.float64).mean(axis=0)
        panel.axes.plot(range(1, len(mean) + 1), mean, **ink.LOOKS[name], label=named(name))
        sentences.append(f"{named(name)} {mean[0]:.4f} to {mean[-1]:.4f}")
    what = ", ".join(kinds).replace("_", " ")
    return panel.told(
        f"Under shift: {score.upper() if len(score) == 3 else score}",
        f"Mean over {what}. Temperatures and sets are those of the data as it was.",
        f"{label} from the least to the highest severity: {'; '.join(sentences)}.",
    )
