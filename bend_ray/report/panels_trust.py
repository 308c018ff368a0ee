"""Figures of probabilities: reliability before and after temperature scaling, and rejection."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from bend_ray.report import ink
from bend_ray.report.panel import Panel
from bend_ray.report.runs import Run
from bend_ray.report.verdicts import BAG, named

_MEMBER = "member"
_BINS = 15
_FEWEST_IMAGES = 5


def panels(runs: Sequence[Run]) -> list[Panel]:
    """A member's and the bag's reliability, and rejection."""
    return [_reliability(runs, _MEMBER), _reliability(runs, BAG), _rejection(runs)]


def _reliability(runs: Sequence[Run], name: str) -> Panel:
    figure, place = ink.axes(legend_rows=2)
    place.plot([0, 1], [0, 1], color=ink.INK, linewidth=0.8, label="perfectly reliable")
    looks: dict[str, dict[str, Any]] = {
        "before": {"color": ink.BLUE, "marker": "o", "linestyle": ink.DASHES[1]},
        "after": {"color": ink.VERMILLION, "marker": "^", "linestyle": "-"},
    }
    for when, look in looks.items():
        bins = _pooled([run.evidence["bags"][name]["reliability"][when] for run in runs])
        if not bins:
            continue
        x, y, count = zip(*bins, strict=True)
        place.plot(
            x, y, linewidth=1.0, markersize=0, color=look["color"], linestyle=look["linestyle"]
        )
        area = [8 + 130 * each / sum(count) for each in count]
        place.scatter(
            x, y, s=area, color=look["color"], marker=look["marker"], linewidths=0, alpha=0.85
        )
        place.plot([], [], **look, label=f"{when} temperature scaling")
    temperature = statistics.fmean(run.evidence["bags"][name]["temperature"] for run in runs)
    for axis in "xy":
        ink.percent(place, axis)
    place.set_xlabel("probability of the answer given (%)")
    place.set_ylabel("answers that are right (%)")
    ink.legend(figure, place)
    whose = "its median member" if name == _MEMBER else "the bag"
    before, after = _ece(runs, name)
    better = f"ECE {100 * before:.2f} % before and {100 * after:.2f} % after"
    return Panel(
        f"reliability_{name}",
        f"Reliability of {whose}",
        f"Temperature {temperature:.2f}, fitted on validation images: {better}. Larger marks hold "
        f"more examples, fewer than {_FEWEST_IMAGES} are not drawn; above the line is too "
        "modest, below too sure.",
        f"Reliability diagram of {whose}: {better} scaling with temperature {temperature:.2f}.",
        figure,
    )


def _ece(runs: Sequence[Run], name: str) -> tuple[float, float]:
    """ECE before and after: the bins' gaps, weighted by their images."""

    def gap(when: str) -> float:
        total = 0.0
        for run in runs:
            bins = run.evidence["bags"][name]["reliability"][when]
            columns = (bins["confidence"], bins["accuracy"], bins["count"])
            total += sum(n * abs(a - c) for c, a, n in zip(*columns, strict=True))
            # Each repeat has its own test images.
        images = sum(sum(r.evidence["bags"][name]["reliability"][when]["count"]) for r in runs)
        return total / images

    return gap("before"), gap("after")


def _pooled(diagrams: Sequence[dict[str, list[float]]]) -> list[tuple[float, float, float]]:
    """Bins of all repeats together: mean confidence, accuracy and images of those with enough."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for diagram in diagrams:
        columns = (diagram["confidence"], diagram["accuracy"], diagram["count"])
        for confidence, accuracy, count in zip(*columns, strict=True):
            # A bin holds its upper edge, as in ``ensemble.trust.reliability``.
            total = sums[-int(-confidence * _BINS // 1)]
            total[0] += confidence * count
            total[1] += accuracy * count
            total[2] += count
    return [(c / n, a / n, n) for _, (c, a, n) in sorted(sums.items()) if n >= _FEWEST_IMAGES]


def _rejection(runs: Sequence[Run]) -> Panel:
    names = [n for n in (_MEMBER, "deep_ensemble", BAG) if n in runs[0].evidence["bags"]]
    figure, place = ink.axes(legend_rows=2)
    sentences = []
    for name in names:
        curves = [run.evidence["bags"][name]["rejection"] for run in runs]
        accuracy = [
            statistics.fmean(at) for at in zip(*(c["accuracy"] for c in curves), strict=True)
        ]
        coverage = curves[0]["coverage"]
        look = {key: ink.LOOKS[name][key] for key in ("color", "linestyle")}
        place.plot(coverage, accuracy, **look, label=named(name))
        at = min(range(len(coverage)), key=lambda i: abs(coverage[i] - 0.9))
        sentences.append(f"{named(name)} {100 * accuracy[at]:.2f} %")
    for axis in "xy":
        ink.percent(place, axis)
    place.set_xlabel("images that are answered, the surest first (%)")
    place.set_ylabel("answers that are right (%)")
    ink.legend(figure, place)
    return Panel(
        "rejection",
        "Refusing the least certain",
        "Accuracy when the images of highest predictive entropy are left to somebody else.",
        f"Accuracy at 90 % coverage: {', '.join(sentences)}.",
        figure,
    )
