"""Evidence: all that a report of an evaluation is drawn from, as JSON of a few hundred kB.

Curves, bins and one short row a model, so that its size does not grow with images or parameters,
and a report needs neither the models nor torch. Floats have six digits.
"""

from __future__ import annotations

import json
from typing import Any

from bend_ray.comparison.comparison import (
    BAG,
    EQUAL_COST,
    POPULATIONS,
    Bag,
    Comparison,
    Members,
    Voted,
)
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.inputs import CALIBRATION, SEVERITIES
from bend_ray.ensemble.conformal import Calibration, Floats
from bend_ray.ensemble.curves import Growth
from bend_ray.ensemble.metrics import detection, difference
from bend_ray.ensemble.novelty import COPY_RATIO, principal_plane
from bend_ray.errors import ConfigError
from bend_ray.randomness import generator_for
from bend_ray.report.evaluation import Evaluation, recorded
from bend_ray.storage.masking import masked_json
from bend_ray.tasks import Task

DEEP_ENSEMBLE = "deep_ensemble"
COVERAGES = (0.8, 0.9, 0.95, 0.99)
ACCURACIES = (0.9, 0.95, 0.98, 0.99, 0.995)
SHIFTED = 0.9
"""Coverage of the sets that are looked at under shift."""


def provenance(config: PipelineConfig, graph: Graph) -> dict[str, Any]:
    """The config, its finish resolved, and the stages before: cost, and what diverged in them."""
    return {
        "config": masked_json(config.model_dump(mode="json")),
        "finish": config.finish.model_dump(mode="json"),
        "stages": recorded(graph),
    }


def compared(comparison: Comparison) -> tuple[Evaluation, dict[str, Any]]:
    """The figures of a comparison, and what its pictures show."""
    scores, bags, promised = _bags(comparison)
    task = comparison.task
    rows = {name: _rows(members, task) for name, members in comparison.members.items()}
    populations = [comparison.vectors[name] for name in POPULATIONS]
    places, shares = principal_plane(comparison.vectors["originals"], populations)
    for name, place_E2 in zip(POPULATIONS, places, strict=True):
        nearest_E = comparison.places[name].nearest_M
        rows[name] |= {"plane": place_E2.tolist(), "nearest": nearest_E.tolist()}
    generated = comparison.answers["validation"]["generated"]
    shown = {
        "images": {
            "validation": len(generated.labels_N),
            "test": len(comparison.labels),
            "classes": generated.shape[-1],
        },
        "populations": rows,
        "plane_shares": shares,
        "usual_distance": comparison.places["originals"].nearest_M.quantile(0.5).item(),
        "copy_ratio": COPY_RATIO,
        "bags": bags,
    }
    rounded = json.loads(json.dumps(shown), parse_float=lambda text: float(f"{float(text):.6g}"))
    return comparison.evaluation(scores, **promised), rounded


def _rows(members: Members, task: Task) -> dict[str, Any]:
    """Trunk, scores, and how much each differs from the others, a list entry a model."""
    if not len(members):
        return {"trunk": [], "accuracy": [], "nll": [], "disagreement": []}
    return {
        "trunk": members.trunks_E.tolist(),
        "accuracy": members.accuracy_E.tolist(),
        "nll": members.nll_E.tolist(),
        "disagreement": task.disagreements(members.predictions_EN).tolist(),
    }


def _bags(comparison: Comparison) -> tuple[dict[str, Any], ...]:
    """Scores of every bag, the evidence of all but that of equal cost, and what they promise."""
    scores, found, ours = {}, {}, comparison.voted(comparison.bags[BAG])
    promised: dict[str, Any] = {}
    for name, bag in comparison.bags.items():
        voted = ours if name == BAG else comparison.voted(bag)
        scores[name] = comparison.scores(name, voted)
        if name != EQUAL_COST:
            found[name] = _bag(name, voted, ours, comparison)
        if comparison.answers.keys() - {"validation", "test"}:
            calibration = _calibrated(comparison, bag)
            promised.setdefault("trust", {})[name] = _trust(comparison, bag, voted, calibration)
            if name == BAG:
                promised["calibration"] = calibration
    return scores, found, promised


def _bag(name: str, voted: Voted, ours: Voted, comparison: Comparison) -> dict[str, Any]:
    """Its size, cost, and scores, alone and beside ours."""
    bag, labels_N, task = comparison.bags[name], comparison.labels, comparison.task
    both = (task.each(answers, labels_N) for answers in (ours.answers_NC, voted.answers_NC))
    accuracy, nll = (difference(*each) for each in zip(*both, strict=True))
    scaled = task.scores(voted.scaled_NC, labels_N)
    shown = task.shown(voted.answers_NC, labels_N) if name == BAG else None
    return {
        **({"predictions": shown} if shown else {}),
        "size": len(bag.members),
        "cost": {"fixed": bag.fixed_seconds, "member": bag.member_seconds},
        "bag_minus_it": {"accuracy": accuracy, "nll": nll},
        "curve": _curve(name, bag, comparison),
        "temperature": bag.temperature,
        "scaled": {"nll": scaled["nll"], "ece": scaled.get("ece", scaled.get("pit_error"))},
        "reliability": {
            "before": task.reliability(voted.plain_NC, labels_N),
            "after": task.reliability(voted.scaled_NC, labels_N),
        },
        "rejection": task.rejection(voted.answers_NC, labels_N),
    }


def _calibrated(comparison: Comparison, bag: Bag) -> Calibration | None:
    """By the examples kept back, if there are some."""
    if CALIBRATION.name not in comparison.answers:
        return None
    said = comparison.voted(bag, CALIBRATION.name).answers_NC
    return comparison.task.calibration(
        said, comparison.answers[CALIBRATION.name][bag.models].labels_N
    )


def _trust(
    comparison: Comparison, bag: Bag, voted: Voted, calibration: Calibration | None
) -> dict[str, Any]:
    """All figures of a ``Trust``, of a bag whose answers about the test part are given."""
    shifts = comparison.section.shift
    found: dict[str, Any] = {
        "ood": _ood(comparison, bag, voted),
        "shift": {name: _shift(comparison, bag, name, calibration) for name in shifts},
    }
    if calibration is not None:
        answers_NA, labels_N = voted.answers_NC.numpy(), comparison.labels.numpy()
        found["refusals"] = _refusals(calibration, answers_NA, labels_N)
        found["sets"] = {
            kind: {
                f"{wanted:g}": calibration.scored(
                    calibration.sets(answers_NA, wanted, kind), labels_N
                )
                for wanted in COVERAGES
            }
            for kind in calibration.kinds
        }
    return found


def _refusals(calibration: Calibration, probs_NC: Floats, labels_N: Any) -> dict[str, Any]:
    found = {}
    for wanted in ACCURACIES:
        try:
            answered_N = probs_NC.max(axis=1) >= calibration.threshold(wanted).least
        except ConfigError:  # more than so few examples can promise, or than there is of numbers
            break
        right_N = probs_NC.argmax(axis=1) == labels_N
        accuracy = right_N[answered_N].mean().item() if answered_N.any() else None
        found[f"{wanted:g}"] = {"answered": answered_N.mean().item(), "accuracy": accuracy}
    return found


def _ood(comparison: Comparison, bag: Bag, voted: Voted) -> dict[str, Any]:
    weight_E = comparison.section.vote.weights(bag.val_nll_E)

    def unsure(about: str, voted: Voted) -> dict[str, Floats]:
        said = comparison.said(bag, about)
        return comparison.task.uncertainties(said, weight_E, voted.answers_NC)

    names = [inputs.name for inputs in comparison.section.ood]
    inside = unsure("test", voted) if names else {}
    outside = {name: unsure(name, comparison.voted(bag, name)) for name in names}
    return {
        name: {score: detection(inside[score], each_M) for score, each_M in found.items()}
        for name, found in outside.items()
    }


def _shift(
    comparison: Comparison, bag: Bag, name: str, calibration: Calibration | None
) -> dict[str, Any]:
    said_NC = comparison.voted(bag, name).answers_NC
    labels_N, found = comparison.answers[name][bag.models].labels_N, {}
    parts = zip(said_NC.chunk(SEVERITIES), labels_N.chunk(SEVERITIES), strict=True)
    for severity, (probs, labels) in enumerate(parts, start=1):
        scores, coverage = comparison.task.scores(probs, labels), None
        if calibration is not None:
            sets = calibration.sets(probs.numpy(), SHIFTED)
            coverage = calibration.scored(sets, labels.numpy())["coverage"]
        error = scores.get("ece", scores.get("pit_error"))
        own = {name: scores[name] for name in ("accuracy", "nll")}
        found[str(severity)] = own | {"ece": error, "coverage": coverage}
    return found


def _curve(name: str, bag: Bag, comparison: Comparison) -> dict[str, Any] | None:
    """Scores by size; the deep ensemble's NLL at temperatures fitted on validation images too."""
    members, section = bag.members, comparison.section
    if name == DEEP_ENSEMBLE:
        # All that were trained, be they more than the bag has: the measure of all others.
        members = list(range(len(comparison.answers["test"][bag.models])))
    if len(members) < 2:
        return None
    said, before = (
        comparison.answers[part][bag.models].select(members) for part in ("test", "validation")
    )
    generator = generator_for(comparison.seed, "size curve", name)
    growth = Growth.by_chance(section.vote, before.scores()[1], generator)
    found = growth.curve(said, before if section.temperature_scaling else None)
    if name == DEEP_ENSEMBLE:
        scaled = found if section.temperature_scaling else growth.curve(said, before)
        found["scaled_nll"] = scaled["nll"]["mean"]
    return found
