"""Several runs side by side: stores, reports and JSON results become one table and one figure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bend_ray.artifacts.directory import Directory
from bend_ray.artifacts.store import Store
from bend_ray.errors import StoreError
from bend_ray.report import ink
from bend_ray.report.command import different
from bend_ray.report.evaluation import Result
from bend_ray.report.location import HTML_NAME, JSON_NAME, page_uri
from bend_ray.report.page import Cell, Line, Page, Table, difference_cell, spread_text
from bend_ray.report.panel import Chapter, Panel
from bend_ray.report.runs import grouped, stored_runs, without_seeds
from bend_ray.report.statistics import BagDifference, differences, mean_and_sd
from bend_ray.storage.filesystems import read_bytes, resolve
from bend_ray.storage.masking import cause, masked

COMPARED = ("deep_ensemble", "originals_bag")
_OWN = 6
"""Columns that tell of the bag alone; the first names it."""
_NAMES = {"deep_ensemble": "deep ensemble", "originals_bag": "originals bag"}


@dataclass(frozen=True)
class Entry:
    """One run, or the repeats of one.

    Attributes:
        source: where it was read, without credentials.
        results: one a repeat.
        config: resolved; None where only a JSON result was given.
    """

    source: str
    results: list[Result]
    config: dict[str, Any] | None


def read_entries(sources: Sequence[str]) -> list[Entry]:
    """What each source holds: every run of a store, or the one of a report or a JSON result.

    Args:
        sources: stores; folders or files of reports (report.html or report.json beside it); files
            of ``bend run --json``.

    Raises:
        StoreError: a source that is none of them.
    """
    return [entry for source in sources for entry in _read(source)]


def _read(source: str) -> list[Entry]:
    filesystem, path = resolve(source)
    for candidate in (f"{path}/{JSON_NAME}", path.replace(HTML_NAME, JSON_NAME)):
        if candidate.endswith(".json") and (content := _content(filesystem, candidate)):
            return [_parse(masked(source), content)]
    store = Store(source)
    try:
        groups = grouped(stored_runs(store))
    except StoreError as error:
        raise StoreError(
            f"{masked(source)}: expected a store, a report or a result of bend run --json: {error}"
        ) from error
    return [
        Entry(masked(source), [run.result for run in group], group[0].config) for group in groups
    ]


def _content(filesystem: Any, path: str) -> bytes | None:
    try:
        return read_bytes(filesystem, path)
    except StoreError:
        return None  # A folder by that name, or a part of the path that is a file.


def _parse(source: str, content: bytes) -> Entry:
    try:
        parsed = json.loads(content)
        config = parsed.get("config")
        found = parsed.get("results") or parsed.get("repeats") or [parsed]
        results = [Result.from_json(each) for each in found]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{source}: expected {JSON_NAME} or a result of bend run --json, got {cause(error)}"
        ) from error
    return Entry(source, results, config)


def labels(entries: Sequence[Entry]) -> list[str]:
    """A name for each entry: what its config sets otherwise than the others', else its source."""
    known = [without_seeds(entry.config) for entry in entries if entry.config is not None]
    own_settings = iter(different(known))
    own = [next(own_settings) if entry.config is not None else {} for entry in entries]
    short, long = (
        [_label(entry, each, shorten) for entry, each in zip(entries, own, strict=True)]
        for shorten in (True, False)
    )
    names = short if len(set(short)) == len(short) else long
    twice = {name for name in names if names.count(name) > 1}
    return [
        f"{name} ({entry.source})" if name in twice else name
        for name, entry in zip(names, entries, strict=True)
    ]


def _label(entry: Entry, own: dict[str, str], shorten: bool) -> str:
    """What an entry's config sets otherwise; of a variant, where ``shorten``, its kind alone."""
    parts = []
    for key, value in own.items():
        kind = re.match(r"{kind: (\w+)\b", value) if shorten else None
        if value != "null":
            # Two parts of its path: `fraction` alone says little, the whole path is long.
            knob = ".".join(key.split(".")[-2:])
            parts.append(f"{knob}={kind[1] if kind else value}")
    data = (entry.config or {}).get("dataset", {}).get("kind")
    return ", ".join(parts) or (f"{data}, defaults" if data else entry.source)


def compared(entries: Sequence[Entry]) -> Page:
    """The page: one table, one figure."""
    names = labels(entries)
    sources = ", ".join(dict.fromkeys(entry.source for entry in entries))
    return Page(
        title=f"{len(entries)} runs side by side",
        subtitle=f"bend compare · {sources}",
        headline=_headline(entries),
        tables=[_table(entries, names)],
        chapters=[Chapter("At a glance", [_figure(entries, names)])],
    )


def write_comparison(entries: Sequence[Entry], page: Page, output: Directory) -> str:
    """Write the page, its figure and its data.

    Returns:
        Where the page is.

    Raises:
        StoreError: it cannot be written.
    """
    data = [
        {"label": label, "source": entry.source, "results": [r.as_json() for r in entry.results]}
        for label, entry in zip(labels(entries), entries, strict=True)
    ]
    page.write(output, data, "compare.html", "compare.json")
    return page_uri(output, "compare.html")


def text(page: Page) -> list[list[tuple[str, ...]]]:
    """The table in two parts, as a terminal is narrow: the bags; what they are beside others."""
    table = page.tables[0]
    rows = [tuple(table.header), *(tuple(cell.text for cell in row.cells) for row in table.rows)]
    return [[row[:_OWN] for row in rows], [(row[0], *row[_OWN:]) for row in rows]]


def _headline(entries: Sequence[Entry]) -> str:
    """How often the bag wins, ties and loses in NLL."""
    parts = []
    for rival in COMPARED:
        verdicts = [
            found["nll"].verdict
            for entry in entries
            if len(entry.results) > 1 and "nll" in (found := _against(entry.results, rival))
        ]
        if verdicts:
            counts = {word: verdicts.count(word) for word in ("win", "tie", "loss")}
            listed = ", ".join(f"{word} {count}" for word, count in counts.items())
            parts.append(f"In NLL against the {_NAMES[rival]}: {listed} (runs with repeats).")
    return " ".join(parts) or "No run has repeats: differences of single runs are not judged."


def _table(entries: Sequence[Entry], names: Sequence[str]) -> Table:
    header = ["run", "repeats", "members", "bag: accuracy %", "bag: NLL, nats", "member median %"]
    for rival in COMPARED:
        header += [f"minus {_NAMES[rival]}: points", f"minus {_NAMES[rival]}: NLL"]
    return Table(
        title="The bag of every run",
        header=[*header, "cost, s"],
        rows=[_line(entry, name) for entry, name in zip(entries, names, strict=True)],
        note="± of scores: standard deviation over repeats; of differences, paired by repeat: "
        "standard error. ▲ win, ▼ loss, = tie within 2 standard errors or of two repeats; a "
        "single run has no spread and no verdict.",
    )


def _line(entry: Entry, name: str) -> Line:
    results = entry.results
    bags = [result.evaluation.bag for result in results]
    spreads = [result.evaluation.generated.accuracy for result in results]
    medians = [None if spread is None else spread.median for spread in spreads]
    cells = [
        Cell(name),
        Cell(str(len(results))),
        Cell(str(bags[0].size)),
        Cell(spread_text(mean_and_sd([bag.accuracy for bag in bags]), 100, 2)),
        Cell(spread_text(mean_and_sd([bag.nll for bag in bags]), 1, 4)),
        Cell(spread_text(mean_and_sd(medians), 100, 2)),
    ]
    for rival in COMPARED:
        found = _against(results, rival)
        cells += [_minus(found.get("accuracy"), 100, 2), _minus(found.get("nll"), 1, 4)]
    cost, _ = mean_and_sd([bag.cost_seconds for bag in bags])
    return Line([*cells, Cell("unknown" if cost is None else f"{cost:.1f}")])


def _against(results: Sequence[Result], rival: str) -> dict[str, BagDifference]:
    """The bag minus a rival; nothing where it was none."""
    evaluations = [result.evaluation for result in results]
    if rival not in evaluations[0].rivals:
        return {}
    return differences([e.bag for e in evaluations], [e.rivals[rival] for e in evaluations])


def _minus(difference: BagDifference | None, scale: float, digits: int) -> Cell:
    if difference is not None and difference.standard_error is None:
        return Cell(f"{scale * difference.mean:+.{digits}f}")
    return difference_cell(difference, scale, digits) if difference else Cell("-")


def _figure(entries: Sequence[Entry], names: Sequence[str]) -> Panel:
    """NLL of the bag and of those it is compared with, a line a run."""
    figure, place = ink.axes(legend_rows=2, left=1.9, height=max(1.8, 0.42 * len(names) + 1.0))
    sentences = []
    for level, (entry, name) in enumerate(zip(entries, names, strict=True)):
        parts = []
        for shift, bag in enumerate(("bag", *COMPARED)):
            evaluations = [result.evaluation for result in entry.results]
            scores = [e.scores(bag) for e in evaluations if bag == "bag" or bag in e.rivals]
            mean, sd = mean_and_sd([each.nll for each in scores])
            if mean is None:
                continue
            look = {key: ink.LOOKS[bag][key] for key in ("color", "marker")}
            label = {"bag": "bag of generated"}.get(bag, _NAMES.get(bag)) if level == 0 else None
            height = -level - 0.22 * (shift - 1)
            place.errorbar(
                [mean], [height], xerr=[sd or 0.0], linestyle="none", capsize=2, label=label, **look
            )
            parts.append(f"{_NAMES.get(bag, bag)} {mean:.4f}")
        sentences.append(f"{name}: {', '.join(parts)}")
    short = [name if len(name) <= 30 else f"{name[:29]}…" for name in names]
    place.set_yticks([-level for level in range(len(names))], short)
    place.tick_params(axis="y", labelsize=7)
    place.set_xlabel("test NLL (nats)")
    ink.legend(figure, place)
    return Panel(
        "compare",
        "NLL of every run",
        "The bag and those it is compared with; bars are standard deviations over repeats. To the "
        "left is better.",
        f"Test NLL: {'; '.join(sentences)}.",
        figure,
    )
