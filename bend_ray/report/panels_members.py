"""Figures of single models: how good, how different, where in parameter space, and whether new."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from bend_ray.report import ink
from bend_ray.report.results import BAG, DEEP_ENSEMBLE, named
from bend_ray.report.runs import Run

_POPULATIONS: dict[str, ink.Look] = {
    "originals": {"color": ink.BLUE, "marker": "o"},
    "held_out": {"color": ink.SKY, "marker": "s"},
    "generated": {"color": ink.VERMILLION, "marker": "^"},
}
_MANY = 2000
"""Points above which a scatter is stored as pixels."""

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
    scores = {
        name: statistics.fmean(run.evaluation.scores(name).accuracy or 0.0 for run in runs)
        for name in (BAG, "originals_bag", DEEP_ENSEMBLE)
        if name in runs[0].evidence["bags"]
    }
    panel = ink.Panel(
        "accuracies",
        f"test {runs[0].evaluation.score} of a model (%)",
        "share of models (%)",
        legend_rows=(len(accuracies) + len(scores) + 1) // 2,
    )
    images = runs[0].evidence["images"]["test"]
    edges = _edges(np.concatenate(list(accuracies.values())), images)
    for name, accuracy in accuracies.items():
        _histogram(panel.axes, accuracy, edges, name)
    for name, score in scores.items():
        look = {key: ink.LOOKS[name][key] for key in ("color", "linestyle")}
        panel.axes.axvline(score, **look, label=named(name))
    medians = ", ".join(f"{n} {100 * np.median(a):.2f} %" for n, a in accuracies.items())
    lines = ", ".join(f"{named(n)} {100 * s:.2f} %" for n, s in scores.items())
    return panel.told(
        f"{_what(runs)} of single models",
        "Trained and generated models as distributions, bags as lines.",
        f"Median {runs[0].evaluation.score} of models: {medians}. Bags: {lines}.",
    )


def _what(runs: Sequence[Run]) -> str:
    score = runs[0].evaluation.score
    return score[0].upper() + score[1:]


def _edges(accuracy: _Array, images: int) -> _Array:
    """Bins that hold whole numbers of right answers, about two dozen of them."""
    low, high = np.rint(accuracy.min() * images), np.rint(accuracy.max() * images)
    step = max(1, int(np.ceil((high - low + 1) / 24)))
    edges: _Array = np.arange(low - 0.5, high + step + 0.5, step) / images
    return edges


def _diversity(runs: Sequence[Run]) -> ink.Panel:
    panel = ink.Panel(
        "diversity",
        "examples on which it differs from another (%)"
        if runs[0].evaluation.bag.rmse is None
        else "distance from another (% of the targets' deviation)",
        f"test {runs[0].evaluation.score} (%)",
        legend_rows=2,
    )
    sentences = []
    for name, look in _POPULATIONS.items():
        x, y = _columns(runs, name, "disagreement", "accuracy").T
        if len(x):
            points: ink.Look = {
                "s": 18,
                "alpha": 0.7,
                "linewidths": 0,
                "rasterized": len(x) > _MANY,
            }
            panel.axes.scatter(x, y, **look, **points, label=f"{named(name)} ({len(x)})")
            mean = f"{100 * x.mean():.2f} % at {100 * y.mean():.2f} % {runs[0].evaluation.score}"
            sentences.append(f"{named(name)} {mean}")
    return panel.told(
        f"Diversity against {runs[0].evaluation.score}",
        "One point a model: how often it disagrees with the others of its population, on average. "
        "To the right and above is what a bag can use.",
        f"Mean disagreement: {'; '.join(sentences)}.",
    )


def _plane(run: Run, repeats: int) -> ink.Panel:
    trunks = sorted(set(run.evidence["populations"]["originals"]["trunk"]))
    first, second = run.evidence["plane_shares"]
    panel = ink.Panel(
        "plane",
        f"first principal direction ({100 * first:.0f} % of the variance)",
        f"second ({100 * second:.0f} %)",
        legend_rows=2,
    )
    for name, look in _POPULATIONS.items():
        row = run.evidence["populations"][name]
        colors = [_trunk_color(trunks, trunk) for trunk in row["trunk"]]
        x, y = np.array(row["plane"], dtype=np.float64).reshape(-1, 2).T
        drawn, filled = name == "generated", name != "held_out"
        panel.axes.scatter(
            *(x, y, 30 if drawn else 14),
            marker=look["marker"],
            facecolors=colors if filled else "none",
            edgecolors=ink.INK if drawn else colors,
            linewidths=0.7,
            alpha=0.9 if drawn else 0.6,
            zorder=3 if drawn else 2,
            rasterized=len(x) > _MANY,
        )
        panel.axes.plot(
            *([], []),
            linestyle="none",
            marker=look["marker"],
            markerfacecolor=ink.GRID if filled else "none",
            markeredgecolor=ink.INK,
            label=named(name),
        )
    which = " of the first repeat" if repeats > 1 else ""
    return panel.told(
        "The population in parameter space",
        f"The two directions in which the originals{which} differ most, after alignment, in units "
        f"of a parameter; {len(trunks)} trunks, a colour each. Generated models should lie on the "
        "trunks' clouds, not between them.",
        f"{len(trunks)} trunks of originals in the plane of their first two principal directions, "
        f"which show {100 * (first + second):.0f} % of their variance; generated models on top.",
        columns=3,
    )


def _trunk_color(trunks: list[int], trunk: int) -> Any:
    if trunk not in trunks:
        return ink.INK
    place = trunks.index(trunk)
    if len(trunks) <= 2 * len(ink.CYCLE):
        return ink.CYCLE[place % len(ink.CYCLE)]
    return matplotlib.colormaps["cividis"](place / (len(trunks) - 1))


def _nearest(runs: Sequence[Run]) -> ink.Panel:
    panel = ink.Panel(
        "nearest",
        "distance to the nearest original (originals' own median = 1)",
        "share of models (%)",
        legend_rows=2,
    )
    measured = [run for run in runs if run.evidence["usual_distance"]]
    ratios: dict[str, _Array] = {}
    for name in ("held_out", "generated"):
        each = [
            _columns([r], name, "nearest")[:, 0] / r.evidence["usual_distance"] for r in measured
        ]
        ratio = np.concatenate([np.zeros(0), *each])
        if ratio.size:
            ratios[name] = ratio
    far = max((float(ratio.max()) for ratio in ratios.values()), default=1.0)
    edges = np.linspace(0, 1.05 * max(far, 1.0), 36)
    for name, ratio in ratios.items():
        _histogram(panel.axes, ratio, edges, name)
    copy = runs[0].evidence["copy_ratio"]
    line = {"color": ink.INK, "linestyle": ink.DASHES[2]}
    panel.axes.axvline(copy, **line, label=f"a copy: below {copy:g}")
    panel.axes.set_xlim(0, edges[-1])
    medians = ", ".join(f"{named(name)} {np.median(ratio):.2f}" for name, ratio in ratios.items())
    drawn = ratios.get("generated", np.zeros(0))
    return panel.told(
        "Does the generator copy?",
        "How far each model is from the nearest one the generator learnt from. Held-out "
        "checkpoints show what new models of the same making look like; a bar at zero is a copy.",
        f"Median distance to the nearest original: {medians}. Copies: {(drawn < copy).sum()} of "
        f"{len(drawn)} generated models.",
    )


def _histogram(place: Axes, values: _Array, edges: _Array, name: str) -> None:
    """Share of models a bin; held-out ones are hatched, so that colour is not all there is."""
    share = np.histogram(values, edges)[0] / len(values)
    color = _POPULATIONS[name]["color"]
    hatch = "////" if name == "held_out" else None
    place.stairs(share, edges, fill=True, color=color, alpha=0.3, linewidth=0, hatch=hatch)
    place.stairs(share, edges, color=color, linewidth=1.5, label=f"{named(name)} ({len(values)})")
