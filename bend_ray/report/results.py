"""The result of a run, or of its repeats, as tables for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bend_ray.process.log import duration
from bend_ray.report.evaluation import (
    BagScores,
    Detection,
    Evaluation,
    NoveltyScores,
    Result,
    SetScores,
    Trust,
)
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

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Named columns, how to read them, and the row that stands out; ▲ is a win, ▼ a loss."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    ours: int | None = None

    @property
    def text(self) -> str:
        """Header and rows, in columns."""
        return "\n".join(aligned([self.header, *self.rows]))


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
    found = _known([each.prices.equal_cost_deep_ensemble for each in evaluations])
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
    if any(each.bag.temperature is None for each in evaluations):
        return ""
    (ours,) = cells([each.bag for each in evaluations], "temperature")
    if evaluations[0].bag.rmse is not None:
        return (
            "Variances are times a factor fitted on validation examples, every bag's its own; the "
            f"bag's is {ours}. {_intervals(evaluations)}"
        )
    return (
        "NLL, Brier and ECE are at temperatures fitted on validation images, every bag's its own; "
        f"the bag's is {ours}."
    )


def promises(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Sets, refusals and what is out of distribution, of bags for which these were asked."""
    bags = {name: [each.trust[name] for each in evaluations] for name in evaluations[0].trust}
    ours = bags.get(BAG, [])
    sets = [
        (named(name), f"{100 * float(wanted):g}", *_of_kinds(trusts, wanted))
        for name, trusts in bags.items()
        for wanted in next(iter(trusts[0].sets.values()), ())
    ]
    figures = ("coverage %", "least %", "size")
    refusals = [
        (named(name), f"{100 * float(wanted):g}", *cells(found, "answered", "accuracy"))
        for name, trusts in bags.items()
        for wanted in trusts[0].refusals
        if len(found := _known([each.refusals.get(wanted) for each in trusts])) == len(trusts)
    ]
    outside = [
        (inputs, named(name), *_detected([each.ood[inputs] for each in trusts]))
        for inputs in (ours[0].ood if ours else ())
        for name, trusts in bags.items()
    ]
    scores = next((each for ood in ours for each in ood.ood.values()), ())
    tables = [
        Table(
            "Sets that hold the truth",
            (
                *("sets", "wanted %"),
                *(
                    f"{kind} {figure}"
                    for kind in (ours[0].sets if ours else ())
                    for figure in figures
                ),
            ),
            sets,
            "By examples kept back. Least: of the worst class, or target. Size: mean number of "
            "classes, of which the most probable one is always in, or width.",
        ),
        Table(
            "Refusing what is not sure enough",
            ("refusals", "wanted accuracy %", "answered %", "of these right %"),
            refusals,
            "Thresholds are promised by a binomial bound on examples kept back, at 95 %.",
        ),
        Table(
            "Out of distribution",
            ("inputs", "bag", *(f"AUROC % {s}" for s in scores), "± images", "AUPR %", "FPR95 %"),
            outside,
            "AUPR, FPR95 and the AUROC's error over images are of entropy; outside is positive.",
        ),
    ]
    return [each for each in tables if each.rows]


def _of_kinds(trusts: Sequence[Trust], wanted: str) -> Iterator[str]:
    for kind in trusts[0].sets:
        yield from cells([each.sets[kind][wanted] for each in trusts], *SetScores.model_fields)


def _detected(found: Sequence[dict[str, Detection]]) -> Iterator[str]:
    for score in found[0]:
        yield from cells([each[score] for each in found], "auroc")
    entropy = [each["entropy"] for each in found]
    error, _ = mean_and_sd(each.standard_error for each in entropy)
    yield cell([error], "standard_error")
    yield from cells(entropy, "aupr", "fpr95")


def _intervals(evaluations: Sequence[Evaluation]) -> str:
    """What the bag's central intervals hold, and how wide they are: means over repeats."""
    bags = [each.bag for each in evaluations]
    told = []
    for place, level in enumerate(("50", "90", "95")):
        share, width = (
            statistics.fmean((getattr(bag, key) or ())[place] or 0.0 for bag in bags)
            for key in ("coverage", "width")
        )
        told.append(f"{level} % hold {100 * share:.1f} %, {width:.4g} wide")
    return f"Its intervals: {'; '.join(told)}."


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

    Args:
        results: of a run, or of its repeats: means ± standard deviations then, and of rivals also
            paired differences ± standard errors.
    """
    evaluations = [result.evaluation for result in results]
    sections = [_bags(evaluations), _members(evaluations), _novelty(evaluations), _cost(results)]
    parts = [aligned(rows) for rows in sections]
    parts[0] += filter(None, (unaffordable(evaluations), temperatures(evaluations)))
    if len(results) > 1:
        parts[0].append("tie: within 2 standard errors, or of only two repeats")
    parts += [[*aligned([each.header, *each.rows])] for each in promises(evaluations)]
    parts.append([line for result in results for line in divergences(result)])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _bags(evaluations: Sequence[Evaluation]) -> list[Row]:
    several, part = len(evaluations) > 1, f"{evaluations[0].part} part"
    names = {"accuracy": f"{evaluations[0].score} %", "nll": "NLL"}
    numbers = {"rmse": "RMSE", "crps": "CRPS", "pit_error": "PIT error %"}
    names |= {"brier": "Brier", "ece": "ECE %"} if evaluations[0].bag.rmse is None else numbers
    header = (part, *names.values(), "members", "cost s")
    rows: list[Row] = [header]
    if several:
        names.pop("brier", None)  # a terminal is narrow
        minus = ("bag minus it: points", "nats")
        rows = [(f"{part}, {len(evaluations)} repeats", *names.values(), *header[-2:], *minus)]
    bags = scored_bags(evaluations)
    for name in sorted(bags, key=lambda name: name != BAG):  # ours first
        scores = bags[name]
        size, cost = span([each.size for each in scores]), cells(scores, "cost_seconds")
        differ = _minus(bags[BAG], scores) if several else ()
        rows.append((named(name), *cells(scores, *names), size, *cost, *differ))
    return rows


def _minus(ours: list[BagScores], theirs: list[BagScores]) -> Row:
    found = {} if ours is theirs else differences(ours, theirs)
    texts = {score: f"{each.text} {each.verdict:<4}" for score, each in found.items()}
    return texts.get("accuracy", "-"), texts.get("nll", "-")


def _members(evaluations: Sequence[Evaluation]) -> list[Row]:
    keys = ("mean", "median", "min", "max")
    which = "q_statistic" if evaluations[0].bag.rmse is None else "correlation"
    differ = ("disagree %", "error IoU", which.partition("_")[0].capitalize())
    rows: list[Row] = [("single members", *(f"{key} %" for key in keys), *differ)]
    for name in POPULATIONS:
        accuracies = _known([getattr(each, name).accuracy for each in evaluations])
        pairs = _known([getattr(each.diversity, name) for each in evaluations])
        if accuracies:
            diversity = cells(pairs, "disagreement", "error_iou", which)
            rows.append((named(name), *cells(accuracies, *keys), *diversity))
    return rows


def _novelty(evaluations: Sequence[Evaluation]) -> list[Row]:
    shares = ("disagree within trunk %", "from nearest original %", "copies %")
    rows: list[Row] = [("novelty", "nearest ratio", "spread", *shares)]
    generated = [each.novelty for each in evaluations]
    held_out = _known([each.held_out for each in generated])
    for name, scores in (("generated", generated), ("held out", held_out)):
        if scores:
            rows.append((name, *cells(scores, *NoveltyScores.model_fields)))
    return rows


def _known(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if value is not None]


def _cost(results: Sequence[Result]) -> list[Row]:
    paid = money(results, results[0].fingerprints)
    rows: list[Row] = [("cost", "CPU s", "GPU s", "wall", *(["money"] if paid else []))]
    for stage in results[0].fingerprints:
        spent = [result.costs[stage] for result in results]
        wall, _ = mean_and_sd(each.wall_seconds for each in spent)
        seconds = cells(spent, "cpu_seconds", "gpu_seconds")
        rows.append((stage, *seconds, duration(wall or 0.0), *money(results, [stage])))
    if paid:
        rows.append(("all", "", "", "", *paid))
    prices = [result.evaluation.prices.per_model for result in results]
    for name, key in (
        ("one more generated model", "marginal_seconds"),
        ("... with all before it", "amortised_seconds"),
        ("one ordinary model", "ordinary_seconds"),
    ):
        rows.append((name, *cells(prices, key), "", "", *([""] if paid else [])))
    return rows


def money(results: Sequence[Result], stages: Iterable[str]) -> list[str]:
    """What the computing of some stages cost, where there are prices; else nothing."""
    if not all(result.money for result in results):
        return []
    return [cell([sum(result.money[stage] for stage in stages) for result in results], "money")]


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
