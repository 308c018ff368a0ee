"""What a bag promises on the test part, and what becomes of its answers elsewhere."""

from __future__ import annotations

from typing import Any

from bend_ray.comparison.choosing import Bag
from bend_ray.comparison.comparison import Comparison, Voted
from bend_ray.data.corruptions import SEVERITIES
from bend_ray.data.inputs import CALIBRATION
from bend_ray.ensemble.conformal import Calibration, Floats
from bend_ray.ensemble.outside import detection
from bend_ray.errors import ConfigError
from bend_ray.report.evaluation import (
    Detection,
    RefusalScores,
    SetScores,
    ShiftScores,
    Trust,
)

COVERAGES = (0.8, 0.9, 0.95, 0.99)
ACCURACIES = (0.9, 0.95, 0.98, 0.99, 0.995)
SHIFTED = 0.9
"""Coverage of the sets that are looked at under shift."""


def calibrated(comparison: Comparison, bag: Bag) -> Calibration | None:
    """By the examples kept back, if there are some."""
    if CALIBRATION.name not in comparison.others:
        return None
    said = comparison.voted(bag, CALIBRATION.name).answers_NC
    return comparison.task.calibration(
        said, comparison.others[CALIBRATION.name][bag.models].labels_N
    )


def trust(comparison: Comparison, bag: Bag, voted: Voted, calibration: Calibration | None) -> Trust:
    """All figures of a bag, whose answers about the test part are given."""
    section, promised = comparison.section, dict[str, Any]()
    answers_NA, labels_N = voted.answers_NC.numpy(), comparison.labels.numpy()
    if calibration is not None:
        promised = {
            "sets": {
                kind: {
                    f"{wanted:g}": SetScores(
                        **calibration.scored(calibration.sets(answers_NA, wanted, kind), labels_N)
                    )
                    for wanted in COVERAGES
                }
                for kind in calibration.kinds
            },
            "refusals": _refusals(calibration, answers_NA, labels_N),
        }
    return Trust(
        **promised,
        ood=_ood(comparison, bag, voted),
        shift={name: _shift(comparison, bag, name, calibration) for name in section.shift},
    )


def _refusals(calibration: Calibration, probs_NC: Floats, labels_N: Any) -> dict[str, Any]:
    found = {}
    for wanted in ACCURACIES:
        try:
            answered_N = probs_NC.max(axis=1) >= calibration.threshold(wanted).least
        except ConfigError:  # more than so few examples can promise, or than there is of numbers
            break
        right_N = probs_NC.argmax(axis=1) == labels_N
        accuracy = right_N[answered_N].mean().item() if answered_N.any() else None
        found[f"{wanted:g}"] = RefusalScores(answered=answered_N.mean().item(), accuracy=accuracy)
    return found


def _ood(comparison: Comparison, bag: Bag, voted: Voted) -> dict[str, dict[str, Detection]]:
    section = comparison.section
    found: dict[str, dict[str, Detection]] = {}
    if not section.ood:
        return found
    weight_E = section.vote.weights(bag.val_nll_E)
    members = comparison.test[bag.models].select(bag.members)
    inside = comparison.task.uncertainties(members, weight_E, voted.answers_NC)
    for inputs in section.ood:
        members = comparison.others[inputs.name][bag.models].select(bag.members)
        said_NC = comparison.voted(bag, inputs.name).answers_NC
        outside = comparison.task.uncertainties(members, weight_E, said_NC)
        found[inputs.name] = {
            name: Detection(**detection(inside[name], values_M))
            for name, values_M in outside.items()
        }
    return found


def _shift(
    comparison: Comparison, bag: Bag, name: str, calibration: Calibration | None
) -> dict[str, ShiftScores]:
    said_NC = comparison.voted(bag, name).answers_NC
    labels_N, found = comparison.others[name][bag.models].labels_N, {}
    parts = zip(said_NC.chunk(SEVERITIES), labels_N.chunk(SEVERITIES), strict=True)
    for severity, (probs, labels) in enumerate(parts, start=1):
        scores, coverage = comparison.task.scores(probs, labels), None
        if calibration is not None:
            sets = calibration.sets(probs.numpy(), SHIFTED)
            coverage = calibration.scored(sets, labels.numpy())["coverage"]
        found[str(severity)] = ShiftScores(
            accuracy=scores["accuracy"],
            nll=scores["nll"],
            ece=scores.get("ece", scores.get("pit_error")),
            coverage=coverage,
        )
    return found
