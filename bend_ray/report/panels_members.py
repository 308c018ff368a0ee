"""Figures of single models: how good, how different, where in parameter space, and whether new."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from bend_ray.report import ink
from bend_ray.report.panel import Panel
from bend_ray.report.runs import Run
from bend_ray.report.verdicts import BAG, named

_POPULATIONS: dict[str, dict[str, Any]] = {
    "originals": {"color": ink.BLUE, "marker": "o"},
    "held_out": {"color": ink.SKY, "marker": "s"},
    "generated": {"color": ink.VERMILLION, "marker": "^"},
}
_MANY = 2000
"""Points above which a scatter is stored as pixels."""


def panels(runs: Sequence[Run]) -> list[Panel]:
    """All of them; the plane is that of the first repeat."""
    return [_accuracies(runs), _diversity(runs), _plane(runs[0], len(runs)), _nearest(runs)]


def _column(runs: Sequence[Run], population: str, key: str) -> NDArray[np.float64]:
    """One figure a model, of all repeats together, without nulls."""
    values = [run.evidence["populations"][population][key] for run in runs]
    return np.array([v for each in values for v in each if v is not None], dtype=np.float64)


def _accuracies(runs: Sequence[Run]) -> Panel:
    accuracies = {name: _column(runs, name, "accuracy") for name in ("originals", "generated")}
    bags = [n for n in (BAG, "originals_bag", "deep_ensemble") if n in runs[0].evidence["bags"]]
    figure, place = ink.axes(legend_rows=(len(accuracies) + len(bags) + 1) // 2)
    images = runs[0].evidence["images"]["test"]
    edges = _edges(np.concatenate(list(accuracies.values())), images)
    for name, accuracy in accuracies.items():
        _histogram(place, accuracy, edges, name)
    scores = {
        name: statistics.fmean(run.evaluation.scores(name).accuracy or 0.0 for run in runs)
        for name in bags
    }
    for name, score in scores.items():
        look = {key: ink.LOOKS[name][key] for key in ("color", "linestyle")}
        place.axvline(score, **look, label=named(name))
    for axis in "xy":
        ink.percent(place, axis)
    place.set_xlabel("test accuracy of a model (%)")
    place.set_ylabel("share of models (%)")
    ink.legend(figure, place)
    medians = ", ".join(f"{n} {100 * np.median(a):.2f} %" for n, a in accuracies.items())
    lines = ", ".join(f"{named(n)} {100 * s:.2f} %" for n, s in scores.items())
    return Panel(
        "accuracies",
        "Accuracy of single models",
        "Trained and generated models as distributions, bags as lines.",
        f"Median accuracy of models: {medians}. Bags: {lines}.",
        figure,
    )


def _edges(accuracy: NDArray[np.float64], images: int) -> NDArray[np.float64]:
    """Bins that hold whole numbers of right answers, about two dozen of them."""
    low, high = np.rint(accuracy.min() * images), np.rint(accuracy.max() * images)
    step = max(1, int(np.ceil((high - low + 1) / 24)))
    edges: NDArray[np.float64] = np.arange(low - 0.5, high + step + 0.5, step) / images
    return edges


def _diversity(runs: Sequence[Run]) -> Panel:
    figure, place = ink.axes(legend_rows=2)
    sentences = []
    for name, look in _POPULATIONS.items():
        rows = [run.evidence["populations"][name] for run in runs]
        pairs = [
            (differs, right)
            for row in rows
            for differs, right in zip(row["disagreement"], row["accuracy"], strict=True)
            if None not in (differs, right)
        ]
        if not pairs:
            continue
        x, y = np.array(pairs).T
        _scatter(place, x, y, look, f"{named(name)} ({len(x)})")
        sentences.append(f"{named(name)} {100 * x.mean():.2f} % at {100 * y.mean():.2f} % accuracy")
    for axis in "xy":
        ink.percent(place, axis)
    place.set_xlabel("examples on which it differs from another (%)")
    place.set_ylabel("test accuracy (%)")
    ink.legend(figure, place)
    return Panel(
        "diversity",
        "Diversity against accuracy",
        "One point a model: how often it disagrees with the others of its population, on average. "
        "To the right and above is what a bag can use.",
        f"Mean disagreement: {'; '.join(sentences)}.",
        figure,
    )


def _plane(run: Run, repeats: int) -> Panel:
    figure, place = ink.axes(legend_rows=2)
    trunks = sorted(set(run.evidence["populations"]["originals"]["trunk"]))
    for name, look in _POPULATIONS.items():
        row = run.evidence["populations"][name]
        if not row["plane"]:
            continue
        xy = np.array(row["plane"], dtype=np.float64)
        colors = [_trunk_color(trunks, trunk) for trunk in row["trunk"]]
        drawn = name == "generated"
        place.scatter(
            xy[:, 0],
            xy[:, 1],
            marker=look["marker"],
            s=30 if drawn else 14,
            facecolors=colors if name != "held_out" else "none",
            edgecolors=ink.INK if drawn else colors,
            linewidths=0.7,
            alpha=0.9 if drawn else 0.6,
            zorder=3 if drawn else 2,
            rasterized=len(xy) > _MANY,
        )
    shares = run.evidence["plane_shares"]
    place.set_xlabel(f"first principal direction ({100 * shares[0]:.0f} % of the variance)")
    place.set_ylabel(f"second ({100 * shares[1]:.0f} %)")
    ink.legend(
        figure,
        place,
        columns=3,
        handles=[_shape(name) for name in _POPULATIONS],
        title=f"{len(trunks)} trunks, a colour each",
    )
    which = " of the first repeat" if repeats > 1 else ""
    return Panel(
        "plane",
        "The population in parameter space",
        f"The two directions in which the originals{which} differ most, after alignment, in units "
        "of a parameter. Generated models should lie on the trunks' clouds, not between them.",
        f"{len(trunks)} trunks of originals in the plane of their first two principal directions, "
        f"which show {100 * sum(shares):.0f} % of their variance; generated models on top.",
        figure,
    )


def _shape(name: str) -> Line2D:
    look = _POPULATIONS[name]
    fill = "none" if name == "held_out" else ink.GRID
    return Line2D(
        [],
        [],
        linestyle="none",
        marker=look["marker"],
        markerfacecolor=fill,
        markeredgecolor=ink.INK,
        label=named(name),
    )


def _trunk_color(trunks: list[int], trunk: int) -> Any:
    if trunk not in trunks:
        return ink.INK
    place = trunks.index(trunk)
    if len(trunks) <= 2 * len(ink.CYCLE):
        return ink.CYCLE[place % len(ink.CYCLE)]
    import matplotlib

    return matplotlib.colormaps["cividis"](place / (len(trunks) - 1))


def _nearest(runs: Sequence[Run]) -> Panel:
    figure, place = ink.axes(legend_rows=2)
    ratios = {}
    for name in ("held_out", "generated"):
        ratios[name] = np.array(
            [
                distance / run.evidence["usual_distance"]
                for run in runs
                if run.evidence["usual_distance"]
                for distance in run.evidence["populations"][name]["nearest"]
                if distance is not None
            ]
        )
    far = max((float(ratio.max()) for ratio in ratios.values() if ratio.size), default=1.0)
    edges = np.linspace(0, 1.05 * max(far, 1.0), 36)
    for name, ratio in ratios.items():
        if ratio.size:
            _histogram(place, ratio, edges, name)
    copy = runs[0].evidence["copy_ratio"]
    place.axvline(copy, color=ink.INK, linestyle=ink.DASHES[2], label=f"a copy: below {copy:g}")
    ink.percent(place, "y")
    place.set_xlim(0, edges[-1])
    place.set_xlabel("distance to the nearest original (originals' own median = 1)")
    place.set_ylabel("share of models (%)")
    ink.legend(figure, place)
    medians = ", ".join(f"{named(n)} {np.median(r):.2f}" for n, r in ratios.items() if r.size)
    copies = int((ratios["generated"] < copy).sum())
    return Panel(
        "nearest",
        "Does the generator copy?",
        "How far each model is from the nearest one the generator learnt from. Held-out "
        "checkpoints show what new models of the same making look like; a bar at zero is a copy.",
        f"Median distance to the nearest original: {medians}. Copies: {copies} of "
        f"{len(ratios['generated'])} generated models.",
        figure,
    )


def _histogram(
    place: Axes, values: NDArray[np.float64], edges: NDArray[np.float64], name: str
) -> None:
    """Share of models a bin; held-out ones are hatched, so that colour is not all there is."""
    share = np.histogram(values, edges)[0] / len(values)
    color = _POPULATIONS[name]["color"]
    hatch = "////" if name == "held_out" else None
    place.stairs(share, edges, fill=True, color=color, alpha=0.3, linewidth=0, hatch=hatch)
    place.stairs(share, edges, color=color, linewidth=1.5, label=f"{named(name)} ({len(values)})")


def _scatter(
    place: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    look: dict[str, Any],
    label: str,
) -> None:
    place.scatter(
        x, y, s=18, alpha=0.7, linewidths=0, label=label, rasterized=len(x) > _MANY, **look
    )
