"""Committed evaluations to report on, made without Ray or training."""

from __future__ import annotations

from typing import Any

from answers import PRICES, Population, comparison_of, members

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Store
from bend_ray.comparison.evidence import compared, provenance
from bend_ray.config.graph import EVIDENCE, STAGES, Graph, graph_of
from bend_ray.config.schema import EvaluationSection, PipelineConfig
from bend_ray.generation.rivals import (
    BestOriginal,
    DeepEnsemble,
    Gaussian,
    OriginalsBag,
    TrunkBag,
    WeightAverage,
)

SECTION = EvaluationSection(
    temperature_scaling=False,
    rivals=(
        OriginalsBag(),
        TrunkBag(),
        BestOriginal(),
        DeepEnsemble(),
        WeightAverage(),
        Gaussian(),
    ),
)
CONFIG = PipelineConfig(evaluation=SECTION)


def commit(config: PipelineConfig, store: Store, **changes: Any) -> Graph:
    """The artifacts of a config, its evaluation that of invented answers."""
    made = graph_of(config, store)
    for number, stage in enumerate(STAGES[:-1], start=1):
        cost = Cost(cpu_seconds=number, wall_seconds=2.0 * number)
        if not made[stage].exists():
            made[stage].commit(files=[], metrics={}, cost=cost)
    base = 10 * config.seed
    populations: dict[str, Population | None] = {
        "originals": members(6, base + 1),
        "held_out": members(2, base + 2),
        "generated": members(4, base + 3),
        "ordinary": members(4, base + 4),
    }
    prices = changes.pop("prices", PRICES)
    found, shown = compared(comparison_of(config.evaluation, populations | changes, prices))
    made.evaluation.write_json(EVIDENCE, provenance(config, made) | shown)
    made.evaluation.commit(
        files=[EVIDENCE],
        metrics=found.model_dump(),
        cost=Cost(cpu_seconds=1.0, wall_seconds=3.0),
    )
    return made
