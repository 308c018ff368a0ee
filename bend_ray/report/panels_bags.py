"""Figures of bags: scores by size and by cost, the deep-ensemble equivalent, where time went.

And of their probabilities: reliability before and after temperature scaling, and rejection.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bend_ray.process.log import duration
from bend_ray.report import ink
from bend_ray.report.results import BAG, DEEP_ENSEMBLE, money, named, scored_bags
from bend_ray.report.runs import Run
from bend_ray.report.verdicts import AS_IT_IS, SCALED, equivalents

_FOREMOST = (BAG, DEEP_ENSEMBLE)
_AXES = {
    "size": "members that vote",
    "cost": "cost of all of it from scratch (CPU seconds, GPU where used)",
}
_EQUIVALENTS: dict[str, ink.Look] = {
    AS_IT_IS: {"color": ink.BLUE, "markerfacecolor": "none"},
    SCALED: {"color": ink.VERMILLION},
}
_SECONDS: dict[str, ink.Look] = {
    "wall": {"color": ink.SKY, "label": "wall clock"},
    "cpu": {"color": ink.VERMILLION, "label": "CPU", "hatch": "///"},
    "gpu": {"color": ink.GREEN, "label": "GPU", "hatch": "..."},
}
_MEMBER = "member"
_BINS = 15
_FEWEST_IMAGES = 5
_SHIFTED = {
    "accuracy": "answers that are right (%)",
    "nll": "NLL (nats)",
    "ece": "ECE (%)",
    "coverage": "sets for 90 % that hold the truth (%)",
}
_WHEN: dict[str, ink.Look] = {
    "before": {"color": ink.BLUE, "marker": "o", "linestyle": ink.DASHES[1]},
    "after": {"color": ink.VERMILLION, "marker": "^", "linestyle": "-"},
}
_HALF_90 = 1.6449
"""Deviations to either side of a normal distribution's mean that hold 90 % of it."""


@dataclass(frozen=True)
class _Line:
    """A score by size, S of them; over repeats the mean of means, and of the bands' edges."""

    name: str
    size: list[int]
    cost: NDArray[np.float64]
    bands_3S: NDArray[np.float64]
    """The mean, and the lower and the upper edge."""


def scores(runs: Sequence[Run]) -> list[ink.Panel]:
    """Both scores by size and by cost, deep-ensemble equivalents, and where the time went."""
    priced = all(run.result.bag.cost_seconds is not None for run in runs)
    by_size, by_cost = (
        [_by(runs, score, against) for score in ("accuracy", "nll") if priced or against == "size"]
        for against in _AXES
    )
    return [*by_size, *_equivalents(runs), *by_cost, _time_spent(runs)]


def _by(runs: Sequence[Run], score: str, against: str) -> ink.Panel:
    of = runs[0].result
    found = [_line(runs, name, score) for name in (BAG, *of.rivals)]
    lines = sorted(filter(None, found), key=lambda line: line.size == [1])
    label = ink.SCORES[score].format(of.part, of.score)
    panel = ink.Panel(f"{score}_by_{against}", _AXES[against], label)
    for line in lines:
        look = ink.LOOKS.get(line.name, {"color": ink.INK, "marker": "o"})
        x, (mean, low, high) = getattr(line, against), line.bands_3S
        panel.axes.fill_between(x, low, high, color=look["color"], alpha=0.1, linewidth=0)
        panel.line(x, mean, named(line.name), **look, zorder=3 if line.name in _FOREMOST else 2)
    panel.axes.set_ylim(*_limits(lines))
    if against == "size":
        panel.sizes()
    else:
        panel.axes.set_xscale("log", subs=())
        panel.axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    better = "higher" if score == "accuracy" else "lower"
    return panel.told(what=of.score.capitalize() if score == "accuracy" else "NLL", better=better)


def _line(runs: Sequence[Run], name: str, score: str) -> _Line | None:
    """Of a bag of one model a point; None where repeats have no sizes in common, or no score."""
    bags: list[dict[str, Any]] = [run.evidence["bags"][name] for run in runs]
    if all(bag["curve"] for bag in bags):
        sizes = [bag["curve"]["sizes"] for bag in bags]
        bands = [[bag["curve"][score][key] for key in ("mean", "low", "high")] for bag in bags]
    else:
        sizes = [[1] if bag["size"] == 1 else None for bag in bags]
        scores = [getattr(run.result.scores(name), score) for run in runs]
        bands = [[[value]] * 3 for value in scores if value is not None]
    if not bands or sizes[0] is None or any(size != sizes[0] for size in sizes):
        return None
    costs = [[bag["cost"][key] for key in ("fixed", "member")] for bag in bags]
    fixed, member = np.mean(np.array(costs, dtype=float), axis=0)  # nan: unknown
    return _Line(name, sizes[0], fixed + member * np.array(sizes[0]), np.mean(bands, axis=0))


def _limits(lines: Sequence[_Line]) -> tuple[float, float]:
    """Of what is worth telling apart: one broken rival must not flatten all others."""
    curves = [line for line in lines if line.size != [1]]
    listed = [line for line in curves if line.name in (*_FOREMOST, "originals_bag")]
    edges = np.concatenate([line.bands_3S[1:].ravel() for line in listed or curves or lines])
    low, high = edges.min(), edges.max()
    margin = 0.12 * (high - low) or 0.01
    return low - margin, high + margin


def _equivalents(runs: Sequence[Run]) -> list[ink.Panel]:
    """One, where a deep ensemble was trained."""
    bags = scored_bags([run.result for run in runs])
    measured = {named(name): found for name in bags if (found := equivalents(runs, name))}
    if not measured:
        return []
    panel = ink.Panel(
        "deep_ensemble_equivalent",
        "independent networks of the same NLL",
        height=max(2.2, 0.3 * len(measured) + 1.1),
    )
    kinds = list(next(iter(measured.values())))
    for kind in kinds:
        panel.axes.plot([], [], linestyle="none", marker="o", **_EQUIVALENTS[kind], label=kind)
    for level, (name, found) in enumerate(measured.items()):
        for kind, shift in zip(kinds, (-0.17, 0.17) if len(kinds) > 1 else (0.0,), strict=True):
            at, marker = (found[kind].members, level + shift), "o><"[found[kind].beyond]
            panel.axes.plot(*at, marker=marker, markersize=6, **_EQUIVALENTS[kind])
            panel.note(str(found[kind]), at)
            panel.say(f"{name} {found[kind]} {kind}")
    panel.rows(list(measured))
    largest = runs[0].evidence["bags"][DEEP_ENSEMBLE]["curve"]["sizes"][-1]
    panel.sizes()
    panel.axes.set_xlim(0.8, 1.6 * largest)
    how = "as the vote is and after" if AS_IT_IS in kinds else "after"
    return [panel.told(how=how, largest=largest)]


def _time_spent(runs: Sequence[Run]) -> ink.Panel:
    stages = list(runs[0].result.fingerprints)
    cost = {
        kind: [
            statistics.fmean(getattr(run.result.cost[stage], f"{kind}_seconds") for run in runs)
            for stage in stages
        ]
        for kind in _SECONDS
    }
    kinds = [kind for kind in _SECONDS if kind != "gpu" or any(cost["gpu"])]
    label = "seconds" + (f", mean of {len(runs)} repeats" if len(runs) > 1 else "")
    panel = ink.Panel("time_spent", label, height=0.42 * len(stages) + 1.0)
    thick = 0.8 / len(kinds)
    bar: ink.Look = {"height": 0.9 * thick, "linewidth": 0, "edgecolor": "white"}
    for shift, kind in enumerate(kinds):
        levels = np.arange(len(stages)) + (shift - (len(kinds) - 1) / 2) * thick
        panel.axes.barh(levels, cost[kind], **bar, **_SECONDS[kind])
        told = ", ".join(f"{s} {each:.1f}" for s, each in zip(stages, cost[kind], strict=True))
        panel.say(f"{_SECONDS[kind]['label']} {told}")
    panel.rows(stages)
    panel.axes.grid(visible=False, axis="y")
    wall, cpu = (duration(sum(cost[kind])) for kind in ("wall", "cpu"))
    spent = money([run.result for run in runs], stages).values()
    paid = "".join(f" At the prices given, its computing costs {each}." for each in spent)
    return panel.told(columns=3, wall=wall, cpu=cpu, paid=paid)


def trust(runs: Sequence[Run]) -> list[ink.Panel]:
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
    for when, look in _WHEN.items():
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


def _pooled(diagrams: Sequence[dict[str, list[float]]]) -> NDArray[np.float64]:
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
