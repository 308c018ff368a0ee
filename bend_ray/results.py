"""The result of a run as JSON, and as a table for people."""

from __future__ import annotations

import math
from typing import Any

from bend_ray.filesystems import masked
from bend_ray.log import duration
from bend_ray.plan import Plan


def result(plan: Plan) -> dict[str, Any]:
    """Everything a committed evaluation says; accuracies are fractions of 1."""
    metrics = dict(plan.evaluation.manifest().metrics)
    prices = metrics.pop("prices")
    cost = {artifact.stage: artifact.manifest().cost.model_dump() for artifact in plan}
    return {
        **metrics,
        "cost": {**cost, **prices},
        "store": masked(plan.evaluation.store.uri),
        "fingerprints": {artifact.stage: artifact.fingerprint for artifact in plan},
    }


def table(result: dict[str, Any]) -> str:
    """The result as aligned text: the bag and its rivals, members, novelty and cost."""
    sections = [_bags(result), _members(result), _novelty(result), _cost(result)]
    return "\n\n".join("\n".join(_aligned(rows)) for rows in sections)


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
    if equal:
        capped = "" if equal["size"] == equal["affordable"] else f" of {equal['affordable']}"
        rows.append(_bag_row("deep ensemble, equal cost", equal, capped))
    return rows


def _bag_row(name: str, scores: dict[str, Any], note: str = "") -> Row:
    return (
        name,
        _percent(scores["accuracy"]),
        _number(scores["nll"], 4),
        _number(scores["brier"], 4),
        _percent(scores["ece"]),
        f"{scores['size']}{note}",
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
    keys = {
        "nearest_ratio": "nearest ratio",
        "spread": "spread",
        "within_trunk_disagreement": "within trunk",
        "functional_distance": "functional",
        "copies": "copies",
    }
    rows: list[Row] = [("novelty", *keys.values())]
    for name, block in (
        ("generated", result["novelty"]),
        ("held out", result["novelty"]["held_out"]),
    ):
        if block:
            shown = [_number(block[key], 3) for key in keys]
            rows.append((name, *shown))
    return rows


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


def _aligned(rows: list[Row]) -> list[str]:
    """Columns as wide as their widest cell: names to the left, figures to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
