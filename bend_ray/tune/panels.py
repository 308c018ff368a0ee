"""Figures of a study: scores by latent size and by ensemble count, the front, all knobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from bend_ray.config.yaml_text import flow
from bend_ray.report import ink
from bend_ray.report.panel import Chapter, Panel
from bend_ray.tune.records import BagRecord, TrialRecord
from bend_ray.tune.study import Study

LATENT_SIZE = "autoencoder.model.latent_size"

_LABELS = {"accuracy": "validation accuracy (%)", "nll": "validation NLL (nats)"}
_LEFT = 0.75
"""Inches for labels of four decimals."""

_Look = dict[str, Any]

_WINNER: _Look = {"color": ink.VERMILLION, "marker": "o"}
_BASE: _Look = {"color": ink.BLUE, "marker": "s"}
_OTHER: _Look = {"color": ink.SKY, "marker": "o"}
_KNEE: _Look = {"color": ink.GREEN, "marker": "D"}


def chapters(study: Study) -> list[Chapter]:
    """Every figure, in reading order."""
    by_latent = [_by_latent_size(study, score) for score in ("nll", "accuracy")]
    by_count = [_by_count(study, score) for score in ("nll", "accuracy")]
    found = [
        Chapter("What does the latent size do?", [panel for panel in by_latent if panel]),
        Chapter("What do more members bring?", by_count),
        Chapter("What is worth its cost?", [_front(study), _parallel(study)]),
    ]
    return [chapter for chapter in found if chapter.panels]


def _value(bag: BagRecord, score: str) -> float:
    return bag.nll if score == "nll" else bag.accuracy


def _latent_size(study: Study, trial: TrialRecord) -> int:
    return study.config_of(trial, trial.best).latent_size


def _by_latent_size(study: Study, score: str) -> Panel | None:
    if LATENT_SIZE not in study.section.knobs:
        return None
    sizes = [_latent_size(study, trial) for trial in study.done]
    values = [_value(trial.best, score) for trial in study.done]
    figure, place = ink.axes(legend_rows=1, left=_LEFT)
    place.plot(sizes, values, linestyle="none", **_OTHER, label="a trial's best bag")
    best = max if score == "accuracy" else min
    scored = list(zip(sizes, values, strict=True))
    envelope = [(each, best(v for s, v in scored if s == each)) for each in sorted(set(sizes))]
    place.plot(*zip(*envelope, strict=True), color=ink.INK, linewidth=1.0, label="best of a size")
    winner = study.winner[0]
    place.plot(
        [_latent_size(study, winner)],
        [_value(winner.best, score)],
        linestyle="none",
        **_WINNER,
        label="winner",
    )
    _scores_axis(place, score)
    place.set_xlabel("latent size")
    ink.legend(figure, place, columns=3)
    listed = ", ".join(f"{size}: {_written(value, score)}" for size, value in envelope)
    name = "NLL" if score == "nll" else "Accuracy"
    return Panel(
        f"{score}_by_latent_size",
        f"{name} against latent size",
        "Each trial's best bag on validation images; trials of a size differ in the other knobs. "
        "Trials that were stopped early are not shown.",
        f"Best {name} by latent size: {listed}.",
        figure,
    )


def _by_count(study: Study, score: str) -> Panel:
    winner, base = study.winner[0], study.base
    figure, place = ink.axes(legend_rows=1, left=_LEFT)
    for trial in study.done:
        if trial.name != winner.name and (base is None or trial.name != base.name):
            _line(place, trial, score, color=ink.SKY, alpha=0.5, linewidth=0.8)
    place.plot([], [], color=ink.SKY, alpha=0.5, label="other trials")
    if base is not None and base.name != winner.name:
        _line(place, base, score, **_BASE, linestyle=ink.DASHES[1], label="config as given")
    _line(place, winner, score, **_WINNER, label="winner")
    place.set_xscale("log", base=2)
    place.xaxis.set_major_locator(FixedLocator(_powers(study.section.ensemble_counts)))
    place.xaxis.set_minor_locator(NullLocator())
    place.xaxis.set_major_formatter(ScalarFormatter())
    place.set_xlabel("members that vote")
    _scores_axis(place, score)
    ink.legend(figure, place, columns=3)
    listed = ", ".join(f"{bag.size}: {_written(_value(bag, score), score)}" for bag in winner.bags)
    name = "NLL" if score == "nll" else "Accuracy"
    return Panel(
        f"{score}_by_ensemble_count",
        f"{name} against ensemble count",
        "Bags of members of one set of samples, on validation images; of members that vote as they "
        "come, the mean over 20 orders.",
        f"{name} of the winner by members: {listed}.",
        figure,
    )


def _powers(counts: Sequence[int]) -> list[int]:
    return [2**i for i in range(max(counts).bit_length()) if min(counts) <= 2**i] or list(counts)


def _line(place: Axes, trial: TrialRecord, score: str, **look: Any) -> None:
    sizes = [bag.size for bag in trial.bags]
    place.plot(sizes, [_value(bag, score) for bag in trial.bags], **look)


def _front(study: Study) -> Panel:
    """NLL against total cost; the cost of an answer is the size of a point."""
    front, knee = study.front()
    figure, place = ink.axes(legend_rows=2, left=_LEFT)
    points = study.points
    flops = np.array([bag.flops for _, bag in points], dtype=float)
    area = 4 + 60 * (flops / flops.max()) ** 0.5
    place.scatter(
        [bag.cost_seconds for _, bag in points],
        [bag.nll for _, bag in points],
        s=area,
        color=ink.SKY,
        alpha=0.35,
        linewidths=0,
        label="a bag",
    )
    ahead = [point for point in points if point in front]
    place.scatter(
        [bag.cost_seconds for _, bag in ahead],
        [bag.nll for _, bag in ahead],
        s=[4 + 60 * (bag.flops / flops.max()) ** 0.5 for _, bag in ahead],
        facecolors="none",
        edgecolors=ink.INK,
        linewidths=0.9,
        label="on the front",
    )
    marks: list[tuple[str, BagRecord, _Look]] = [
        ("knee", knee[1], _KNEE),
        ("winner", study.winner[1], _WINNER),
    ]
    if (base := study.base) is not None:
        marks.append(("config as given", study.base_bag(base), _BASE))
    for name, bag, look in marks:
        at = ([bag.cost_seconds], [bag.nll])
        place.plot(*at, linestyle="none", markersize=6, **look, label=name)
    place.set_xlabel("total cost from scratch (CPU seconds, GPU where used)")
    _scores_axis(place, "nll")
    ink.legend(figure, place, columns=3)
    listed = "; ".join(
        f"trial {trial.number} with {bag.size} members: {bag.nll:.4f} at {bag.cost_seconds:.1f} s"
        for trial, bag in front
    )
    return Panel(
        "pareto_front",
        "The trade: NLL, total cost, cost of an answer",
        "Every bag of every trial; a larger point costs more to ask. On the front no other bag is "
        "as good in all three and better in one. The knee is nearest to the least of each, costs "
        "by their logarithms.",
        f"The front: {listed}. Knee: trial {knee[0].number} with {knee[1].size} members.",
        figure,
    )


def _parallel(study: Study) -> Panel:
    """Each trial a line through its knobs, its ensemble count and its scores."""
    columns = _columns(study)
    figure, place = ink.axes(left=0.35, height=4.2)
    scores = np.array([trial.best.objective for trial in study.done])
    order = np.argsort(-scores)
    ramp = LinearSegmentedColormap.from_list("bend", [ink.VERMILLION, ink.SKY])
    spread = float(scores.max() - scores.min()) or 1.0
    winner = study.winner[0]
    for i in order:
        trial = study.done[i]
        heights = [column.height(trial) for column in columns]
        is_best = trial.name == winner.name
        place.plot(
            range(len(columns)),
            heights,
            color=ramp((scores[i] - scores.min()) / spread),
            linewidth=2.4 if is_best else 0.9,
            alpha=1.0 if is_best else 0.7,
        )
    for x, column in enumerate(columns):
        place.axvline(x, color=ink.INK, linewidth=0.7)
        for height, text in column.ticks:
            place.annotate(
                text, (x, height), xytext=(3, -2.5), textcoords="offset points", fontsize=6.5
            )
    place.set_xticks(range(len(columns)), [column.name for column in columns], rotation=25)
    place.tick_params(axis="x", labelsize=7)
    place.set_yticks([])
    place.grid(visible=False)
    place.set_xlim(-0.1, len(columns) - 0.35)
    listed = ", ".join(f"{path} {flow(value)}" for path, value in winner.point.items())
    return Panel(
        "parallel_coordinates",
        "All knobs at once",
        "A line is a trial that came to its end, through its knobs to the size and the score of "
        "its best bag; red is low in the objective, the thick line is the winner.",
        f"Winner: {listed}, {winner.best.size} members.",
        figure,
    )


class _Column:
    """One axis of the parallel coordinates.

    Args:
        name: below it.
        values: of each trial, numbers or not.
        digits: of its ticks.
    """

    def __init__(self, name: str, values: dict[str, Any], digits: str = ".4g") -> None:
        self.name = name
        if all(isinstance(each, int | float) and each is not True for each in values.values()):
            low, high = min(values.values()), max(values.values())
            shown = sorted(set(values.values()))
            shown = shown if len(shown) <= 8 else [low, (low + high) / 2, high]
            spread = (high - low) or 1
            self._heights = {name: (each - low) / spread for name, each in values.items()}
            self.ticks = [((each - low) / spread, format(each, digits)) for each in shown]
        else:
            texts = sorted(set(map(flow, values.values())))
            heights = {text: i / max(1, len(texts) - 1) for i, text in enumerate(texts)}
            self._heights = {name: heights[flow(each)] for name, each in values.items()}
            self.ticks = [(height, text) for text, height in heights.items()]

    def height(self, trial: TrialRecord) -> float:
        """Where a trial's line crosses it, from 0 to 1."""
        return float(self._heights[trial.name])


def _columns(study: Study) -> list[_Column]:
    done = study.done
    knobs = [
        _Column(name, {trial.name: trial.point[path] for trial in done})
        for path, name in study.section.names.items()
    ]
    return [
        *knobs,
        _Column("members", {t.name: t.best.size for t in done}),
        _Column("cost, s", {t.name: t.best.cost_seconds for t in done}, ".1f"),
        _Column("NLL", {t.name: t.best.nll for t in done}, ".4f"),
    ]


def _scores_axis(place: Axes, score: str) -> None:
    if score == "accuracy":
        ink.percent(place, "y")
    place.set_ylabel(_LABELS[score])


def _written(value: float, score: str) -> str:
    return f"{100 * value:.2f} %" if score == "accuracy" else f"{value:.4f}"
