"""Figures of bags: scores by size and by cost, the deep-ensemble equivalent, where time went."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from bend_ray.process.log import duration
from bend_ray.report import ink
from bend_ray.report.results import BAG, DEEP_ENSEMBLE, money, named, scored_bags
from bend_ray.report.runs import Run
from bend_ray.report.verdicts import AS_IT_IS, SCALED, Equivalent, equivalents

_FOREMOST = (BAG, DEEP_ENSEMBLE)
_EQUIVALENTS: dict[str, ink.Look] = {
    AS_IT_IS: {"color": ink.BLUE, "markerfacecolor": "none"},
    SCALED: {"color": ink.VERMILLION},
}
_SECONDS: dict[str, ink.Look] = {
    "wall": {"color": ink.SKY, "label": "wall clock"},
    "cpu": {"color": ink.VERMILLION, "label": "CPU", "hatch": "///"},
    "gpu": {"color": ink.GREEN, "label": "GPU", "hatch": "..."},
}


@dataclass(frozen=True)
class _Line:
    """A score by size; over repeats the mean of means, and of the bands' edges."""

    name: str
    sizes: list[int]
    costs: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def panels(runs: Sequence[Run]) -> list[ink.Panel]:
    """Both scores by size and by cost, deep-ensemble equivalents, and where the time went."""
    priced = all(run.evaluation.bag.cost_seconds is not None for run in runs)
    by_size, by_cost = (
        [_by(runs, score, against) for score in ("accuracy", "nll") if priced or against == "size"]
        for against in ("size", "cost")
    )
    return [*by_size, *_equivalents(runs), *by_cost, _time_spent(runs)]


def _by(runs: Sequence[Run], score: str, against: str) -> ink.Panel:
    names = [BAG, *runs[0].evaluation.rivals]
    lines = [line for name in names if (line := _line(runs, name, score))]
    lines += [point for name in names if (point := _point(runs, name, score))]
    panel = ink.Panel(
        f"{score}_by_{against}",
        "members that vote"
        if against == "size"
        else "cost of all of it from scratch (CPU seconds, GPU where used)",
        ink.SCORES[score].format(runs[0].evaluation.part, runs[0].evaluation.score),
        legend_rows=(len(lines) + 1) // 2,
    )
    place = panel.axes
    for line in lines:
        x = line.sizes if against == "size" else line.costs
        look = ink.LOOKS.get(line.name, {"color": ink.INK, "marker": "o"})
        front = 3 if line.name in _FOREMOST else 2
        place.fill_between(x, line.low, line.high, color=look["color"], alpha=0.1, linewidth=0)
        place.plot(x, line.mean, **look, label=named(line.name), zorder=front)
    place.set_ylim(*_limits(lines))
    if against == "size":
        ink.sizes_axis(place, [1, *(line.sizes[-1] for line in lines)])
    else:
        place.set_xscale("log")
        place.xaxis.set_minor_locator(NullLocator())
        place.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    what = runs[0].evaluation.score if score == "accuracy" else "NLL"
    shown = [line for line in lines if line.sizes != [1]]
    return panel.told(*_words(shown, score, against, what[0].upper() + what[1:]))


def _words(lines: list[_Line], score: str, against: str, what: str) -> tuple[str, str, str]:
    better = "higher is better" if score == "accuracy" else "lower is better"
    ends = "; ".join(
        f"{named(line.name)} {ink.score_text(line.mean[0], score)} with {line.sizes[0]} and "
        f"{ink.score_text(line.mean[-1], score)} with {line.sizes[-1]} members"
        for line in lines
    )
    if against == "size":
        caption = (
            f"Mean of 20 random choices of members, the middle 80 % of them as a band; {better}. "
            "The last point is the whole bag. What is far off is cut."
        )
        return f"{what} against ensemble size", caption, f"{what} by number of members: {ends}."
    caption = (
        f"The same against all it costs, everything before it counted; {better}. "
        "At equal cost, compare along a vertical line: this is the picture that decides."
    )
    costs = "; ".join(f"{named(line.name)} costs {line.costs[-1]:.3g} s" for line in lines)
    return f"{what} against total cost", caption, f"{what} by total cost. Whole bags: {costs}."


def _line(runs: Sequence[Run], name: str, score: str) -> _Line | None:
    bags = [run.evidence["bags"][name] for run in runs]
    curves = [bag["curve"] for bag in bags]
    if any(curve is None or curve["sizes"] != curves[0]["sizes"] for curve in curves):
        return None
    sizes = curves[0]["sizes"]
    costs = [[bag["cost"][key] for key in ("fixed", "member")] for bag in bags]
    fixed, member = np.mean(np.array(costs, dtype=float), axis=0).tolist()  # nan: unknown
    bands = {
        key: np.mean([curve[score][key] for curve in curves], axis=0).tolist()
        for key in ("mean", "low", "high")
    }
    return _Line(name, sizes, [fixed + member * size for size in sizes], **bands)


def _point(runs: Sequence[Run], name: str, score: str) -> _Line | None:
    """A bag of one model."""
    scores = [run.evaluation.scores(name) for run in runs]
    known = [value for each in scores if (value := getattr(each, score)) is not None]
    if scores[0].size != 1 or not known:
        return None
    cost = statistics.fmean(each.cost_seconds or 0.0 for each in scores)
    value = [statistics.fmean(known)]
    return _Line(name, [1], [cost], value, value, value)


def _limits(lines: list[_Line]) -> tuple[float, float]:
    """Of what is worth telling apart: one broken rival must not flatten all others."""
    curves = [line for line in lines if line.sizes != [1]]
    listed = [line for line in curves if line.name in (*_FOREMOST, "originals_bag")]
    values = [v for line in listed or curves or lines for v in (*line.low, *line.high)]
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.01
    return low - margin, high + margin


def _equivalents(runs: Sequence[Run]) -> list[ink.Panel]:
    """One, where a deep ensemble was trained."""
    bags = scored_bags([run.evaluation for run in runs])
    measured = {named(name): found for name in bags if (found := equivalents(runs, name))}
    if not measured:
        return []
    panel = ink.Panel(
        "deep_ensemble_equivalent",
        "independent networks of the same NLL",
        legend_rows=1,
        left=1.25,
        height=max(2.2, 0.3 * len(measured) + 1.1),
    )
    place = panel.axes
    kinds = next(iter(measured.values()))
    for kind in kinds:
        place.plot([], [], linestyle="none", marker="o", **_EQUIVALENTS[kind], label=kind)
    for level, found in enumerate(measured.values()):
        for kind, shift in zip(kinds, (-0.17, 0.17) if len(kinds) > 1 else (0.0,), strict=True):
            _equivalent(place, shift + level, found[kind], _EQUIVALENTS[kind])
    place.set_yticks(range(len(measured)), list(measured))
    place.invert_yaxis()
    largest = runs[0].evidence["bags"][DEEP_ENSEMBLE]["curve"]["sizes"][-1]
    ink.sizes_axis(place, [1, largest])
    place.set_xlim(0.8, 1.6 * largest)
    how = "as the vote is and after" if AS_IT_IS in kinds else "after"
    sentence = ", ".join(
        f"{name} {' and '.join(f'{each} {kind}' for kind, each in found.items())}"
        for name, found in measured.items()
    )
    return [
        panel.told(
            "Deep-ensemble equivalent",
            "How many ordinary independent networks reach the same NLL (Ashukha et al. 2020), read "
            f"off the deep ensemble's curve, {how} temperature scaling on validation images. An "
            "arrow says out of range: worse than one network, or better than the "
            f"{largest} that were trained.",
            f"Deep-ensemble equivalents: {sentence}.",
        )
    ]


def _equivalent(place: Axes, level: float, found: Equivalent, look: ink.Look) -> None:
    marker = {-1: "<", 0: "o", 1: ">"}[found.beyond]
    place.plot([found.members], [level], marker=marker, markersize=6, **look)
    ink.note(place, str(found), (found.members, level))


def _time_spent(runs: Sequence[Run]) -> ink.Panel:
    """Wall and processor seconds of every stage."""
    stages = list(runs[0].result.fingerprints)
    cost = {
        kind: [
            statistics.fmean(getattr(run.result.costs[stage], f"{kind}_seconds") for run in runs)
            for stage in stages
        ]
        for kind in _SECONDS
    }
    kinds = [kind for kind in _SECONDS if kind != "gpu" or any(cost["gpu"])]
    panel = ink.Panel(
        "time_spent",
        "seconds" + (f", mean of {len(runs)} repeats" if len(runs) > 1 else ""),
        legend_rows=1,
        left=0.95,
        height=0.42 * len(stages) + 1.0,
    )
    thick = 0.8 / len(kinds)
    bar: ink.Look = {"height": 0.9 * thick, "linewidth": 0, "edgecolor": "white"}
    for shift, kind in enumerate(kinds):
        levels = [level + (shift - (len(kinds) - 1) / 2) * thick for level in range(len(stages))]
        panel.axes.barh(levels, cost[kind], **bar, **_SECONDS[kind])
    panel.axes.set_yticks(range(len(stages)), stages)
    panel.axes.invert_yaxis()
    panel.axes.grid(visible=False, axis="y")
    shares = ", ".join(
        f"{stage} {wall:.1f} s wall and {cpu:.1f} s CPU"
        for stage, wall, cpu in zip(stages, cost["wall"], cost["cpu"], strict=True)
    )
    paid = money([run.result for run in runs], stages)
    at_prices = f" At the prices given, its computing costs {paid[0]}." if paid else ""
    return panel.told(
        "Stage by stage",
        f"{duration(sum(cost['wall']))} of waiting in all, {duration(sum(cost['cpu']))} of it "
        "computing on CPUs; the rest is processes starting and waiting. Training the deep ensemble "
        f"is the rival's own cost, and is not among them.{at_prices}",
        f"Time spent: {shares}.",
        columns=3,
    )
