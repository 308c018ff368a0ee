"""The result of a run as a table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bend_ray.ensemble.votes import TEMPERATURE_RANGE, is_at_an_end
from bend_ray.process.log import duration
from bend_ray.report.evaluation import BagScores, Evaluation, NoveltyScores, Result
from bend_ray.report.statistics import BagDifference, differences, mean_and_sd

POPULATIONS = ("generated", "originals", "held_out")


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


def unaffordable(evaluations: Sequence[Evaluation]) -> str:
    """By how much a deep ensemble is smaller than our cost would have paid for; "" where it is not.

    Args:
        evaluations: of one run, or of its repeats.
    """
    equal = [each.prices.equal_cost_deep_ensemble for each in evaluations]
    there = [each for each in equal if each is not None]
    if len(there) < len(equal) or all(each.size == each.affordable for each in there):
        return ""
    affordable, size = (span([getattr(e, key) for e in there]) for key in ("affordable", "size"))
    return (
        f"The bag's cost would have trained {affordable} ordinary models; the deep ensemble has "
        f"{size}."
    )


def temperatures(evaluations: Sequence[Evaluation]) -> str:
    """At which temperatures bags are scored; "" where votes are scored as they are.

    Args:
        evaluations: of one run, or of its repeats.
    """
    found = [each.bag.temperature for each in evaluations if each.bag.temperature is not None]
    if len(found) < len(evaluations):
        return ""
    ends = dict.fromkeys(f"{end:.2f}" for end in (min(found), max(found)))
    return _at_temperatures(" to ".join(ends)) + _unfixed(evaluations)


def _unfixed(evaluations: Sequence[Evaluation]) -> str:
    """Whose temperature the validation images do not fix."""
    bags = [(name, each.scores(name)) for each in evaluations for name in ("bag", *each.rivals)]
    names = sorted({spaced(name) for name, bag in bags if is_at_an_end(bag.temperature or 1.0)})
    if not names:
        return ""
    low, high = TEMPERATURE_RANGE
    return (
        f" Validation images do not fix that of {', '.join(names)}: it is at an end of its "
        f"range, {low:g} to {high:g}."
    )


def _at_temperatures(ours: str) -> str:
    return (
        "NLL, Brier and ECE are at temperatures fitted on validation images, every bag's its own; "
        f"the bag's is {ours}."
    )


def span(counts: Sequence[int]) -> str:
    """Whole numbers as text: the least and the greatest where they differ.

    >>> span([1200, 48, 1200]), span([48, 48])
    ('48 to 1,200', '48')
    """
    ends = dict.fromkeys((min(counts), max(counts)))
    return " to ".join(f"{end:,}" for end in ends)


def spaced(name: str) -> str:
    """A kind as words."""
    return name.replace("_", " ")


def table(result: Result) -> str:
    """The result as aligned text: the bag and its rivals, members, novelty, cost, divergence."""
    evaluation = result.evaluation
    sections = [_bags(evaluation), _members(evaluation), _novelty(evaluation), _cost(result)]
    parts = [aligned(rows) for rows in sections] + [divergences(result)]
    parts[0] += filter(None, (unaffordable([evaluation]), temperatures([evaluation])))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def repeats_table(results: Sequence[Result]) -> str:
    """Several repeats as aligned text: mean ± sd, and paired differences ± standard error."""
    evaluations = [result.evaluation for result in results]
    parts = [
        aligned(rows) for rows in (_repeated_bags(evaluations), _repeated_members(evaluations))
    ]
    if temperatures(evaluations):
        found = _Statistic.of([each.bag.temperature for each in evaluations])
        parts[0].append(_at_temperatures(found.text(1, 2)))
    note = "tie: within 2 standard errors, or of only two repeats"
    return "\n\n".join(["\n".join(lines) for lines in parts] + [note])


Row = tuple[str, ...]


def _bags(evaluation: Evaluation) -> list[Row]:
    header = (f"{evaluation.part} part", "accuracy", "NLL", "Brier", "ECE", "members", "cost s")
    rows = [header, _bag_row("bag of generated", evaluation.bag)]
    # A NLL that was not finite comes last.
    rivals = sorted(evaluation.rivals.items(), key=lambda item: _or_infinity(item[1].nll))
    rows += [_bag_row(spaced(name), scores) for name, scores in rivals]
    equal = evaluation.prices.equal_cost_deep_ensemble
    if equal and not unaffordable([evaluation]):
        rows.append(_bag_row("deep ensemble, equal cost", equal))
    return rows


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value


def _bag_row(name: str, scores: BagScores) -> Row:
    return (
        name,
        _percent(scores.accuracy),
        _number(scores.nll, 4),
        _number(scores.brier, 4),
        _percent(scores.ece),
        str(scores.size),
        _seconds(scores.cost_seconds),
    )


def _members(evaluation: Evaluation) -> list[Row]:
    rows: list[Row] = [
        ("single members", "mean", "median", "min", "max", "disagree", "error IoU", "Q"),
    ]
    for name in POPULATIONS:
        accuracy = evaluation.population(name).accuracy
        if accuracy is None:
            continue
        diversity = getattr(evaluation.diversity, name)
        differs = (
            ("-", "-", "-")
            if diversity is None
            else (
                _percent(diversity.disagreement),
                _number(diversity.error_iou, 2),
                _number(diversity.q_statistic, 2),
            )
        )
        spread = (accuracy.mean, accuracy.median, accuracy.min, accuracy.max)
        rows.append((spaced(name), *map(_percent, spread), *differs))
    return rows


def _novelty(evaluation: Evaluation) -> list[Row]:
    shares = ("disagree within trunk", "from nearest original", "copies")
    rows: list[Row] = [("novelty", "nearest ratio", "spread", *shares)]
    rows.append(("generated", *_novelty_cells(evaluation.novelty)))
    if evaluation.novelty.held_out is not None:
        rows.append(("held out", *_novelty_cells(evaluation.novelty.held_out)))
    return rows


def _novelty_cells(scores: NoveltyScores) -> Row:
    return (
        _number(scores.nearest_ratio, 2),
        _number(scores.spread, 2),
        _percent(scores.within_trunk_disagreement),
        _percent(scores.functional_distance),
        _percent(scores.copies),
    )


@dataclass(frozen=True)
class _Statistic:
    """Mean and standard deviation over repeats; None where there is too little."""

    mean: float | None
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> _Statistic:
        return cls(*mean_and_sd(values))

    def text(self, scale: float, digits: int) -> str:
        if self.mean is None:
            return "-"
        spread = "" if self.sd is None else f" ± {scale * self.sd:.{digits}f}"
        return f"{scale * self.mean:.{digits}f}{spread}"


def _repeated_bags(evaluations: Sequence[Evaluation]) -> list[Row]:
    repeats = f"{evaluations[0].part} part, {len(evaluations)} repeats"
    minus = ("bag minus it: points", "nats")
    rows: list[Row] = [(repeats, "accuracy %", "NLL", "ECE %", "cost s", *minus)]
    rows.append((*_repeated_scores("bag of generated", [e.bag for e in evaluations]), "", ""))
    rivals = {name: [e.rivals[name] for e in evaluations] for name in evaluations[0].rivals}
    for name, scores in sorted(
        rivals.items(), key=lambda item: _or_infinity(mean_and_sd([s.nll for s in item[1]])[0])
    ):
        found = differences([each.bag for each in evaluations], scores)
        minus_it = (_minus(found.get("accuracy"), 100, 2), _minus(found.get("nll"), 1, 4))
        rows.append((*_repeated_scores(spaced(name), scores), *minus_it))
    return rows


def _repeated_scores(name: str, scores: Sequence[BagScores]) -> Row:
    accuracy, ece = (
        _Statistic.of([getattr(each, key) for each in scores]).text(100, 2)
        for key in ("accuracy", "ece")
    )
    nll = _Statistic.of([each.nll for each in scores]).text(1, 4)
    cost = _Statistic.of([each.cost_seconds for each in scores]).mean
    return name, accuracy, nll, ece, _number(cost, 1)


def _repeated_members(evaluations: Sequence[Evaluation]) -> list[Row]:
    keys = ("mean", "median", "min", "max")
    rows: list[Row] = [("single members", *(f"{key} %" for key in keys), "disagree %")]
    for name in POPULATIONS:
        accuracies = [each.population(name).accuracy for each in evaluations]
        known = [each for each in accuracies if each is not None]
        if not known:
            continue
        pairs = [getattr(each.diversity, name) for each in evaluations]
        differ = _Statistic.of([None if pair is None else pair.disagreement for pair in pairs])
        spread = [_Statistic.of([getattr(each, key) for each in known]) for key in keys]
        rows.append((spaced(name), *(each.text(100, 2) for each in [*spread, differ])))
    return rows


def _minus(difference: BagDifference | None, scale: float, digits: int) -> str:
    if difference is None:
        return "-"
    error = difference.standard_error
    spread = "" if error is None else f" ± {scale * error:.{digits}f}"
    return f"{scale * difference.mean:+.{digits}f}{spread} {difference.verdict:<4}"


def _cost(result: Result) -> list[Row]:
    rows: list[Row] = [("cost", "CPU s", "GPU s", "wall")]
    for stage in result.fingerprints:
        spent = result.costs[stage]
        seconds = (_number(spent.cpu_seconds, 1), _number(spent.gpu_seconds, 1))
        rows.append((stage, *seconds, duration(spent.wall_seconds)))
    per_model = result.evaluation.prices.per_model
    rows.append(("one more generated model", _number(per_model.marginal_seconds, 4), "", ""))
    rows.append(("... with all before it", _seconds(per_model.amortised_seconds, 4), "", ""))
    rows.append(("one ordinary model", _number(per_model.ordinary_seconds, 4), "", ""))
    return rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _seconds(value: float | None, digits: int = 1) -> str:
    """What somebody else has trained has no price unless he gives it."""
    return "unknown" if value is None else f"{value:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def aligned(rows: Sequence[Row]) -> list[str]:
    """Columns as wide as their widest cell: names to the left, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
