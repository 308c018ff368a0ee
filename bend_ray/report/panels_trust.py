"""Figures of probabilities: reliability before and after temperature scaling, and rejection."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from bend_ray.report import ink
from bend_ray.report.results import BAG, DEEP_ENSEMBLE, named
from bend_ray.report.runs import Run

_MEMBER = "member"
_BINS = 15
_FEWEST_IMAGES = 5
_Bin = tuple[float, float, float]
_LOOKS: dict[str, ink.Look] = {
    "before": {"color": ink.BLUE, "marker": "o", "linestyle": ink.DASHES[1]},
    "after": {"color": ink.VERMILLION, "marker": "^", "linestyle": "-"},
}


def panels(runs: Sequence[Run]) -> list[ink.Panel]:
    """A member's and the bag's reliability, and rejection."""
    return [_reliability(runs, _MEMBER), _reliability(runs, BAG), _rejection(runs)]


def _reliability(runs: Sequence[Run], name: str) -> ink.Panel:
    panel = ink.Panel(
        f"reliability_{name}",
        "probability of the answer given (%)",
        "answers that are right (%)",
        legend_rows=2,
    )
    panel.axes.plot([0, 1], [0, 1], color=ink.INK, linewidth=0.8, label="perfectly reliable")
    errors = {}
    for when, look in _LOOKS.items():
        diagrams = [run.evidence["bags"][name]["reliability"][when] for run in runs]
        errors[when] = statistics.fmean(_ece(_pooled([diagram])) for diagram in diagrams)
        drawn = [each for each in _pooled(diagrams) if each[-1] >= _FEWEST_IMAGES]
        if not drawn:
            continue
        x, y, counts = zip(*drawn, strict=True)
        panel.axes.plot(x, y, **look | {"marker": ""}, linewidth=1.0)
        area = [8 + 130 * each / sum(counts) for each in counts]
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


def _ece(bins: list[_Bin]) -> float:
    gaps = sum(count * abs(accuracy - confidence) for confidence, accuracy, count in bins)
    return gaps / sum(count for *_, count in bins)


def _pooled(diagrams: Sequence[dict[str, list[float]]]) -> list[_Bin]:
    """Bins of all repeats together: mean confidence, accuracy and images of each."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for diagram in diagrams:
        columns = (diagram["confidence"], diagram["accuracy"], diagram["count"])
        for confidence, accuracy, count in zip(*columns, strict=True):
            # A bin holds its upper edge, as in ``ensemble.trust.reliability``.
            total = sums[-int(-confidence * _BINS // 1)]
            total[0] += confidence * count
            total[1] += accuracy * count
            total[2] += count
    return [(c / n, a / n, n) for _, (c, a, n) in sorted(sums.items())]


def _rejection(runs: Sequence[Run]) -> ink.Panel:
    panel = ink.Panel(
        "rejection",
        "images that are answered, the surest first (%)",
        "answers that are right (%)",
        legend_rows=2,
    )
    sentences = []
    for name in (_MEMBER, DEEP_ENSEMBLE, BAG):
        if name not in runs[0].evidence["bags"]:
            continue
        curves = [run.evidence["bags"][name]["rejection"] for run in runs]
        rows = zip(*(curve["accuracy"] for curve in curves), strict=True)
        accuracy, coverage = [statistics.fmean(at) for at in rows], curves[0]["coverage"]
        look = {key: ink.LOOKS[name][key] for key in ("color", "linestyle")}
        panel.axes.plot(coverage, accuracy, **look, label=named(name))
        at = min(range(len(coverage)), key=lambda i: abs(coverage[i] - 0.9))
        sentences.append(f"{named(name)} {100 * accuracy[at]:.2f} %")
    return panel.told(
        "Refusing the least certain",
        "Accuracy when the images of highest predictive entropy are left to somebody else.",
        f"Accuracy at 90 % coverage: {', '.join(sentences)}.",
    )
