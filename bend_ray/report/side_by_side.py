"""Several runs side by side: stores, reports and JSON results become one table and one figure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from bend_ray.artifacts.directory import Directory
from bend_ray.artifacts.store import Store
from bend_ray.errors import StoreError
from bend_ray.report import ink, results
from bend_ray.report.evaluation import Result
from bend_ray.report.page import Page
from bend_ray.report.results import BAG, DEEP_ENSEMBLE, Row, Table, named
from bend_ray.report.runs import NAME, different, grouped, stored_runs, without_seeds
from bend_ray.report.statistics import BagDifference, cells, differences, mean_and_sd
from bend_ray.storage.filesystems import read_bytes, resolve
from bend_ray.storage.masking import cause, masked

COMPARED = (DEEP_ENSEMBLE, "originals_bag")
_OWN = ("run", "repeats", "members", "bag: accuracy %", "bag: NLL, nats", "member median %")
"""Columns that tell of the bag alone."""


@dataclass(frozen=True)
class Entry:
    """One run, or its repeats, and where it was read; of a JSON result the config is not known."""

    source: str
    results: list[Result]
    config: dict[str, Any] | None


def read_entries(sources: Sequence[str]) -> list[Entry]:
    """What each source holds: every run of a store, or the one of a report or a JSON result.

    Of a report the source is its folder, or one of its files; StoreError for anything else.
    """
    return [entry for source in sources for entry in _read(source)]


def _read(source: str) -> list[Entry]:
    filesystem, path = resolve(source)
    content = None
    for candidate in (f"{path}/{NAME}.json", path.replace(f"{NAME}.html", f"{NAME}.json")):
        # A folder by that name has no content, nor has a path of which a part is a file.
        with suppress(StoreError):
            if candidate.endswith(".json"):
                content = content or read_bytes(filesystem, candidate)
    if content:
        return [_parse(masked(source), content)]
    try:
        groups = grouped(stored_runs(Store(source)))
    except StoreError as error:
        raise StoreError(
            f"{masked(source)}: expected a store, a report or a result of bend run --json: {error}"
        ) from error
    return [
        Entry(masked(source), [run.result for run in group], group[0].config) for group in groups
    ]


def _parse(source: str, content: bytes) -> Entry:
    try:
        parsed = json.loads(content)
        config = parsed.get("config")
        found = parsed.get("results") or parsed.get("repeats") or [parsed]
        read = [Result.from_json(each) for each in found]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{source}: expected {NAME}.json or a result of bend run --json, got {cause(error)}"
        ) from error
    return Entry(source, read, config)


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
    rows = [_row(entry, name) for entry, name in zip(entries, names, strict=True)]
    sources = ", ".join(dict.fromkeys(entry.source for entry in entries))
    return Page(
        title=f"{len(entries)} runs side by side",
        subtitle=f"bend compare · {sources}",
        headline=_headline(entries),
        tables=[Table.of("runs", rows)],
        chapters={"At a glance": [_figure(entries, names)]},
    )


def write_comparison(entries: Sequence[Entry], page: Page, output: Directory) -> str:
    """Write the page, its figure and its data; returns where the page is."""
    data = [
        {"label": label, "source": entry.source, "results": [r.as_json() for r in entry.results]}
        for label, entry in zip(labels(entries), entries, strict=True)
    ]
    return page.write(output, "compare", data)


def text(page: Page) -> str:
    """The table in two parts, as a terminal is narrow: the bags; what they are beside others."""
    rows = page.tables[0].rows
    alone = [{head: cell for head, cell in row.items() if head in _OWN} for row in rows]
    beside = [{h: cell for h, cell in row.items() if h == "run" or h not in _OWN} for row in rows]
    return "\n\n".join("\n".join(results.text(part)) for part in (alone, beside))


def _headline(entries: Sequence[Entry]) -> str:
    """How often the bag wins, ties and loses in NLL."""
    parts = []
    for rival in COMPARED:
        verdicts = [
            found["nll"].verdict
            for entry in entries
            if len(entry.results) > 1 and "nll" in (found := _against(entry, rival))
        ]
        if verdicts:
            listed = ", ".join(f"{word} {verdicts.count(word)}" for word in ("win", "tie", "loss"))
            parts.append(f"In NLL against the {named(rival)}: {listed} (runs with repeats).")
    return " ".join(parts) or "No run has repeats: differences of single runs are not judged."


def _row(entry: Entry, name: str) -> Row:
    bags = [each.bag for each in entry.results]
    generated = [each.populations["generated"].accuracy for each in entry.results]
    models = [each for each in generated if each is not None]
    heads = {"accuracy": "bag: accuracy %", "nll": "bag: NLL, nats"}
    row = {"run": name, "repeats": str(len(bags)), "members": str(bags[0].size)}
    row |= cells(bags, heads) | cells(models, {"median": "member median %"})
    for rival in COMPARED:
        found = _against(entry, rival)
        for score, unit in (("accuracy", "points"), ("nll", "NLL")):
            minus = found.get(score)
            told = minus and (minus.marked if len(bags) > 1 else minus.text)
            row[f"minus {named(rival)}: {unit}"] = told or "-"
    return row | cells(bags, {"cost_seconds": "cost, s"})


def _against(entry: Entry, rival: str) -> dict[str, BagDifference]:
    """The bag minus a rival; nothing where it was none."""
    if rival not in entry.results[0].rivals:
        return {}
    ours, theirs = ([each.scores(name) for each in entry.results] for name in (BAG, rival))
    return differences(ours, theirs)


def _figure(entries: Sequence[Entry], names: Sequence[str]) -> ink.Panel:
    """NLL of the bag and of those it is compared with, a line a run."""
    short = [name if len(name) <= 30 else f"{name[:29]}…" for name in names]
    panel = ink.Panel("compare", "test NLL (nats)", height=max(1.8, 0.42 * len(names) + 1.0))
    for shift, bag in enumerate((BAG, *COMPARED)):
        look = {key: ink.LOOKS[bag][key] for key in ("color", "marker")}
        look |= {"linestyle": "none", "capsize": 2, "label": named(bag)}
        for level, (entry, name) in enumerate(zip(entries, short, strict=True)):
            scores = [e.scores(bag) for e in entry.results if bag == BAG or bag in e.rivals]
            mean, sd = mean_and_sd([each.nll for each in scores])
            if mean is not None:
                panel.axes.errorbar(mean, level + 0.22 * (shift - 1), xerr=sd or 0.0, **look)
                look["label"] = ""
                panel.say(f"{name}: {named(bag)} {mean:.4f}")
    panel.rows(short)
    panel.axes.tick_params(axis="y", labelsize=7)
    return panel.told()
