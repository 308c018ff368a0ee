"""Stage 6, evaluation: the bag of generated classifiers against its rivals, on the test part.

The only stage that opens the test part. Members are chosen, votes weighted and rivals picked on
validation images; a rival that must be trained is trained here, as a population of its own.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import ray

from bend_ray.artifacts.cost import Cost, Stopwatch
from bend_ray.artifacts.lease import lease
from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Artifact
from bend_ray.comparison.comparison import Comparison, Members, StageCosts
from bend_ray.comparison.evidence import evidence, provenance
from bend_ray.config.graph import EVIDENCE, STAGES, Plan
from bend_ray.config.graph import plan as plan_of
from bend_ray.config.schema import DeepEnsemble, ParametersSection, PipelineConfig
from bend_ray.data.parts import Images
from bend_ray.networks.protocols import Independent
from bend_ray.populations.members import load_roots
from bend_ray.populations.networks import Classifiers
from bend_ray.report.evaluation import Evaluation
from bend_ray.runtime import cluster
from bend_ray.runtime.pool import get
from bend_ray.runtime.sharing import SharedDataset, share_dataset
from bend_ray.stages import seeds

logger = logging.getLogger(__name__)

STAGES_OF_THE_BAG = STAGES[:-1]


def make(config: PipelineConfig, plan: Plan) -> None:
    """Evaluate ``plan.samples`` and everything it is compared with, and commit the figures."""
    artifact, resources = plan.evaluation, config.evaluation.resources
    with Stopwatch() as watch:
        ordinary = _train_ordinary(config, plan)
        dataset = share_dataset(config.dataset)
        test = ray.put(dataset.load().test)
        evaluate = ray.remote(max_retries=3, **cluster.options(resources))(_evaluate)
        found, shown, cost = get(evaluate.remote(config, plan, ordinary, dataset, test))
    artifact.ensure_uncommitted()
    artifact.write_json(EVIDENCE, provenance(config, plan) | shown)
    artifact.commit(
        files=[EVIDENCE],
        metrics=found.model_dump(),
        cost=cluster.total([cost], watch.cost.wall_seconds),
        compared_with=[ordinary] if ordinary else [],
    )


def _train_ordinary(config: PipelineConfig, plan: Plan) -> Artifact | None:
    """The deep ensemble, if it is among the rivals: ordinary independent trainings."""
    rival = next((r for r in config.evaluation.rivals if isinstance(r, DeepEnsemble)), None)
    if rival is None:
        return None
    size = rival.size or config.evaluation.bagging.size or config.samples.count
    protocol = Independent(models=size, bootstrap=False, align=False)
    section = config.seeds.model_copy(update={"protocol": protocol, "held_out": 0.0})
    whole = {"parameters": ParametersSection(), "seeds": section}
    ordinary_config = config.model_copy(update=whole)
    ordinary = plan_of(ordinary_config, plan.evaluation.store)
    if not ordinary.seeds.exists():
        logger.info("evaluation   training %d ordinary models for the deep ensemble", size)
        with lease(ordinary.seeds, logger.info) as mine:
            if mine:
                seeds.make(ordinary_config, ordinary)
    return ordinary.seeds


def _evaluate(
    config: PipelineConfig,
    plan: Plan,
    ordinary: Artifact | None,
    shared: SharedDataset,
    test: Images,
) -> tuple[Evaluation, dict[str, Any], Cost]:
    """Figures, evidence, and what computing both cost; runs as a Ray task."""
    device = cluster.settle(config.evaluation.resources)
    gpus = config.evaluation.resources.gpus if device == "cuda" else 0.0
    with Stopwatch(gpus) as watch:
        dataset = shared.load().with_test(test)
        classifiers = Classifiers(config, dataset, device, partial(load_roots, plan.seeds))
        whole = config.model_copy(update={"parameters": ParametersSection()})
        trained = read_population(plan.seeds)
        comparison = Comparison(
            config.evaluation,
            config.seed,
            classifiers,
            originals=Members.of(trained.select(~trained.held_out), classifiers),
            held_out=Members.of(trained.select(trained.held_out), classifiers),
            generated=Members.of(read_population(plan.samples), classifiers),
            ordinary=Members.of(read_population(ordinary), Classifiers(whole, dataset, device))
            if ordinary
            else None,
            prices=_prices(plan, ordinary),
        )
        found, shown = comparison.evaluation(), evidence(comparison)
    return found, shown, watch.cost


def _prices(plan: Plan, ordinary: Artifact | None) -> StageCosts:
    made = {stage: plan[stage].manifest() for stage in STAGES_OF_THE_BAG}
    seeds_made = made["seeds"]
    ordinary_made = ordinary.manifest() if ordinary else None
    cpu_seconds = seeds_made.cost.cpu_seconds
    root_share = seeds_made.metrics["root_cpu_seconds"] / cpu_seconds if cpu_seconds else 0.0
    return StageCosts(
        bag=sum(manifest.cost.seconds for manifest in made.values()),
        samples=made["samples"].cost.seconds,
        seeds=seeds_made.cost.seconds,
        roots=seeds_made.cost.seconds * root_share,
        trained=seeds_made.metrics["models"],
        ordinary=ordinary_made.cost.seconds / ordinary_made.metrics["models"]
        if ordinary_made
        else None,
    )
