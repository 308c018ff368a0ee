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
    if BAG in runs[0].result.trust and runs[0].result.trust[BAG].shift:
        calibrated = runs[0].result.calibration is not None
        shown = [score for score in _SHIFTED if calibrated or score != "coverage"]
        found += [_shift(runs, score) for score in shown]
    return found


def _predictions(found: dict[str, list[float]]) -> ink.Panel:
    """Residuals, and intervals of 90 %, by what was predicted."""
    panel = ink.Panel("predictions", "predicted", "target minus predicted")
    mean, std, target = (np.array(found[key]) for key in ("mean", "std", "target"))
    order = mean.argsort()
    half = _HALF_90 * std[order]
    panel.axes.axhline(0.0, color=ink.INK, linewidth=0.8)
    bars: ink.Look = {"color": ink.SKY, "alpha": 0.35, "linewidth": 1.5, "label": "90 % interval"}
    panel.axes.vlines(mean[order], -half, half, **bars)
    inside = abs(target - mean) <= _HALF_90 * std
    for hit, color, name in ((inside, ink.BLUE, "inside"), (~inside, ink.VERMILLION, "outside")):
        panel.points(mean[hit], (target - mean)[hit], name, color=color, s=9)
    panel.say(f"{100 * inside.mean():.1f} % of {len(mean)} targets lie inside")
    return panel.told()


def _reliability(runs: Sequence[Run], name: str) -> ink.Panel:
    x_label, y_label = (
        ("probability of the answer given (%)", "answers that are right (%)")
        if runs[0].result.bag.rmse is None
        else ("targets an interval is for (%)", "targets inside of it (%)")
    )
    panel = ink.Panel(f"reliability_{name}", x_label, y_label)
    panel.axes.plot([0, 1], [0, 1], color=ink.INK, linewidth=0.8, label="perfectly reliable")
    bags, errors = [run.evidence["bags"][name] for run in runs], {}
    for when, look in _LOOKS.items():
        diagrams = [bag["reliability"][when] for bag in bags]
        # Mean gap of confidence and accuracy, by how many examples a bin has.
        gaps = [(abs(y - x), counts) for x, y, counts in (_pooled([each]) for each in diagrams)]
        errors[when] = 100 * statistics.fmean(np.average(g, weights=w) for g, w in gaps)
        bins_3B = _pooled(diagrams)
        x, y, counts = bins_3B[:, bins_3B[2] >= _FEWEST_IMAGES]
        if len(x):
            points = {"color": look["color"], "marker": look["marker"], "linewidths": 0}
            panel.axes.plot(x, y, **look | {"marker": ""}, linewidth=1.0)
            panel.axes.scatter(x, y, s=8 + 130 * counts / counts.sum(), **points, alpha=0.85)
            panel.axes.plot([], [], **look, label=f"{when} temperature scaling")
        panel.say(f"ECE {errors[when]:.2f} % {when} scaling")
    temperature = statistics.fmean(bag["temperature"] for bag in bags)
    values: ink.Look = {**errors, "temperature": temperature, "fewest": _FEWEST_IMAGES}
    whose = "its median member" if name == _MEMBER else "the bag"
    return panel.told("reliability", whose=whose, **values)


def _pooled(diagrams: Sequence[dict[str, list[float]]]) -> _Array:
    """Bins of all repeats together: mean confidence, accuracy and images, a row each."""
    confidence, accuracy, count = (
        np.concatenate([np.array(diagram[key], dtype=np.float64) for diagram in diagrams])
        for key in ("confidence", "accuracy", "count")
    )
    # A bin holds its upper edge, as in ``ensemble.metrics.reliability``.
    place = np.ceil(confidence * _BINS).astype(int)
    weights = (confidence * count, accuracy * count, count)
    sums_3B = np.stack([np.bincount(place, each) for each in weights])
    filled_3B = sums_3B[:, sums_3B[2] > 0]
    return np.vstack([filled_3B[:2] / filled_3B[2], filled_3B[2]])


def _rejection(runs: Sequence[Run]) -> ink.Panel:
    of = runs[0].result
    panel = ink.Panel(
        "rejection",
        "examples that are answered, the surest first (%)",
        "answers that are right (%)" if of.bag.rmse is None else "R² (%)",
    )
    for name in (_MEMBER, DEEP_ENSEMBLE, BAG):
        if name in runs[0].evidence["bags"]:
            curves = [run.evidence["bags"][name]["rejection"] for run in runs]
            coverage = np.array(curves[0]["coverage"])
            accuracy = np.mean([curve["accuracy"] for curve in curves], axis=0)
            panel.axes.plot(
                coverage, accuracy, **ink.LOOKS[name] | {"marker": ""}, label=named(name)
            )
            panel.say(f"{named(name)} {100 * accuracy[abs(coverage - 0.9).argmin()]:.2f} % at 90 %")
    return panel.told(what=of.score)


def _shift(runs: Sequence[Run], score: str) -> ink.Panel:
    """A score by severity, the mean over corruptions and repeats."""
    panel = ink.Panel(f"shift_{score}", "severity of corruption", _SHIFTED[score])
    trusts = [run.result.trust for run in runs]
    for name in (_MEMBER, DEEP_ENSEMBLE, "trunk_averages", "multiswag", BAG):
        if name in trusts[0]:
            figures = [
                [getattr(each, score) for each in by_severity.values()]
                for trust in trusts
                for by_severity in trust[name].shift.values()
            ]
            mean = np.array(figures, dtype=np.float64).mean(axis=0)
            panel.line(range(1, len(mean) + 1), mean, named(name), **ink.LOOKS[name])
    what = score.upper() if len(score) == 3 else score
    corruptions = ", ".join(trusts[0][BAG].shift).replace("_", " ")
    return panel.told("shift", what=what, corruptions=corruptions)
