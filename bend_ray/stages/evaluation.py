"""Stage 6, evaluation: the bag of generated classifiers against its rivals, on the test part.

The only stage that opens the test part. Members are chosen, votes weighted and rivals picked on
validation images.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from bend_ray.artifacts.cost import Cost, Stopwatch, cost_of_pieces
from bend_ray.artifacts.shards import read_population
from bend_ray.comparison.comparison import Comparison, Members, StageCosts
from bend_ray.comparison.evidence import evidence, provenance
from bend_ray.config.graph import EVIDENCE, STAGES, Graph
from bend_ray.config.schema import ParametersSection, PipelineConfig
from bend_ray.data.examples import Examples
from bend_ray.populations.members import load_roots
from bend_ray.populations.networks import Classifiers
from bend_ray.process.computing import settle
from bend_ray.report.evaluation import Evaluation
from bend_ray.runtime.interface import Runtime, Shared

STAGES_OF_THE_BAG = STAGES[:-1]


def make(config: PipelineConfig, graph: Graph, runtime: Runtime) -> None:
    """Evaluate ``graph.samples`` and everything it is compared with, and commit the figures."""
    artifact, resources = graph.evaluation, config.evaluation.resources
    with Stopwatch() as watch:
        dataset = runtime.share(config.dataset)
        found, shown, cost = runtime.run(
            *(_evaluate, config, graph, dataset, dataset.load().test),
            resources=runtime.holding("evaluation", resources, _models_bytes(graph)),
        )
    artifact.ensure_uncommitted()
    artifact.write_json(EVIDENCE, provenance(config, graph) | shown)
    artifact.commit(
        files=[EVIDENCE],
        metrics=found.model_dump(),
        cost=cost_of_pieces([cost], watch.cost.wall_seconds),
    )


def _models_bytes(graph: Graph) -> int:
    """Of all models that are compared, which are held together."""
    populations = filter(None, (graph.seeds, graph.samples, graph.ordinary))
    return sum(file.bytes for each in populations for file in each.manifest().files if file.rows)


def _evaluate(
    config: PipelineConfig, graph: Graph, shared: Shared, test: Examples
) -> tuple[Evaluation, dict[str, Any], Cost]:
    """Figures, evidence, and what computing both cost; runs as a Ray task."""
    device = settle(config.evaluation.resources.cpus, config.evaluation.resources.gpus)
    gpus = config.evaluation.resources.gpus if device == "cuda" else 0.0
    with Stopwatch(gpus) as watch:
        dataset = shared.load().with_test(test)
        classifiers = Classifiers(config, dataset, device, partial(load_roots, graph.seeds))
        whole = config.model_copy(update={"parameters": ParametersSection()})
        trained = read_population(graph.seeds)
        comparison = Comparison(
            config.evaluation,
            config.seed,
            classifiers,
            originals=Members.of(trained.select(~trained.held_out), classifiers),
            held_out=Members.of(trained.select(trained.held_out), classifiers),
            generated=Members.of(read_population(graph.samples), classifiers),
            ordinary=Members.of(
                read_population(graph.ordinary), Classifiers(whole, dataset, device)
            )
            if graph.ordinary
            else None,
            prices=_prices(graph),
        )
        found, shown = comparison.evaluation(), evidence(comparison)
    return found, shown, watch.cost


def _prices(graph: Graph) -> StageCosts:
    made = {stage: graph[stage].manifest() for stage in STAGES_OF_THE_BAG}
    seeds_made = made["seeds"]
    ordinary_made = graph.ordinary.manifest() if graph.ordinary else None
    cpu_seconds = seeds_made.cost.cpu_seconds
    root_share = seeds_made.metrics["root_cpu_seconds"] / cpu_seconds if cpu_seconds else 0.0
    # What others trained has no price unless they say it: unknown, and so is all that needs it.
    seeds = seeds_made.cost.seconds if seeds_made.metrics.get("priced", True) else math.nan
    others = sum(made[stage].cost.seconds for stage in STAGES_OF_THE_BAG if stage != "seeds")
    return StageCosts(
        bag=seeds + others,
        samples=made["samples"].cost.seconds,
        seeds=seeds,
        roots=seeds * root_share,
        trained=seeds_made.metrics["models"],
        ordinary=ordinary_made.cost.seconds / ordinary_made.metrics["models"]
        if ordinary_made
        else None,
    )
