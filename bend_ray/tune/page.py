"""The tables of a study, trials, the Pareto front and what trials shared; and its page.

That is one self-contained HTML file, a PNG of each figure and a JSON beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from bend_ray.config.yaml_text import flow
from bend_ray.process.log import duration
from bend_ray.report import ink, results
from bend_ray.report.page import Page
from bend_ray.report.results import Row, Table
from bend_ray.report.verdicts import Highlight
from bend_ray.storage.masking import masked_json
from bend_ray.tune.records import TrialRecord
from bend_ray.tune.space import LATENT_SIZE
from bend_ray.tune.study import Fresh, Point, Study, best_yaml, sentences, summary

NAME = "tune"
_NAMES = {"nll": "NLL", "accuracy": "Accuracy"}
_LOOKS: dict[str, ink.Look] = {
    "winner": {"color": ink.VERMILLION, "marker": "o"},
    "config as given": {"color": ink.BLUE, "marker": "s"},
    "knee": {"color": ink.GREEN, "marker": "D"},
}
_PALE: ink.Look = {"color": ink.SKY, "alpha": 0.5, "linewidth": 0.8}


def trials_table(study: Study) -> Table:
    """Trials that are done, the lowest objective first, then those that are not."""
    others = [trial for trial in study.trials if trial.status != "done"]
    ordered = [*sorted(study.done, key=lambda trial: trial.best.objective), *others]
    rows = [_row(study, trial) for trial in ordered]
    failures = "".join(f" Trial {number} failed: {error}." for number, error in _failures(study))
    return Table.of("trials", rows, 0, failures=failures)


def front_table(study: Study) -> Table:
    """The Pareto front, its knee marked."""
    front, knee = study.front()
    rows = [
        {"trial": str(trial.number), **bag.cells, "": "knee" if (trial, bag) == knee else ""}
        for trial, bag in front
    ]
    return Table.of("front", rows, front.index(knee))


def stages_table(study: Study) -> Table:
    """What trials shared."""
    asked, made = study.stages_in_all()
    rows = [
        {"stage": stage, "asked for": str(n), "made": str(own), "shared": str(n - own)}
        for stage, (n, own) in study.stages().items()
    ]
    return Table.of("shared", rows, asked=asked, made=made, shared=asked - made)


def text(study: Study) -> str:
    """Trials and front as aligned text."""
    return "\n".join(
        [
            *results.text(trials_table(study).rows),
            *(f"trial {number} failed: {error}" for number, error in _failures(study)),
            "\nPareto front of validation NLL, total cost and cost of an answer",
            *results.text(front_table(study).rows),
        ]
    )


def _failures(study: Study) -> list[tuple[int, str]]:
    return [(t.number, t.error or "unknown") for t in study.trials if t.status == "failed"]


def _row(study: Study, trial: TrialRecord) -> Row:
    place = {"state": _place(study, trial)} if trial.status == "done" else {}
    made = ", ".join(stage.stage for stage in trial.stages if stage.made) or "nothing"
    return trial.row(study.section.names) | place | {"made": made}


def _place(study: Study, trial: TrialRecord) -> str:
    """Where a trial that is done stands to the front."""
    front, knee = study.front()
    sizes = sorted(bag.size for each, bag in front if each.name == trial.name)
    if not sizes:
        return "done"
    on = f"on the front with {', '.join(map(str, sizes))}"
    return f"{on}; knee" if knee[0].name == trial.name else on


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


def _panel(name: str, x: str, score: str) -> ink.Panel:
    return ink.Panel(name, x, ink.SCORES[score].format("validation", "accuracy"))


def _by_latent_size(study: Study, score: str) -> ink.Panel:
    panel = _panel(f"{score}_by_latent_size", "latent size", score)
    size_of = {t.name: study.config_of(t, t.best).latent_size for t in study.done}
    scored = [(size_of[trial.name], getattr(trial.best, score)) for trial in study.done]
    other: ink.Look = {"color": ink.SKY, "marker": "o", "linestyle": "none"}
    panel.axes.plot(*zip(*scored, strict=True), **other, label="a trial's best bag")
    best = max if score == "accuracy" else min
    envelope = {
        size: best(v for s, v in scored if s == size) for size in sorted({*size_of.values()})
    }
    line: ink.Look = {"color": ink.INK, "linewidth": 1.0}
    panel.line([*envelope], [*envelope.values()], "best of a size", **line)
    trial, bag = study.winner
    look = _LOOKS["winner"] | {"linestyle": "none"}
    panel.line(size_of[trial.name], getattr(bag, score), "winner", **look)
    return panel.told("latent_size", columns=3, what=_NAMES[score])


def _by_count(study: Study, score: str) -> ink.Panel:
    panel = _panel(f"{score}_by_ensemble_count", "members that vote", score)
    panel.sizes()

    def curve(trial: TrialRecord, label: str, **look: Any) -> None:
        panel.line(
            [b.size for b in trial.bags], [getattr(b, score) for b in trial.bags], label, **look
        )

    for trial in study.done:
        curve(trial, "", **_PALE)
    panel.axes.plot([], [], **_PALE, label="all trials")
    if study.base is not None:
        curve(
            study.base[0], "config as given", **_LOOKS["config as given"], linestyle=ink.DASHES[1]
        )
    curve(study.winner[0], "winner", **_LOOKS["winner"])
    return panel.told("ensemble_count", columns=3, what=_NAMES[score])


def _front(study: Study) -> ink.Panel:
    """NLL against total cost; the cost of an answer is the size of a point."""
    front, knee = study.front()
    panel = _panel("pareto_front", "total cost from scratch (CPU seconds, GPU where used)", "nll")
    most = max(bag.flops for _, bag in study.points)

    def scatter(points: Sequence[Point], label: str, **look: Any) -> None:
        area = [4 + 60 * (bag.flops / most) ** 0.5 for _, bag in points]
        x, y = zip(*((bag.cost_seconds, bag.nll) for _, bag in points), strict=True)
        panel.points(x, y, label, s=area, **look)

    scatter(study.points, "a bag", color=ink.SKY, alpha=0.35)
    ring: ink.Look = {"facecolors": "none", "edgecolors": ink.INK, "linewidths": 0.9}
    scatter(front, "on the front", **ring)
    marked = {"knee": knee, "winner": study.winner, "config as given": study.base}
    for name, point in marked.items():
        if point is not None:
            look = _LOOKS[name] | {"linestyle": "none", "markersize": 6}
            panel.line(point[1].cost_seconds, point[1].nll, name, **look)
    return panel.told(columns=3)


def _heights(values: Sequence[Any], digits: str = ".4g") -> tuple[list[float], dict[float, str]]:
    """Where lines cross an axis, from 0 to 1, and its ticks.

    Numbers are in proportion, anything else at equal distances.
    """
    if not all(isinstance(each, int | float) and each is not True for each in values):
        texts = [flow(each) for each in values]
        places = {text: place for place, text in enumerate(sorted({*texts}))}
        values, ticks = [places[text] for text in texts], {n: text for text, n in places.items()}
    else:
        shown = (
            sorted({*values}) if len({*values}) <= 8 else np.linspace(min(values), max(values), 3)
        )
        ticks = {each: format(each, digits) for each in shown}
    low, spread = min(values), (max(values) - min(values)) or 1
    return (
        [(each - low) / spread for each in values],
        {(each - low) / spread: text for each, text in ticks.items()},
    )


def _parallel(study: Study) -> ink.Panel:
    """Each trial a line through its knobs, its ensemble count and its scores."""
    done, winner = study.done, study.winner[0]
    bags = [trial.best for trial in done]
    columns = {
        **{n: _heights([t.point[path] for t in done]) for path, n in study.section.names.items()},
        "members": _heights([bag.size for bag in bags]),
        "cost, s": _heights([bag.cost_seconds for bag in bags], ".1f"),
        "NLL": _heights([bag.nll for bag in bags], ".4f"),
    }
    panel = ink.Panel("parallel_coordinates", height=4.2)
    scores, _ = _heights([bag.objective for bag in bags])
    ramp = LinearSegmentedColormap.from_list("bend", [ink.VERMILLION, ink.SKY])
    for i in np.argsort(scores)[::-1]:
        thick: ink.Look = {"linewidth": 2.4, "alpha": 1.0}
        look = thick if done[i] is winner else {"linewidth": 0.9, "alpha": 0.7}
        heights = [heights[i] for heights, _ in columns.values()]
        panel.axes.plot(heights, color=ramp(scores[i]), **look)
    for x, (_, ticks) in enumerate(columns.values()):
        panel.axes.axvline(x, color=ink.INK, linewidth=0.7)
        for height, text in ticks.items():
            panel.note(text, (x, height))
    panel.axes.set_xticks(range(len(columns)), [*columns], rotation=25)
    panel.axes.tick_params(axis="x", labelsize=7)
    panel.axes.set_yticks([])
    panel.axes.grid(visible=False)
    panel.axes.set_xlim(-0.1, len(columns) - 0.35)
    point = ", ".join(f"{path} {flow(value)}" for path, value in winner.point.items())
    panel.say(f"winner {point}, {winner.best.size} members")
    return panel.told()
