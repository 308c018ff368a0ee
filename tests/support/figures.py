"""Figures of an evaluation that nobody made."""

from __future__ import annotations

from typing import Any

from bend_ray.config.graph import STAGES

SCORES = {"accuracy": 0.9512, "nll": 0.16543, "brier": 0.0721, "ece": 0.0134, "size": 48}
SPREAD = {"mean": 0.91, "median": 0.92, "min": 0.85, "max": 0.94, "std": 0.01}
DIVERSITY = {"disagreement": 0.061, "error_iou": 0.31, "q_statistic": 0.97}
NOVELTY = {
    "nearest_ratio": 1.02,
    "spread": 0.81,
    "within_trunk_disagreement": 0.023,
    "functional_distance": 0.031,
    "copies": 0.0,
}


def metrics() -> dict[str, Any]:
    """What an evaluation commits, of the shape that stages.comparison gives it."""
    return {
        "bag": {**SCORES, "cost_seconds": 12.0, "members": [0, 1]},
        "rivals": {
            "gaussian": {**SCORES, "nll": 0.3, "cost_seconds": 9.0},
            "deep_ensemble": {**SCORES, "nll": 0.1, "cost_seconds": 123.4},
        },
        "populations": {
            name: {"accuracy": SPREAD, "diversity": DIVERSITY, "novelty": new}
            for name, new in (("generated", NOVELTY), ("originals", None), ("held_out", NOVELTY))
        },
        "prices": {
            "marginal_seconds": 0.0123,
            "amortised_seconds": 0.25,
            "ordinary_seconds": 2.5,
            "equal_cost_deep_ensemble": {
                **SCORES,
                "affordable": 4,
                "size": 4,
                "cost_seconds": 10.0,
            },
        },
    }


def whole_result() -> dict[str, Any]:
    """What ``bend run --json`` writes."""
    spent = {"cpu_seconds": 1.25, "gpu_seconds": 0.0, "wall_seconds": 75.0}
    return {
        **metrics(),
        "diverged": {key: {"dropped": 0, "retrained": 0} for key in ("seeds", "samples")},
        "cost": dict.fromkeys(STAGES, spent),
        "store": "/store",
        "fingerprints": dict.fromkeys(STAGES, "0123456789ab"),
    }
