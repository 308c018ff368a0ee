"""The result of a run, or of its repeats, as tables for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from bend_ray.process.log import duration
from bend_ray.report.evaluation import BagScores, Detection, Evaluation, Result, Trust
from bend_ray.report.statistics import cell, cells, differences, mean_and_sd

BAG = "bag"
DEEP_ENSEMBLE = "deep_ensemble"
EQUAL_COST = "deep ensemble, equal cost"
POPULATIONS = ("generated", "originals", "held_out")

_NAMES = {
    BAG: "bag of generated",
    "member": "its median member",
    "multiswag": "MultiSWAG",
    "gaussian": "Gaussian",
}
_OF_CLASSES = {"brier": "Brier", "ece": "ECE %"}
_OF_NUMBERS = {"rmse": "RMSE", "crps": "CRPS", "pit_error": "PIT error %"}
_NOVELTY = {
    "nearest_ratio": "nearest ratio",
    "spread": "spread",
    "within_trunk_disagreement": "disagree within trunk %",
    "functional_distance": "from nearest original %",
    "copies": "copies %",
}
_PRICES = {
    "marginal_seconds": "one more generated model",
    "amortised_seconds": "... with all before it",
    "ordinary_seconds": "one ordinary model",
}
_SETS = {"coverage": "coverage %", "least": "least %", "size": "size"}

Row = dict[str, str]
"""Cells by the names of their columns, which all rows of a table share."""


@dataclass(frozen=True)
class Table:
    """Rows, how to read them, and the row that stands out; ▲ is a win, ▼ a loss."""

    title: str
    note: str
    rows: Sequence[Row]
    ours: int | None = None

    @classmethod
    def of(cls, name: str, rows: Sequence[Row], ours: int | None = None, **values: Any) -> Table:
        """With the words of that name."""
        return cls(*words_of(name, **values), rows, ours)


@cache
def _words() -> dict[str, dict[str, str]]:
    written = files(__package__).joinpath("words.yaml").read_text(encoding="utf-8")
    words: dict[str, dict[str, str]] = yaml.safe_load(written)
    return words


def words_of(name: str, **values: Any) -> tuple[str, str]:
    """The title of a table or figure, and how to read it, with values in place of their names."""
    title, note = (text.format(**values) for text in _words()[name].values())
    return title, note


def named(name: str) -> str:
    """A bag, or a population, as people call it.

    >>> named("bag"), named("deep_ensemble")
    ('bag of generated', 'deep ensemble')
    """
    return _NAMES.get(name, name.replace("_", " "))


def scored_bags(evaluations: Sequence[Evaluation]) -> dict[str, list[BagScores]]:
    """Every bag's scores, one a repeat, by name, the lowest mean NLL first.

    They are ours, our rivals, and as many members of the deep ensemble as our cost would have
    trained, if it has them.
    """
    names = (BAG, *evaluations[0].rivals)
    found = {name: [each.scores(name) for each in evaluations] for name in names}
    equal = _equal_cost(evaluations)
    if equal and not unaffordable(evaluations):
        found[EQUAL_COST] = equal

    def rank(name: str) -> float:
        nll, _ = mean_and_sd(each.nll for each in found[name])
        return math.inf if nll is None else nll

    return {name: found[name] for name in sorted(found, key=rank)}


def _equal_cost(evaluations: Sequence[Evaluation]) -> list[BagScores]:
    """Of the deep ensemble of equal cost, if every repeat has one."""
    found = _known(each.prices.equal_cost_deep_ensemble for each in evaluations)
    return found if len(found) == len(evaluations) else []


def unaffordable(evaluations: Sequence[Evaluation]) -> str:
    """By how much a deep ensemble is smaller than our cost would pay for; "" where it is not."""
    equal = _equal_cost(evaluations)
    if all(each.size == each.affordable for each in equal):
        return ""
    affordable, size = (span([getattr(e, key) for e in equal]) for key in ("affordable", "size"))
    return (
        f"The bag's cost would have trained {affordable} ordinary models; the deep ensemble has "
        f"{size}."
    )


def temperatures(evaluations: Sequence[Evaluation]) -> str:
    """At which temperatures bags are scored; "" where votes are scored as they are."""
    bags = [each.bag for each in evaluations]
    if any(bag.temperature is None for bag in bags):
        return ""
    ours = cell([bag.temperature for bag in bags], "temperature")
    if bags[0].rmse is None:
        return (
            "NLL, Brier and ECE are at temperatures fitted on validation examples, every bag's its "
            f"own; the bag's is {ours}."
        )
    intervals = []
    for place, level in enumerate(("50", "90", "95")):
        share, width = (
            statistics.fmean((getattr(bag, key) or ())[place] or 0.0 for bag in bags)
            for key in ("coverage", "width")
        )
        intervals.append(f"{level} % hold {100 * share:.1f} %, {width:.4g} wide")
    return (
        "Variances are times a factor fitted on validation examples, every bag's its own; the "
        f"bag's is {ours}. Its intervals: {'; '.join(intervals)}."
    )


def promises(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Sets, refusals and what is out of distribution, of bags for which these were asked."""
    bags = {name: [each.trust[name] for each in evaluations] for name in evaluations[0].trust}
    sets = [
        {"sets": named(name), "wanted %": _percent(wanted)} | _of_kinds(trusts, wanted)
        for name, trusts in bags.items()
        for wanted in next(iter(trusts[0].sets.values()), ())
    ]
    heads = {"answered": "answered %", "accuracy": "of these right %"}
    refusals = [
        {"refusals": named(name), "wanted accuracy %": _percent(wanted)} | cells(found, heads)
        for name, trusts in bags.items()
        for wanted in trusts[0].refusals
        if len(found := _known(each.refusals.get(wanted) for each in trusts)) == len(trusts)
    ]
    outside = [
        {"inputs": inputs, "bag": named(name)} | _detected([each.ood[inputs] for each in trusts])
        for inputs in (bags[BAG][0].ood if BAG in bags else ())
        for name, trusts in bags.items()
    ]
    tables = {"sets": sets, "refusals": refusals, "outside": outside}
    return [Table.of(name, rows) for name, rows in tables.items() if rows]


def _percent(share: str) -> str:
    return f"{100 * float(share):g}"


def _of_kinds(trusts: Sequence[Trust], wanted: str) -> Row:
    row: Row = {}
    for kind in trusts[0].sets:
        heads = {name: f"{kind} {head}" for name, head in _SETS.items()}
        row |= cells([each.sets[kind][wanted] for each in trusts], heads)
    return row


def _detected(found: Sequence[dict[str, Detection]]) -> Row:
    row: Row = {}
    for score in found[0]:
        row |= cells([each[score] for each in found], {"auroc": f"AUROC % {score}"})
    entropy = [each["entropy"] for each in found]
    error, _ = mean_and_sd(each.standard_error for each in entropy)
    row["± examples"] = cell([error], "standard_error")
    return row | cells(entropy, {"aupr": "AUPR %", "fpr95": "FPR95 %"})


def divergences(result: Result) -> list[str]:
    """What became of models that diverged, a line each; none where none did."""
    lines = []
    for stage, counts in result.diverged.items():
        if counts.dropped:
            lines.append(f"{stage}: {counts.dropped} diverged and left out")
        if counts.retrained:
            lines.append(
                f"{stage}: {counts.retrained} diverged and trained again with another seed"
            )
    return lines


def span(counts: Sequence[int]) -> str:
    """Whole numbers as text: the least and the greatest where they differ.

    >>> span([1200, 48, 1200]), span([48, 48])
    ('48 to 1,200', '48')
    """
    ends = dict.fromkeys((min(counts), max(counts)))
    return " to ".join(f"{end:,}" for end in ends)


def table(*results: Result) -> str:
    """Bags, single members, novelty, cost and divergence as aligned text.

    Of repeats: means ± standard deviations, of rivals also paired differences ± standard errors.
    """
    parts = [text(rows(results)) for rows in (_bags, _members, _novelty, _cost)]
    parts[0] += filter(None, (unaffordable(results), temperatures(results)))
    if len(results) > 1:
        parts[0].append("tie: within 2 standard errors, or of only two repeats")
    parts += [text(each.rows) for each in promises(results)]
    parts.append(text(_shift(results)))
    parts.append([line for result in results for line in divergences(result)])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _bags(results: Sequence[Result]) -> list[Row]:
    several, of = len(results) > 1, results[0]
    heads = {"accuracy": f"{of.score} %", "nll": "NLL"}
    heads |= _OF_CLASSES if of.bag.rmse is None else _OF_NUMBERS
    part = f"{of.part} part"
    if several:
        heads.pop("brier", None)  # a terminal is narrow
        part += f", {len(results)} repeats"
    bags, rows = scored_bags(results), []
    for name in sorted(bags, key=lambda name: name != BAG):  # ours first
        scores = bags[name]
        row = {part: named(name)} | cells(scores, heads)
        row["members"] = span([each.size for each in scores])
        row |= cells(scores, {"cost_seconds": "cost s"})
        if several:
            found = {} if name == BAG else differences(bags[BAG], scores)
            texts = {score: f"{each.text} {each.verdict:<4}" for score, each in found.items()}
            row["bag minus it: points"] = texts.get("accuracy", "-")
            row["nats"] = texts.get("nll", "-")
        rows.append(row)
    return rows


def _members(results: Sequence[Result]) -> list[Row]:
    heads = {key: f"{key} %" for key in ("mean", "median", "min", "max")}
    which = "q_statistic" if results[0].bag.rmse is None else "correlation"
    differ = {"disagreement": "disagree %", "error_iou": "error IoU"}
    differ[which] = which.partition("_")[0].capitalize()
    rows = []
    for name in POPULATIONS:
        models = [each.populations[name] for each in results]
        pairs = _known(each.diversity for each in models)
        if accuracies := _known(each.accuracy for each in models):
            own = cells(accuracies, heads) | cells(pairs, differ)
            rows.append({"single members": named(name)} | own)
    return rows


def _novelty(results: Sequence[Result]) -> list[Row]:
    models = {name: [each.populations[name] for each in results] for name in POPULATIONS}
    return [
        {"novelty": named(name)} | cells(scores, _NOVELTY)
        for name, found in models.items()
        if (scores := _known(each.novelty for each in found))
    ]


def _known(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _shift(results: Sequence[Result]) -> list[Row]:
    """The bag's score on the test part as it is corrupted least and most; the report has all."""
    bags = [each.trust[BAG].shift for each in results if BAG in each.trust]
    rows = []
    for name in bags[0] if bags else ():
        row = {"shift of the bag (all in the report)": named(name)}
        for severity in min(bags[0][name]), max(bags[0][name]):
            head = f"{results[0].score} % at severity {severity}"
            row |= cells([each[name][severity] for each in bags], {"accuracy": head})
        rows.append(row)
    return rows


def _cost(results: Sequence[Result]) -> list[Row]:
    rows = []
    heads = {"cpu_seconds": "CPU s", "gpu_seconds": "GPU s"}
    for stage in results[0].fingerprints:
        spent = [result.cost[stage] for result in results]
        wall, _ = mean_and_sd(each.wall_seconds for each in spent)
        row = {"cost": stage} | cells(spent, heads) | {"wall": duration(wall or 0.0)}
        rows.append(row | money(results, [stage]))
    if paid := money(results, results[0].fingerprints):
        rows.append({"cost": "all"} | paid)
    prices = [result.prices for result in results]
    for key, name in _PRICES.items():
        rows.append({"cost": name} | cells(prices, {key: "CPU s"}))
    return rows


def money(results: Sequence[Result], stages: Iterable[str]) -> Row:
    """What the computing of some stages cost, where there are prices; else nothing."""
    if not all(result.money for result in results):
        return {}
    sums = [sum(result.money[stage] for stage in stages) for result in results]
    return {"money": cell(sums, "money")}


def text(rows: Sequence[Row]) -> list[str]:
    """Rows below the names of their columns, a line each; what a row lacks is left empty."""
    if not rows:
        return []
    heads = [*rows[0]]
    return aligned([heads, *([row.get(head, "") for head in heads] for row in rows)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell: names to the left, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
