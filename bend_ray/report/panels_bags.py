"""Figures of bags: scores by size and by cost, the deep-ensemble equivalent, where time went."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from bend_ray.process.log import duration
from bend_ray.report import ink
from bend_ray.report.panel import Panel
from bend_ray.report.runs import Run
from bend_ray.report.verdicts import AS_IT_IS, BAG, DEEP_ENSEMBLE, SCALED, Row, named, rows

_LABELS = {"accuracy": "test accuracy (%)", "nll": "test NLL (nats)"}
_FOREMOST = (BAG, DEEP_ENSEMBLE)
_EQUIVALENTS: dict[str, dict[str, Any]] = {
    AS_IT_IS: {"color": ink.BLUE, "markerfacecolor": "none"},
    SCALED: {"color": ink.VERMILLION},
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


def panels(runs: Sequence[Run]) -> list[Panel]:
    """Both scores by size and by cost, deep-ensemble equivalents, and where the time went."""
    priced = all(run.evaluation.bag.cost_seconds is not None for run in runs)
    by_size, by_cost = (
        [_by(runs, score, against) for score in ("accuracy", "nll") if priced or against == "size"]
        for against in ("size", "cost")
    )
    equivalents = _equivalents(runs)
    return [*by_size, *([equivalents] if equivalents else []), *by_cost, _time_spent(runs)]


def _by(runs: Sequence[Run], score: str, against: str) -> Panel:
    lines = [line for name in _bag_names(runs) if (line := _line(runs, name, score))]
    points = _points(runs, score)
    figure, place = ink.axes(legend_rows=(len(lines) + len(points) + 1) // 2)
    if against == "cost":
        place.set_xscale("log")
        place.xaxis.set_minor_locator(NullLocator())
    for line in lines:
        x = line.sizes if against == "size" else line.costs
        look = ink.LOOKS.get(line.name, {"color": ink.INK})
        front = 3 if line.name in _FOREMOST else 2
        place.fill_between(x, line.low, line.high, color=look["color"], alpha=0.1, linewidth=0)
        place.plot(x, line.mean, **look, label=named(line.name), zorder=front)
    for name, size, cost, value in points:
        look = ink.LOOKS.get(name, {"color": ink.INK, "marker": "o", "linestyle": "none"})
        place.plot([size if against == "size" else cost], [value], **look, label=named(name))
    place.set_ylim(*_limits(lines, points))
    if score == "accuracy":
        ink.percent(place, "y")
    place.set_ylabel(_LABELS[score])
    if against == "size":
        _size_axis(place, max((line.sizes[-1] for line in lines), default=1))
    else:
        place.set_xlabel("cost of all of it from scratch (CPU seconds, GPU where used)")
        place.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    ink.legend(figure, place)
    return Panel(f"{score}_by_{against}", *_words(lines, score, against), figure=figure)


def _words(lines: list[_Line], score: str, against: str) -> tuple[str, str, str]:
    what = "Accuracy" if score == "accuracy" else "NLL"
    better = "higher is better" if score == "accuracy" else "lower is better"
    ends = "; ".join(
        f"{named(line.name)} {_value(line.mean[0], score)} with {line.sizes[0]} and "
        f"{_value(line.mean[-1], score)} with {line.sizes[-1]} members"
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


def _value(value: float, score: str) -> str:
    return f"{100 * value:.2f} %" if score == "accuracy" else f"{value:.4f}"


def _size_axis(place: Axes, largest: int) -> None:
    place.set_xscale("log", base=2)
    place.set_xlabel("members that vote")
    ticks = [2**i for i in range(largest.bit_length())]
    place.xaxis.set_major_locator(FixedLocator(ticks))
    place.xaxis.set_minor_locator(NullLocator())
    place.xaxis.set_major_formatter(ScalarFormatter())


def _bag_names(runs: Sequence[Run]) -> list[str]:
    """Our bag first, as the legend names them."""
    return [BAG, *runs[0].evaluation.rivals]


def _line(runs: Sequence[Run], name: str, score: str) -> _Line | None:
    bags = [run.evidence["bags"][name] for run in runs]
    curves = [bag["curve"] for bag in bags]
    if any(curve is None or curve["sizes"] != curves[0]["sizes"] for curve in curves):
        return None
    sizes = curves[0]["sizes"]
    fixed = statistics.fmean(bag["cost"]["fixed"] for bag in bags)
    member = statistics.fmean(bag["cost"]["member"] for bag in bags)
    bands = {
        key: [statistics.fmean(at) for at in zip(*(c[score][key] for c in curves), strict=True)]
        for key in ("mean", "low", "high")
    }
    return _Line(name, sizes, [fixed + member * size for size in sizes], **bands)


def _points(runs: Sequence[Run], score: str) -> list[tuple[str, int, float, float]]:
    """Bags of one model: name, size, cost and score."""
    found = []
    for name in _bag_names(runs):
        scores = [({BAG: run.evaluation.bag} | run.evaluation.rivals)[name] for run in runs]
        known = [value for each in scores if (value := getattr(each, score)) is not None]
        if scores[0].size == 1 and known:
            cost = statistics.fmean(each.cost_seconds or 0.0 for each in scores)
            found.append((name, 1, cost, statistics.fmean(known)))
    return found


def _limits(lines: list[_Line], points: list[tuple[str, int, float, float]]) -> tuple[float, float]:
    """Of what is worth telling apart: one broken rival must not flatten all others."""
    listed = [line for line in lines if line.name in (*_FOREMOST, "originals_bag")] or lines
    values = [value for line in listed for value in (*line.low, *line.high)]
    values = values or [value for *_, value in points]
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.01
    return low - margin, high + margin


def _equivalents(runs: Sequence[Run]) -> Panel | None:
    measured = [row for row in rows(runs) if row.equivalents]
    if not measured:
        return None
    figure, place = ink.axes(legend_rows=1, left=1.25, height=max(2.2, 0.3 * len(measured) + 1.1))
    for level, row in enumerate(reversed(measured)):
        _equivalent(place, level, row)
    kinds = {kind: look for kind, look in _EQUIVALENTS.items() if kind in measured[0].equivalents}
    for kind, look in kinds.items():
        place.plot([], [], linestyle="none", marker="o", **look, label=kind)
    ink.legend(figure, place)
    place.set_yticks(range(len(measured)), [row.name for row in reversed(measured)])
    curve = runs[0].evidence["bags"][DEEP_ENSEMBLE]["curve"]
    _size_axis(place, curve["sizes"][-1])
    place.set_xlim(0.8, 1.6 * curve["sizes"][-1])
    place.set_xlabel("independent networks of the same NLL")
    how = "as the vote is and after" if AS_IT_IS in kinds else "after"
    sentence = ", ".join(
        f"{row.name} {' and '.join(f'{each} {kind}' for kind, each in row.equivalents.items())}"
        for row in measured
    )
    return Panel(
        "deep_ensemble_equivalent",
        "Deep-ensemble equivalent",
        "How many ordinary independent networks reach the same NLL (Ashukha et al. 2020), read off "
        f"the deep ensemble's curve, {how} temperature scaling on validation images. An arrow says "
        f"out of range: worse than one network, or better than the {curve['sizes'][-1]} that were "
        "trained.",
        f"Deep-ensemble equivalents: {sentence}.",
        figure,
    )


def _equivalent(place: Axes, level: int, row: Row) -> None:
    for kind, found in row.equivalents.items():
        shift = 0.0 if len(row.equivalents) == 1 else 0.17 if kind == AS_IT_IS else -0.17
        marker = {-1: "<", 0: "o", 1: ">"}[found.beyond]
        look = _EQUIVALENTS[kind]
        place.plot([found.members], [level + shift], marker=marker, markersize=6, **look)
        place.annotate(
            str(found),
            (found.members, level + shift),
            xytext=(6, -2.5),
            textcoords="offset points",
            fontsize=7.5,
            color=ink.INK,
        )


def _time_spent(runs: Sequence[Run]) -> Panel:
    """Wall and processor seconds of every stage."""
    stages = list(runs[0].result.fingerprints)
    cost: dict[str, dict[str, float]] = {
        stage: {key: _cost(runs, stage, key) for key in ("wall", "cpu", "gpu")} for stage in stages
    }
    kinds = ["wall", "cpu", *(["gpu"] if any(c["gpu"] for c in cost.values()) else [])]
    figure, place = ink.axes(legend_rows=1, left=0.95, height=0.42 * len(stages) + 1.0)
    _bars(place, stages, kinds, cost)
    place.set_xlabel("seconds" + (f", mean of {len(runs)} repeats" if len(runs) > 1 else ""))
    ink.legend(figure, place, columns=3)
    wall = sum(each["wall"] for each in cost.values())
    cpu = sum(each["cpu"] for each in cost.values())
    shares = ", ".join(
        f"{s} {c['wall']:.1f} s wall and {c['cpu']:.1f} s CPU" for s, c in cost.items()
    )
    return Panel(
        "time_spent",
        "Stage by stage",
        f"{duration(wall)} of waiting in all, {duration(cpu)} of it computing on CPUs; the rest is "
        "processes starting and waiting. The evaluation's wall clock includes training the deep "
        "ensemble, its CPU seconds do not: those are the rival's own cost.",
        f"Time spent: {shares}.",
        figure,
    )


def _bars(
    place: Axes, stages: list[str], kinds: list[str], cost: dict[str, dict[str, float]]
) -> None:
    looks: dict[str, dict[str, Any]] = {
        "wall": {"color": ink.SKY, "label": "wall clock"},
        "cpu": {"color": ink.VERMILLION, "label": "CPU", "hatch": "///"},
        "gpu": {"color": ink.GREEN, "label": "GPU", "hatch": "..."},
    }
    height = 0.8 / len(kinds)
    for shift, kind in enumerate(kinds):
        levels = [-level - shift * height for level in range(len(stages))]
        values = [cost[stage][kind] for stage in stages]
        place.barh(
            levels, values, height=0.9 * height, edgecolor="white", linewidth=0, **looks[kind]
        )
    middle = (len(kinds) - 1) * height / 2
    place.set_yticks([-level - middle for level in range(len(stages))], stages)
    place.grid(visible=False, axis="y")


def _cost(runs: Sequence[Run], stage: str, kind: str) -> float:
    return statistics.fmean(getattr(run.result.costs[stage], f"{kind}_seconds") for run in runs)
