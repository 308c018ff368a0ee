"""Evidence: all that a report of an evaluation is drawn from, as JSON of a few hundred kB.

Curves, bins and one short row a model, so that its size does not grow with images or parameters,
and a report needs neither the models nor torch. Floats have six digits.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from bend_ray.comparison.comparison import Bag, Comparison, Members
from bend_ray.config.graph import STAGES, Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.ensemble.curves import size_curve
from bend_ray.ensemble.metrics import ece, member_accuracy, member_nll, nll
from bend_ray.ensemble.novelty import (
    COPY_RATIO,
    leave_one_out_distances,
    nearest_distances,
    principal_plane,
)
from bend_ray.ensemble.trust import differences, rejection, reliability
from bend_ray.randomness import generator_for
from bend_ray.storage.masking import masked_json

BAG = "bag"
MEMBER = "member"
DEEP_ENSEMBLE = "deep_ensemble"
_DIGITS = 6


def provenance(config: PipelineConfig, graph: Graph) -> dict[str, Any]:
    """The config, its finish resolved, and the stages before: cost, and what diverged in them."""
    made = {stage: graph[stage] for stage in STAGES if stage != "evaluation"}
    return {
        "config": masked_json(config.model_dump(mode="json")),
        "finish": config.finish.model_dump(mode="json"),
        "stages": {
            stage: {
                "fingerprint": artifact.fingerprint,
                "cost": artifact.manifest().cost.model_dump(),
                "diverged": artifact.manifest().metrics.get("diverged", []),
            }
            for stage, artifact in made.items()
        },
    }


def evidence(comparison: Comparison) -> dict[str, Any]:
    """What the comparison's pictures show."""
    populations = comparison.populations
    rows = {name: _rows(members, comparison) for name, members in populations.items()}
    if comparison.ordinary is not None:
        rows["ordinary"] = _rows(comparison.ordinary, comparison)
    space = _weight_space(populations)
    for name, columns in space.pop("populations").items():
        rows[name] |= columns
    shown = {
        "images": {
            "validation": len(comparison.val_labels_N),
            "test": len(comparison.test_labels_N),
            "classes": comparison.generated.test_logits_ENC.shape[-1],
        },
        "populations": rows,
        **space,
        "bags": _bags(comparison),
    }
    return _rounded(shown)  # type: ignore[no-any-return]


def _rows(members: Members, comparison: Comparison) -> dict[str, Any]:
    """Trunk, scores, and how much each differs from the others, a list entry a model."""
    if not len(members):
        return {"trunk": [], "accuracy": [], "nll": [], "disagreement": []}
    labels_N = comparison.test_labels_N
    return {
        "trunk": members.trunks_E.tolist(),
        "accuracy": member_accuracy(members.test_logits_ENC, labels_N).tolist(),
        "nll": member_nll(members.test_logits_ENC, labels_N).tolist(),
        "disagreement": _disagreements(members.predictions()).tolist(),
    }


def _disagreements(predictions_EN: Tensor) -> Tensor:
    """Each member's mean disagreement with the others, (E,); nan for one alone; O(E N)."""
    num_members, num_images = predictions_EN.shape
    votes_CN = predictions_EN.new_zeros(int(predictions_EN.max()) + 1, num_images)
    votes_CN.scatter_add_(0, predictions_EN, torch.ones_like(predictions_EN))
    agreeing_E = (votes_CN.gather(0, predictions_EN) - 1).double().mean(dim=1)
    return 1 - agreeing_E / (num_members - 1)


def _weight_space(populations: dict[str, Members]) -> dict[str, Any]:
    """Where models are, and how far from the nearest original."""
    originals_KP = populations["originals"].theta_EP
    plane = principal_plane(originals_KP, [each.theta_EP for each in populations.values()])
    columns: dict[str, Any] = {}
    for (name, members), place_E2 in zip(populations.items(), plane.coordinates, strict=True):
        if name == "originals":
            nearest_E = leave_one_out_distances(originals_KP)
            usual = nearest_E.quantile(0.5).item()
        elif len(members):
            nearest_E = nearest_distances(members.theta_EP, originals_KP)
        else:
            nearest_E = torch.zeros(0)
        columns[name] = {"plane": place_E2.tolist(), "nearest": nearest_E.tolist()}
    return {
        "populations": columns,
        "plane_shares": list(plane.shares),
        "usual_distance": usual,
        "copy_ratio": COPY_RATIO,
    }


def _bags(comparison: Comparison) -> dict[str, Any]:
    """The bag, its median member, and every rival."""
    bag = comparison.bag
    val_nll_E = member_nll(bag.members.val_logits_ENC, comparison.val_labels_N)
    # Chosen, like everything, on validation images.
    median = int(val_nll_E.argsort(stable=True)[len(val_nll_E) // 2])
    member = comparison.vote(bag.members.select([median]), bag.fixed_seconds, bag.member_seconds)
    bags = {BAG: bag, MEMBER: member, **comparison.rivals}
    return {name: _bag(name, each, comparison) for name, each in bags.items()}


def _bag(name: str, bag: Bag, comparison: Comparison) -> dict[str, Any]:
    """Its size, cost, and scores, alone and beside ours."""
    labels_N = comparison.test_labels_N
    accuracy, likelihood = differences(comparison.bag.answers, bag.answers, labels_N)
    return {
        "size": len(bag.members),
        "cost": {"fixed": bag.fixed_seconds, "member": bag.member_seconds},
        "bag_minus_it": {"accuracy": asdict(accuracy), "nll": asdict(likelihood)},
        "curve": _bag_curve(name, bag.members, comparison),
        "temperature": bag.temperature,
        "scaled": {"nll": nll(bag.scaled, labels_N), "ece": ece(bag.scaled, labels_N)},
        "reliability": {
            "before": asdict(reliability(bag.plain_NC, labels_N)),
            "after": asdict(reliability(bag.scaled, labels_N)),
        },
        "rejection": asdict(rejection(bag.answers, labels_N)),
    }


def _bag_curve(name: str, members: Members, comparison: Comparison) -> dict[str, Any] | None:
    """Scores by size; the deep ensemble's at fitted temperatures as well."""
    scaled, whole = comparison.section.temperature_scaling, comparison.ordinary
    if name != DEEP_ENSEMBLE or whole is None:
        return _curve(name, members, comparison, scaled)
    # All that were trained, be they more than the bag has: the measure of all others.
    curve = _curve(name, whole, comparison, scaled)
    as_scaled = curve if scaled else _curve(name, whole, comparison, True)
    return curve and as_scaled and curve | {"scaled_nll": as_scaled["nll"]["mean"]}


def _curve(
    name: str, members: Members, comparison: Comparison, scaled: bool
) -> dict[str, Any] | None:
    """Scores by size; ``scaled`` at temperatures fitted on validation images."""
    if len(members) < 2:
        return None
    curve = size_curve(
        members.test_logits_ENC,
        comparison.test_labels_N,
        member_nll(members.val_logits_ENC, comparison.val_labels_N),
        comparison.section.vote,
        generator_for(comparison.seed, "size curve", name),
        calibrated_on=(members.val_logits_ENC, comparison.val_labels_N) if scaled else None,
    )
    return asdict(curve)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
