"""Figures of single models: how good, how different, where in parameter space, and whether new."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from bend_ray.report import ink
from bend_ray.report.results import BAG, DEEP_ENSEMBLE, named
from bend_ray.report.runs import Run

_POPULATIONS: dict[str, ink.Look] = {
    "originals": {"color": ink.BLUE, "marker": "o"},
    "held_out": {"color": ink.SKY, "marker": "s"},
    "generated": {"color": ink.VERMILLION, "marker": "^"},
}
_BARS: dict[str, ink.Look] = {
    name: {"color": look["color"], "hatch": "////" if name == "held_out" else None}
    for name, look in _POPULATIONS.items()
}

_Array = NDArray[np.float64]


def panels(runs: Sequence[Run]) -> list[ink.Panel]:
    """All of them; the plane is that of the first repeat."""
    return [_accuracies(runs), _diversity(runs), _plane(runs[0], len(runs)), _nearest(runs)]


def _columns(runs: Sequence[Run], population: str, *keys: str) -> _Array:
    """A row a model with all of its figures, of all repeats together."""
    rows = [
        row
        for run in runs
        for row in zip(*(run.evidence["populations"][population][k] for k in keys), strict=True)
        if None not in row
    ]
    return np.array(rows, dtype=np.float64).reshape(-1, len(keys))


def _accuracies(runs: Sequence[Run]) -> ink.Panel:
    accuracies = {n: _columns(runs, n, "accuracy")[:, 0] for n in ("originals", "generated")}
    score = runs[0].result.score
    panel = ink.Panel("accuracies", f"test {score} of a model (%)", "share of models (%)")
    edges = _edges(np.concatenate([*accuracies.values()]), runs[0].evidence["images"]["test"])
    for name, accuracy in accuracies.items():
        panel.histogram(accuracy, edges, named(name), **_BARS[name])
    for name in (BAG, "originals_bag", DEEP_ENSEMBLE):
        if name in runs[0].evidence["bags"]:
            of_bag = statistics.fmean(run.result.scores(name).accuracy or 0.0 for run in runs)
            look = {key: ink.LOOKS[name][key] for key in ("color", "linestyle")}
            panel.axes.axvline(of_bag, **look, label=named(name))
            panel.say(f"{named(name)} {100 * of_bag:.2f} %")
    return panel.told(what=score.capitalize())


def _edges(accuracy: _Array, images: int) -> _Array:
    """Bins that hold whole numbers of right answers, about two dozen of them."""
    low, high = np.rint(accuracy.min() * images), np.rint(accuracy.max() * images)
    step = max(1, int(np.ceil((high - low + 1) / 24)))
    edges: _Array = np.arange(low - 0.5, high + step + 0.5, step) / images
    return edges


def _diversity(runs: Sequence[Run]) -> ink.Panel:
    of = runs[0].result
    label = (
        "examples on which it differs from another (%)"
        if of.bag.rmse is None
        else "distance from another (% of the targets' deviation)"
    )
    panel = ink.Panel("diversity", label, f"test {of.score} (%)")
    for name, look in _POPULATIONS.items():
        x, y = _columns(runs, name, "disagreement", "accuracy").T
        panel.points(x, y, f"{named(name)} ({len(x)})", **look, s=18, alpha=0.7)
    return panel.told(what=of.score)


def _plane(run: Run, repeats: int) -> ink.Panel:
    trunks = sorted(set(run.evidence["populations"]["originals"]["trunk"]))
    first, second = run.evidence["plane_shares"]
    panel = ink.Panel(
        "plane",
        f"first principal direction ({100 * first:.0f} % of the variance)",
        f"second ({100 * second:.0f} %)",
    )
    for name, look in _POPULATIONS.items():
        row, marker = run.evidence["populations"][name], look["marker"]
        colors = [_trunk_color(trunks, trunk) for trunk in row["trunk"]]
        x, y = np.array(row["plane"], dtype=np.float64).reshape(-1, 2).T
        drawn, filled = name == "generated", name != "held_out"
        panel.axes.scatter(
            *(x, y, 30 if drawn else 14),
            marker=marker,
            facecolors=colors if filled else "none",
            edgecolors=ink.INK if drawn else colors,
            linewidths=0.7,
            alpha=0.9 if drawn else 0.6,
            zorder=3 if drawn else 2,
            rasterized=len(x) > ink.MANY,
        )
        key: ink.Look = {"markerfacecolor": ink.GRID if filled else "none", "label": named(name)}
        panel.axes.plot([], [], linestyle="none", marker=marker, markeredgecolor=ink.INK, **key)
        panel.say(f"{len(x)} {named(name)}")
    which = " of the first repeat" if repeats > 1 else ""
    return panel.told(columns=3, which=which, trunks=len(trunks))


def _trunk_color(trunks: list[int], trunk: int) -> Any:
    if trunk not in trunks:
        return ink.INK
    place = trunks.index(trunk)
    if len(trunks) <= 2 * len(ink.CYCLE):
        return ink.CYCLE[place % len(ink.CYCLE)]
    return matplotlib.colormaps["cividis"](place / (len(trunks) - 1))


def _nearest(runs: Sequence[Run]) -> ink.Panel:
    label = "distance to the nearest original (originals' own median = 1)"
    panel = ink.Panel("nearest", label, "share of models (%)")
    ratios: dict[str, _Array] = {
        name: np.concatenate(
            [np.zeros(0)]
            + [
                _columns([run], name, "nearest")[:, 0] / run.evidence["usual_distance"]
                for run in runs
                if run.evidence["usual_distance"]
            ]
        )
        for name in ("held_out", "generated")
    }
    far = max((ratio.max() for ratio in ratios.values() if len(ratio)), default=1.0)
    edges = np.linspace(0, 1.05 * max(far, 1.0), 36)
    for name, ratio in ratios.items():
        if len(ratio):
            panel.histogram(ratio, edges, named(name), **_BARS[name])
    copy = runs[0].evidence["copy_ratio"]
    dashed: ink.Look = {"color": ink.INK, "linestyle": ink.DASHES[2]}
    panel.axes.axvline(copy, **dashed, label=f"a copy: below {copy:g}")
    panel.axes.set_xlim(0, edges[-1])
    drawn = ratios["generated"]
    panel.say(f"{(drawn < copy).sum()} of {len(drawn)} generated are copies, below {copy:g}")
    return panel.told()
