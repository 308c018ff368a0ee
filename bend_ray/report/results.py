"""The result of a run as JSON, and as a table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from bend_ray.config.graph import Plan
from bend_ray.ensemble.votes import TEMPERATURE_RANGE, is_at_an_end
from bend_ray.process.log import duration
from bend_ray.storage.masking import masked

POPULATIONS = ("seeds", "samples")
"""Stages that make models, of which some may diverge."""


def result(plan: Plan) -> dict[str, Any]:
    """Everything a committed evaluation says; accuracies are fractions of 1."""
    return compose(
        plan.evaluation.manifest().metrics,
        {artifact.stage: artifact.manifest().cost.model_dump() for artifact in plan},
        {artifact.stage: artifact.fingerprint for artifact in plan},
        {stage: plan[stage].manifest().metrics.get("diverged", []) for stage in POPULATIONS},
        plan.evaluation.store.uri,
    )


def compose(
    metrics: dict[str, Any],
    costs: dict[str, dict[str, float]],
    fingerprints: dict[str, str],
    diverged: dict[str, list[dict[str, Any]]],
    store_uri: str,
) -> dict[str, Any]:
    """A result of its parts.

    Args:
        metrics: of the evaluation.
        costs: of every stage.
        fingerprints: of every stage's artifact.
        diverged: of each of ``POPULATIONS``, what its manifest says of models that diverged.
        store_uri: where they are.
    """
    metrics = dict(metrics)
    prices = metrics.pop("prices")
    return {
        **metrics,
        "diverged": {stage: _counted(told) for stage, told in diverged.items()},
        "cost": {**costs, **prices},
        "store": masked(store_uri),
        "fingerprints": fingerprints,
    }


def _counted(diverged: list[dict[str, Any]]) -> dict[str, int]:
    """Models that are left out, and trainings that did well with another seed."""
    return {
        "dropped": sum(len(each["models"]) for each in diverged),
        "retrained": sum(each["outcome"] == "retrained" for each in diverged),
    }


def divergences(result: dict[str, Any]) -> list[str]:
    """What became of models that diverged, a line each; none where none did."""
    said = []
    for stage, counts in result["diverged"].items():
        if dropped := counts["dropped"]:
            said.append(f"{stage}: {dropped} diverged and left out")
        if retrained := counts["retrained"]:
            said.append(f"{stage}: {retrained} diverged and trained again with another seed")
    return said


def unaffordable(results: Sequence[dict[str, Any]]) -> str:
    """By how much a deep ensemble is smaller than our cost would have paid for; "" where it is not.

    Args:
        results: of one run, or of its repeats.
    """
    equal = [result["cost"].get("equal_cost_deep_ensemble") for result in results]
    if None in equal or all(each["size"] == each["affordable"] for each in equal):
        return ""
    affordable, size = (span([each[key] for each in equal]) for key in ("affordable", "size"))
    return (
        f"The bag's cost would have trained {affordable} ordinary models; the deep ensemble has "
        f"{size}."
    )


def temperatures(results: Sequence[dict[str, Any]]) -> str:
    """At which temperatures bags are scored; "" where votes are scored as they are.

    Args:
        results: of one run, or of its repeats.
    """
    found = [result["bag"].get("temperature") for result in results]
    if None in found:
        return ""
    ends = dict.fromkeys(f"{end:.2f}" for end in (min(found), max(found)))
    return _at_temperatures(" to ".join(ends)) + _unfixed(results)


def _unfixed(results: Sequence[dict[str, Any]]) -> str:
    """Whose temperature the validation images do not fix."""
    bags = [("bag", result["bag"]) for result in results]
    bags += [item for result in results for item in result["rivals"].items()]
    names = {name.replace("_", " ") for name, bag in bags if is_at_an_end(bag["temperature"])}
    if not names:
        return ""
    low, high = TEMPERATURE_RANGE
    return (
        f" Validation images do not fix that of {', '.join(sorted(names))}: it is at an end of its "
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


def table(result: dict[str, Any]) -> str:
    """The result as aligned text: the bag and its rivals, members, novelty, cost, divergence."""
    sections = [_bags(result), _members(result), _novelty(result), _cost(result)]
    told = [aligned(rows) for rows in sections] + [divergences(result)]
    told[0] += filter(None, (unaffordable([result]), temperatures([result])))
    return "\n\n".join("\n".join(lines) for lines in told if lines)


def repeats_table(aggregate: dict[str, Any]) -> str:
    """Several repeats as aligned text: mean ± sd, and paired differences ± standard error."""
    told = [aligned(rows) for rows in (_repeated_bags(aggregate), _repeated_members(aggregate))]
    if temperature := aggregate["bag"].get("temperature"):
        told[0].append(_at_temperatures(_plus_minus(temperature, 1, 2)))
    note = "tie: within 2 standard errors, or of only two repeats"
    return "\n\n".join(["\n".join(lines) for lines in told] + [note])


Row = tuple[str, ...]


def _bags(result: dict[str, Any]) -> list[Row]:
    header = ("test part", "accuracy", "NLL", "Brier", "ECE", "members", "cost s")
    rows = [header, _bag_row("bag of generated", result["bag"])]
    # A NLL that was not finite is null in a manifest: it comes last.
    rivals = sorted(
        result["rivals"].items(),
        key=lambda item: math.inf if item[1]["nll"] is None else item[1]["nll"],
    )
    rows += [_bag_row(name.replace("_", " "), scores) for name, scores in rivals]
    equal = result["cost"].get("equal_cost_deep_ensemble")
    if equal and not unaffordable([result]):
        rows.append(_bag_row("deep ensemble, equal cost", equal))
    return rows


def _bag_row(name: str, scores: dict[str, Any]) -> Row:
    return (
        name,
        _percent(scores["accuracy"]),
        _number(scores["nll"], 4),
        _number(scores["brier"], 4),
        _percent(scores["ece"]),
        str(scores["size"]),
        _number(scores["cost_seconds"], 1),
    )


def _members(result: dict[str, Any]) -> list[Row]:
    rows: list[Row] = [
        ("single members", "mean", "median", "min", "max", "disagree", "error IoU", "Q"),
    ]
    for name in ("generated", "originals", "held_out"):
        accuracy, diversity = result[name]["accuracy"], result["diversity"][name]
        if accuracy is None:
            continue
        spread = [_percent(accuracy[key]) for key in ("mean", "median", "min", "max")]
        diversity = diversity or {"disagreement": None, "error_iou": None, "q_statistic": None}
        rows.append(
            (
                name.replace("_", " "),
                *spread,
                _percent(diversity["disagreement"]),
                _number(diversity["error_iou"], 2),
                _number(diversity["q_statistic"], 2),
            )
        )
    return rows


def _novelty(result: dict[str, Any]) -> list[Row]:
    shares = {
        "within_trunk_disagreement": "disagree within trunk",
        "functional_distance": "from nearest original",
        "copies": "copies",
    }
    rows: list[Row] = [("novelty", "nearest ratio", "spread", *shares.values())]
    for name, block in (
        ("generated", result["novelty"]),
        ("held out", result["novelty"]["held_out"]),
    ):
        if block:
            ratios = [_number(block[key], 2) for key in ("nearest_ratio", "spread")]
            rows.append((name, *ratios, *(_percent(block[key]) for key in shares)))
    return rows


def _repeated_bags(aggregate: dict[str, Any]) -> list[Row]:
    repeats = f"test part, {aggregate['repeats']} repeats"
    minus = ("bag minus it: points", "nats")
    rows: list[Row] = [(repeats, "accuracy %", "NLL", "ECE %", "cost s", *minus)]
    rows.append((*_repeated_scores("bag of generated", aggregate["bag"]), "", ""))
    rivals = aggregate["rivals"].items()
    for name, rival in sorted(rivals, key=lambda item: item[1]["nll"]["mean"] or math.inf):
        told = rival["bag_minus_it"]
        differences = (_minus(told.get("accuracy"), 100, 2), _minus(told.get("nll"), 1, 4))
        rows.append((*_repeated_scores(name.replace("_", " "), rival), *differences))
    return rows


def _repeated_scores(name: str, scores: dict[str, Any]) -> Row:
    accuracy, ece = (_plus_minus(scores[key], 100, 2) for key in ("accuracy", "ece"))
    cost = _number(scores["cost_seconds"]["mean"], 1)
    return name, accuracy, _plus_minus(scores["nll"], 1, 4), ece, cost


def _repeated_members(aggregate: dict[str, Any]) -> list[Row]:
    keys = ("mean", "median", "min", "max")
    rows: list[Row] = [("single members", *(f"{key} %" for key in keys), "disagree %")]
    for name in ("generated", "originals", "held_out"):
        accuracy, diversity = aggregate[name]["accuracy"], aggregate["diversity"][name]
        if "mean" in accuracy and "median" in accuracy:
            differ = diversity.get("disagreement", {"mean": None, "sd": None})
            spread = [_plus_minus(accuracy[key], 100, 2) for key in keys]
            rows.append((name.replace("_", " "), *spread, _plus_minus(differ, 100, 2)))
    return rows


def _plus_minus(value: dict[str, float | None], scale: float, digits: int) -> str:
    mean, sd = value["mean"], value["sd"]
    if mean is None:
        return "-"
    return f"{scale * mean:.{digits}f}" + ("" if sd is None else f" ± {scale * sd:.{digits}f}")


def _minus(difference: dict[str, Any] | None, scale: float, digits: int) -> str:
    if difference is None:
        return "-"
    error = difference["standard_error"]
    spread = "" if error is None else f" ± {scale * error:.{digits}f}"
    return f"{scale * difference['mean']:+.{digits}f}{spread} {difference['verdict']:<4}"


def _cost(result: dict[str, Any]) -> list[Row]:
    cost = result["cost"]
    rows: list[Row] = [("cost", "CPU s", "GPU s", "wall")]
    for stage in result["fingerprints"]:
        spent = cost[stage]
        seconds = [_number(spent[key], 1) for key in ("cpu_seconds", "gpu_seconds")]
        rows.append((stage, *seconds, duration(spent["wall_seconds"])))
    per_model = cost["per_model"]
    rows.append(("one more generated model", _number(per_model["marginal_seconds"], 4), "", ""))
    rows.append(("... with all before it", _number(per_model["amortised_seconds"], 4), "", ""))
    rows.append(("one ordinary model", _number(per_model["ordinary_seconds"], 4), "", ""))
    return rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


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
