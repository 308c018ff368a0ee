"""The page: one self-contained HTML file, a PNG of each figure and a JSON beside it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from bend_ray.artifacts.directory import Directory
from bend_ray.config.yaml_text import block
from bend_ray.report import ink, panels_bags, panels_members, results, verdicts
from bend_ray.report.evaluation import BagScores
from bend_ray.report.runs import NAME, Run, command, page_uri, seeds_of
from bend_ray.report.statistics import cell, cells
from bend_ray.report.verdicts import Highlight


@dataclass(frozen=True)
class Page:
    """What a page shows; every text is escaped when it is written."""

    title: str
    subtitle: str
    headline: str
    highlights: list[Highlight] = field(default_factory=list)
    tables: list[results.Table] = field(default_factory=list)
    chapters: dict[str, list[ink.Panel]] = field(default_factory=dict)
    """Figures by the question that they answer."""
    made: dict[str, str] | None = None

    def write(self, where: Directory, name: str, data: Any) -> str:
        """Write figures, ``name``.json and, last, ``name``.html: where it is, all of it is.

        Returns where the page is, as a path or URI; raises StoreError where it cannot be written.
        """
        drawings = {}
        for panel in itertools.chain(*self.chapters.values()):
            with where.open_output(f"{panel.name}.png") as stream:
                stream.write(panel.png())
            # Our own drawing, its text escaped by matplotlib and by ink.
            drawings[panel.name] = Markup(panel.svg())  # noqa: S704
        where.write_json(f"{name}.json", data)
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        environment.filters["unbroken"] = _unbroken
        source = files(__package__).joinpath("template.html").read_text(encoding="utf-8")
        html = environment.from_string(source).render(vars(self), drawings=drawings)
        with where.open_output(f"{name}.html") as stream:
            stream.write(html.encode())
        return page_uri(where, name)


def write_report(runs: Sequence[Run], output: Directory) -> str:
    """Write the report of a run, or of its repeats by seed; returns where the page is."""
    data = {
        "report": 1,
        "config": runs[0].config,
        "results": [run.result.as_json() for run in runs],
        "versions": runs[0].versions,
        "created": max(run.created for run in runs),
    }
    return report(runs).write(output, NAME, data)


def report(runs: Sequence[Run]) -> Page:
    """The report, drawn but not written."""
    dataset = runs[0].config["dataset"]
    name = dataset.get("name") or dataset["kind"].replace("_", " ")
    network = runs[0].config["seeds"]["architecture"]["kind"].replace("_", " ")
    protocol = runs[0].config["seeds"]["protocol"]["kind"]
    repeats = f", {len(runs)} repeats" if len(runs) > 1 else ""
    created = max(run.created for run in runs)
    return Page(
        title=f"A bag of generated networks on {name}",
        subtitle=f"bend report · {network} · population of {protocol}{repeats} · {created}",
        headline=verdicts.headline(runs),
        highlights=verdicts.highlights(runs),
        tables=[_rivals(runs), *results.promises([run.result for run in runs])],
        chapters={
            "What does a larger bag bring, and at what cost?": panels_bags.scores(runs),
            "Are generated models as good, and as different?": panels_members.panels(runs),
            "Can its probabilities be trusted?": panels_bags.trust(runs),
        },
        made=_made(runs),
    )


def _unbroken(text: str) -> str:
    """A figure stays on the line of its unit and spread."""
    return re.sub(r"(?<=\d) (?=%|s\b|nats|points|±)|(?<=±) ", "\u00a0", text)


def _rivals(runs: Sequence[Run]) -> results.Table:
    found = [run.result for run in runs]
    bags, scaled = results.scored_bags(found), results.temperatures(found)
    rows = [_row(runs, name, scores) for name, scores in bags.items()]
    if scaled:
        # What is scored after temperature scaling says that alone.
        rows = [{h: c for h, c in row.items() if h not in ("NLL scaled", "DEE")} for row in rows]
    spread = (
        f"± is the standard deviation over {len(runs)} repeats, each with its own seed and split; "
        "of differences, which are paired by repeat, the standard error."
        if len(runs) > 1
        else "One run has no spread of its own: ± of a difference is its standard error over test "
        "examples, which says nothing about another seed (bend run --repeats 5 does)."
    )
    lost = [f"Seed {r.config['seed']}, {e}." for r in runs for e in results.divergences(r.result)]
    notes = (scaled, results.unaffordable(found), _finished(runs[0].evidence["finish"]), *lost)
    more = "".join(f" {note}" for note in notes if note)
    return results.Table.of("rivals", rows, list(bags).index(results.BAG), spread=spread, more=more)


def _row(runs: Sequence[Run], name: str, scores: Sequence[BagScores]) -> results.Row:
    """A bag's, scores as voted and after temperature scaling."""
    of, equivalents = runs[0].result, verdicts.equivalents(runs, name)
    minus = {} if name == results.BAG else verdicts.minus(runs, name)
    recorded = [run.evidence["bags"].get(name) for run in runs]
    scaled = [each["scaled"]["nll"] for each in recorded if each is not None]
    members = results.span([each.size for each in scores])
    row = {f"{of.part} part": results.named(name), "members": members}
    row |= cells(scores, {"accuracy": f"{of.score} %", "nll": "NLL, nats"})
    row["NLL scaled"] = cell(scaled, "nll")
    error = {"ece": "ECE %"} if of.bag.rmse is None else {"pit_error": "PIT error %"}
    row |= cells(scores, error)
    row["DEE"] = str(equivalents.get(verdicts.AS_IT_IS, "-"))
    row["DEE scaled"] = str(equivalents.get(verdicts.SCALED, "-"))
    row |= cells(scores, {"cost_seconds": "cost, s"})
    for score, unit in (("accuracy", "points"), ("nll", "NLL")):
        row[f"bag minus it: {unit}"] = minus[score].marked if score in minus else ""
    return row


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


def _made(runs: Sequence[Run]) -> dict[str, str]:
    first = runs[0]
    seeds = [seeds_of(run) for run in runs]
    in_a_row = all(b == (a[0] + 1, a[1] + 1) for a, b in itertools.pairwise(seeds))
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
