"""The page of a study: one self-contained HTML file, a PNG of each figure and a JSON beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from bend_ray.config.yaml_text import flow
from bend_ray.process.log import duration
from bend_ray.report import ink
from bend_ray.report.page import Page
from bend_ray.report.verdicts import Highlight
from bend_ray.storage.masking import masked_json
from bend_ray.tune.records import TrialRecord
from bend_ray.tune.space import LATENT_SIZE
from bend_ray.tune.study import Fresh, Point, Study, best_yaml, sentences, summary
from bend_ray.tune.table import front_table, stages_table, trials_table

NAME = "tune"
_LEFT = 0.75
"""Inches for labels of four decimals."""
_NAMES = {"nll": "NLL", "accuracy": "Accuracy"}
_LOOKS: dict[str, ink.Look] = {
    "winner": {"color": ink.VERMILLION, "marker": "o"},
    "config as given": {"color": ink.BLUE, "marker": "s"},
    "knee": {"color": ink.GREEN, "marker": "D"},
}


def write_page(study: Study, fresh: Fresh | None) -> str:
    """Write a study's page beside the reports of the store; returns where it is."""
    data = {
        "tune": 1,
        "config": masked_json(study.config.model_dump(mode="json")),
        "search": study.section.model_dump(mode="json"),
        "trials": [trial.model_dump() for trial in study.trials],
        "front": front_table(study).rows,
        "stages": study.stages(),
        "cost": study.cost.model_dump(),
        "fresh": fresh.as_json() if fresh else None,
    }
    where = study.artifact.store.directory("report", study.artifact.fingerprint)
    return _page(study, fresh).write(where, NAME, data)


def _page(study: Study, fresh: Fresh | None) -> Page:
    counts, _, *winner = summary(study)
    section = study.section
    text = ". ".join([*winner, *(sentences(fresh) if fresh else [])])
    return Page(
        title="Latent size, ensemble count and what they cost",
        subtitle=f"bend tune · {counts} · {section.searcher.kind}, {section.scheduler.kind}, "
        f"objective {section.objective.kind} · {duration(study.cost.wall_seconds)}",
        headline=text[:1].upper() + text[1:] + ".",
        highlights=_cards(study),
        tables=[trials_table(study), front_table(study), stages_table(study)],
        chapters=chapters(study),
        made={
            "sentence": "The winner's config, best.yaml, for bend run:",
            "command": best_yaml(study.config_of(*study.winner), "", mask=True),
            "versions": f"store {study.artifact.store!r}, study {study.artifact.fingerprint}",
            "config": section.model_dump_json(indent=2),
            "artifacts": "\n".join(
                f"trial {trial.number:<3} {stage.stage:<12} {stage.fingerprint}"
                f"{'  made' if stage.made else ''}"
                for trial in study.trials
                for stage in trial.stages
            ),
        },
    )


def _cards(study: Study) -> list[Highlight]:
    trial, bag = study.winner
    turn, turned = study.front()[1]
    asked, made = study.stages_in_all()
    return [
        Highlight(
            value=f"{bag.nll:.4f}",
            label="Winner's validation NLL",
            note=f"trial {trial.number}, {bag.size} members, {100 * bag.accuracy:.2f} % accuracy",
        ),
        Highlight(
            value=f"{turned.nll:.4f} at {turned.cost_seconds:.1f} s",
            label="Knee of the trade",
            note=f"trial {turn.number}, {turned.size} members",
        ),
        Highlight(
            value=f"{asked - made} of {asked}",
            label="Stages shared",
            note=f"{made} were made, in {study.cost.seconds:.0f} s of the processor",
        ),
    ]


def chapters(study: Study) -> dict[str, list[ink.Panel]]:
    """Every figure, in reading order."""
    tuned = LATENT_SIZE in study.section.knobs
    return {
        "What does the latent size do?": [_by_latent_size(study, s) for s in _NAMES if tuned],
        "What do more members bring?": [_by_count(study, score) for score in _NAMES],
        "What is worth its cost?": [_front(study), _parallel(study)],
    }


def _panel(name: str, x: str, score: str, legend_rows: int = 1) -> ink.Panel:
    y = ink.SCORES[score].format("validation", "accuracy")
    return ink.Panel(name, x, y, legend_rows=legend_rows, left=_LEFT)


def _by_latent_size(study: Study, score: str) -> ink.Panel:
    panel = _panel(f"{score}_by_latent_size", "latent size", score)
    values = {trial.name: getattr(trial.best, score) for trial in study.done}
    size_of = {t.name: study.config_of(t, t.best).latent_size for t in study.done}
    scored = [(size_of[name], value) for name, value in values.items()]
    other: ink.Look = {"color": ink.SKY, "marker": "o", "linestyle": "none"}
    panel.axes.plot(*zip(*scored, strict=True), **other, label="a trial's best bag")
    best = max if score == "accuracy" else min
    sizes = sorted({size for size, _ in scored})
    envelope = [(size, best(value for s, value in scored if s == size)) for size in sizes]
    line: ink.Look = {"color": ink.INK, "linewidth": 1.0}
    panel.axes.plot(*zip(*envelope, strict=True), **line, label="best of a size")
    winner = study.winner[0].name
    at = ([size_of[winner]], [values[winner]])
    panel.axes.plot(*at, linestyle="none", **_LOOKS["winner"], label="winner")
    listed = ", ".join(f"{size}: {ink.score_text(value, score)}" for size, value in envelope)
    return panel.told(
        f"{_NAMES[score]} against latent size",
        "Each trial's best bag on validation images; trials of a size differ in the other knobs. "
        "Trials that were stopped early are not shown.",
        f"Best {_NAMES[score]} by latent size: {listed}.",
        columns=3,
    )


def _by_count(study: Study, score: str) -> ink.Panel:
    panel = _panel(f"{score}_by_ensemble_count", "members that vote", score)
    ink.sizes_axis(panel.axes, study.section.ensemble_counts)
    winner, base = study.winner[0], study.base

    def curve(trial: TrialRecord, **look: Any) -> None:
        values = [getattr(bag, score) for bag in trial.bags]
        panel.axes.plot([bag.size for bag in trial.bags], values, **look)

    pale: ink.Look = {"color": ink.SKY, "alpha": 0.5, "linewidth": 0.8}
    for trial in study.done:
        curve(trial, **pale)
    panel.axes.plot([], [], **pale, label="all trials")
    if base is not None:
        dashed: ink.Look = {"linestyle": ink.DASHES[1], "label": "config as given"}
        curve(base[0], **_LOOKS["config as given"], **dashed)
    curve(winner, **_LOOKS["winner"], label="winner")
    listed = ", ".join(
        f"{bag.size}: {ink.score_text(getattr(bag, score), score)}" for bag in winner.bags
    )
    return panel.told(
        f"{_NAMES[score]} against ensemble count",
        "Bags of members of one set of samples, on validation images; of members that vote as they "
        "come, the mean over 20 orders.",
        f"{_NAMES[score]} of the winner by members: {listed}.",
        columns=3,
    )


def _front(study: Study) -> ink.Panel:
    """NLL against total cost; the cost of an answer is the size of a point."""
    front, knee = study.front()
    x = "total cost from scratch (CPU seconds, GPU where used)"
    panel = _panel("pareto_front", x, "nll", legend_rows=2)
    most = max(bag.flops for _, bag in study.points)

    def scatter(points: Sequence[Point], **look: Any) -> None:
        x = [bag.cost_seconds for _, bag in points]
        area = [4 + 60 * (bag.flops / most) ** 0.5 for _, bag in points]
        panel.axes.scatter(x, [bag.nll for _, bag in points], s=area, **look)

    scatter(study.points, color=ink.SKY, alpha=0.35, linewidths=0, label="a bag")
    ring: ink.Look = {"facecolors": "none", "edgecolors": ink.INK, "linewidths": 0.9}
    scatter(front, **ring, label="on the front")
    marked = {"knee": knee, "winner": study.winner, "config as given": study.base}
    for name, point in marked.items():
        if point is not None:
            at = ([point[1].cost_seconds], [point[1].nll])
            panel.axes.plot(*at, linestyle="none", markersize=6, **_LOOKS[name], label=name)
    listed = "; ".join(
        f"trial {trial.number} with {bag.size} members: {bag.nll:.4f} at {bag.cost_seconds:.1f} s"
        for trial, bag in front
    )
    return panel.told(
        "The trade: NLL, total cost, cost of an answer",
        "Every bag of every trial; a larger point costs more to ask. On the front no other bag is "
        "as good in all three and better in one. The knee is nearest to the least of each, costs "
        "by their logarithms.",
        f"The front: {listed}. Knee: trial {knee[0].number} with {knee[1].size} members.",
        columns=3,
    )


@dataclass(frozen=True)
class _Column:
    """One axis of the parallel coordinates: where each trial's line crosses it, from 0 to 1."""

    name: str
    heights: list[float]
    ticks: dict[float, str]

    @classmethod
    def of(cls, name: str, values: list[Any], digits: str = ".4g") -> _Column:
        """Numbers in proportion, anything else at equal distances."""
        if not all(isinstance(each, int | float) and each is not True for each in values):
            texts = [flow(each) for each in values]
            places = {text: i for i, text in enumerate(sorted(set(texts)))}
            most = max(1, len(places) - 1)
            ticks = {place / most: text for text, place in places.items()}
            return cls(name, [places[text] / most for text in texts], ticks)
        low, high = min(values), max(values)
        shown = sorted(set(values))
        shown = shown if len(shown) <= 8 else [low, (low + high) / 2, high]
        spread = (high - low) or 1
        ticks = {(each - low) / spread: format(each, digits) for each in shown}
        return cls(name, [(each - low) / spread for each in values], ticks)


def _parallel(study: Study) -> ink.Panel:
    """Each trial a line through its knobs, its ensemble count and its scores."""
    done, winner = study.done, study.winner[0]
    bags = [trial.best for trial in done]
    columns = [
        *(_Column.of(n, [t.point[path] for t in done]) for path, n in study.section.names.items()),
        _Column.of("members", [bag.size for bag in bags]),
        _Column.of("cost, s", [bag.cost_seconds for bag in bags], ".1f"),
        _Column.of("NLL", [bag.nll for bag in bags], ".4f"),
    ]
    panel = ink.Panel("parallel_coordinates", left=0.35, height=4.2)
    scores = np.array([bag.objective for bag in bags])
    spread = float(scores.max() - scores.min()) or 1.0
    ramp = LinearSegmentedColormap.from_list("bend", [ink.VERMILLION, ink.SKY])
    for i in np.argsort(-scores):
        panel.axes.plot(
            [column.heights[i] for column in columns],
            color=ramp((scores[i] - scores.min()) / spread),
            linewidth=2.4 if done[i] is winner else 0.9,
            alpha=1.0 if done[i] is winner else 0.7,
        )
    for x, column in enumerate(columns):
        panel.axes.axvline(x, color=ink.INK, linewidth=0.7)
        for height, text in column.ticks.items():
            ink.note(panel.axes, text, (x, height))
    panel.axes.set_xticks(range(len(columns)), [column.name for column in columns], rotation=25)
    panel.axes.tick_params(axis="x", labelsize=7)
    panel.axes.set_yticks([])
    panel.axes.grid(visible=False)
    panel.axes.set_xlim(-0.1, len(columns) - 0.35)
    listed = ", ".join(f"{path} {flow(value)}" for path, value in winner.point.items())
    return panel.told(
        "All knobs at once",
        "A line is a trial that came to its end, through its knobs to the size and the score of "
        "its best bag; red is low in the objective, the thick line is the winner.",
        f"Winner: {listed}, {winner.best.size} members.",
    )
