"""The page: one self-contained HTML file, a PNG of each figure and a JSON beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise
from typing import Any

import jinja2
from markupsafe import Markup

from bend_ray.artifacts.directory import Directory
from bend_ray.config.yaml_text import block
from bend_ray.process.log import moment
from bend_ray.report import ink, verdicts
from bend_ray.report.command import command
from bend_ray.report.location import HTML_NAME, JSON_NAME, page_uri
from bend_ray.report.panel import Chapter
from bend_ray.report.panels import chapters
from bend_ray.report.results import divergences, temperatures, unaffordable
from bend_ray.report.runs import Run, seeds_of
from bend_ray.report.statistics import BagDifference
from bend_ray.report.verdicts import Highlight, Row


@dataclass(frozen=True)
class Cell:
    """A cell of a table, and which way it speaks."""

    text: str
    verdict: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    cells: list[Cell]
    ours: bool = False


@dataclass(frozen=True)
class Table:
    """A table, and how to read it."""

    title: str
    header: list[str]
    rows: list[Line]
    note: str = ""


@dataclass(frozen=True)
class Page:
    """What a page shows; every text is escaped when it is written."""

    title: str
    subtitle: str
    headline: str
    highlights: list[Highlight] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    chapters: list[Chapter] = field(default_factory=list)
    made: dict[str, str] | None = None

    def write(self, where: Directory, data: Any, html_name: str, json_name: str) -> None:
        """Write figures and data, and the page last: where it is, all of it is.

        Raises:
            StoreError: it cannot be written.
        """
        panels = [panel for chapter in self.chapters for panel in chapter.panels]
        drawings = {}
        for panel in panels:
            with where.open_output(f"{panel.name}.png") as stream:
                stream.write(ink.png(panel.figure))
            # Our own drawing, its text escaped by matplotlib and by ink.
            drawings[panel.name] = Markup(ink.svg(panel.figure, panel.alt, panel.name))  # noqa: S704
        where.write_json(json_name, data)
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        environment.filters["unbroken"] = _unbroken
        source = files(__package__).joinpath("template.html").read_text(encoding="utf-8")
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        html = environment.from_string(source).render(**values, drawings=drawings)
        with where.open_output(html_name) as stream:
            stream.write(html.encode())


def write_report(runs: Sequence[Run], output: Directory) -> str:
    """Write the report of one run or of its repeats.

    Args:
        runs: of one config, by seed.
        output: where to; see ``location``.

    Returns:
        Where the page is, as a path or URI.

    Raises:
        StoreError: it cannot be written.
    """
    page = report(runs)
    data = {
        "report": 1,
        "config": runs[0].config,
        "results": [run.result.as_json() for run in runs],
        "versions": runs[0].versions,
        "created": max(run.created for run in runs),
    }
    page.write(output, data, HTML_NAME, JSON_NAME)
    return page_uri(output)


def report(runs: Sequence[Run]) -> Page:
    """The report, drawn but not written."""
    dataset = runs[0].config["dataset"]
    name = dataset.get("name") or dataset["kind"].replace("_", " ")
    network = runs[0].config["seeds"]["architecture"]["kind"].replace("_", " ")
    protocol = runs[0].config["seeds"]["protocol"]["kind"]
    repeats = f", {len(runs)} repeats" if len(runs) > 1 else ""
    created = moment(max(run.created for run in runs))
    return Page(
        title=f"A bag of generated classifiers on {name}",
        subtitle=f"bend report · {network} · population of {protocol}{repeats} · {created}",
        headline=verdicts.headline(runs),
        highlights=verdicts.highlights(runs),
        tables=[_rivals(runs)],
        chapters=chapters(runs),
        made=_made(runs),
    )


def _unbroken(text: str) -> str:
    """A figure stays on the line of its unit and spread."""
    return re.sub(r"(?<=\d) (?=%|s\b|nats|points|±)|(?<=±) ", "\u00a0", text)


def _rivals(runs: Sequence[Run]) -> Table:
    evaluations = [run.evaluation for run in runs]
    too_few, scaled = unaffordable(evaluations), temperatures(evaluations)
    notes = (_note(len(runs)), scaled, too_few, _finished(runs[0].evidence["finish"]))
    both = not scaled
    return Table(
        title="The bag and its rivals, the best NLL first",
        header=[
            f"{runs[0].evaluation.part} part",
            "members",
            "accuracy %",
            "NLL, nats",
            *(["NLL scaled"] if both else []),
            "ECE %",
            *(["DEE"] if both else []),
            "DEE scaled",
            "cost, s",
            "bag minus it: points",
            "bag minus it: NLL",
        ],
        rows=[_line(row, both) for row in verdicts.rows(runs)],
        note=" ".join(filter(None, notes)) + _diverged(runs),
    )


def _finished(finish: dict[str, Any]) -> str:
    """A sentence on what was done to drawn models before they voted."""
    done = []
    if finish["guidance"]:
        done.append(
            f"moved on by {finish['guidance']:g} of their trunk's way from its early tails to its "
            "members, which their spread includes"
        )
    if fraction := finish["annealing"]["fraction"]:
        done.append(
            f"trained for {100 * fraction:g} % of an ordinary training, which their cost includes"
        )
    return f"Generated models were {', then '.join(done)}." if done else ""


def _diverged(runs: Sequence[Run]) -> str:
    """A sentence on what diverged, of each run in which something did."""
    return "".join(
        f" Seed {run.config['seed']}, {line}." for run in runs for line in divergences(run.result)
    )


def _note(repeats: int) -> str:
    if repeats > 1:
        spread = (
            f"± is the standard deviation over {repeats} repeats, each with its own seed and "
            "split; of differences, which are paired by repeat, the standard error."
        )
    else:
        spread = (
            "One run has no spread of its own: ± of a difference is its standard error over test "
            "images, which says nothing about another seed (bend run --repeats 5 does)."
        )
    return (
        f"{spread} ▲ win, ▼ loss of the bag; = tie, a difference within 2 standard errors, or "
        "of only two repeats. Scaled: after temperature scaling on validation images. DEE: "
        "independent networks that reach the same NLL. Cost: everything from scratch, GPU seconds "
        "where one was used, else CPU seconds."
    )


def _line(row: Row, both: bool) -> Line:
    """``both``: scores as voted and after temperature scaling, or the latter alone."""
    ours = row.name == verdicts.named(verdicts.BAG)
    return Line(
        [
            Cell(row.name),
            Cell(row.size),
            Cell(spread_text(row.accuracy, 100, 2)),
            Cell(spread_text(row.nll, 1, 4)),
            *([Cell(spread_text(row.scaled_nll, 1, 4))] if both else []),
            Cell(spread_text(row.ece, 100, 2)),
            *([Cell(str(row.equivalents.get(verdicts.AS_IT_IS, "-")))] if both else []),
            Cell(str(row.equivalents.get(verdicts.SCALED, "-"))),
            Cell("unknown" if row.cost_seconds is None else f"{row.cost_seconds:.1f}"),
            difference_cell(row.minus.get("accuracy"), 100, 2),
            difference_cell(row.minus.get("nll"), 1, 4),
        ],
        ours,
    )


def spread_text(value: tuple[float | None, float | None], scale: float, digits: int) -> str:
    """Mean ± standard deviation, where they are known."""
    mean, sd = value
    if mean is None:
        return "-"
    spread = "" if sd is None else f" ± {scale * sd:.{digits}f}"
    return f"{scale * mean:.{digits}f}{spread}"


def difference_cell(difference: BagDifference | None, scale: float, digits: int) -> Cell:
    """A difference ± its standard error, marked as win, loss or tie."""
    if difference is None:
        return Cell("")
    error = difference.standard_error
    spread = "" if error is None else f" ± {scale * error:.{digits}f}"
    mark = {"win": "▲", "loss": "▼", "tie": "="}[difference.verdict]
    text = f"{scale * difference.mean:+.{digits}f}{spread} {mark}"
    return Cell(text, difference.verdict)


def _made(runs: Sequence[Run]) -> dict[str, str]:
    first = runs[0]
    seeds = [seeds_of(run) for run in runs]
    in_a_row = all(b == (a[0] + 1, a[1] + 1) for a, b in pairwise(seeds))
    commands = (
        [command(first.config, len(runs))]
        if in_a_row or "split_seed" not in first.config["dataset"]
        else [command(run.config) for run in runs]
    )
    stores = sorted({run.result.store for run in runs})
    return {
        "sentence": f"Store {', '.join(stores)}; made again, or found there, by",
        "command": "\n".join(commands),
        "versions": ", ".join(f"{name} {version}" for name, version in first.versions.items()),
        "config": block(first.config),
        "artifacts": "\n\n".join(
            "\n".join(f"{s:<12} {name}" for s, name in run.result.fingerprints.items())
            for run in runs
        ),
    }
