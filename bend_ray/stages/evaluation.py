"""Stage 6, evaluation: the bag of generated classifiers against its rivals, on the test part.

The only stage that opens the test part, and that once all is chosen: workers ask all models about
validation examples, one of them chooses members, rivals and temperatures, workers ask about the
test part, one scores. What models said stays in artifacts of its own, so that another vote or
another bag asks none of them again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bend_ray.artifacts.cost import Cost, Stopwatch, cost_of_pieces
from bend_ray.artifacts.shards import read_population
from bend_ray.comparison.choosing import Bag, Selection, StageCosts
from bend_ray.comparison.comparison import POPULATIONS, Comparison
from bend_ray.comparison.evidence import compared, provenance
from bend_ray.config.graph import EVIDENCE, STAGES, Graph, Question
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Parts
from bend_ray.data.inputs import TEST, VALIDATION, Inputs
from bend_ray.populations.answers import Answers
from bend_ray.populations.members import StoredVectors
from bend_ray.report.evaluation import Evaluation
from bend_ray.runtime.interface import Runtime, Shared
from bend_ray.stages.answers import Respondent, ask

STAGES_OF_THE_BAG = STAGES[:-1]


def make(config: PipelineConfig, graph: Graph, runtime: Runtime) -> None:
    """Evaluate ``graph.samples`` and everything it is compared with, and commit the figures."""
    artifact, asked = graph.evaluation, graph.questions.values()

    @cache
    def with_test() -> Shared:
        dataset = runtime.share(config.dataset)
        return _Opened(dataset, runtime.hold(dataset.load().test))

    with (
        Stopwatch() as watch,
        runtime.workers(
            *(Evaluator, config, graph), resources=config.evaluation.resources
        ) as workers,
    ):
        ask(
            [each.about(VALIDATION) for each in asked],
            workers,
            partial(runtime.share, config.dataset),
            artifact,
        )
        ((_, (bags, choosing)),) = workers.run("choose", [None])
        for inputs in graph.scored:
            ask([each.about(inputs) for each in asked], workers, with_test, artifact)
        ((_, (found, shown, comparing)),) = workers.run("compare", [bags])
    artifact.ensure_uncommitted()
    artifact.write_json(EVIDENCE, provenance(config, graph) | shown)
    every = (VALIDATION, *graph.scored)
    answers = [each.about(inputs).answers for each in asked for inputs in every]
    costs = [choosing, comparing, *(each.manifest().cost for each in answers)]
    artifact.commit(
        files=[EVIDENCE],
        metrics=found.model_dump(),
        cost=cost_of_pieces(costs, watch.cost.wall_seconds),
    )


@dataclass(frozen=True)
class _Opened(Shared):
    """A data set with its test part."""

    test: Shared

    def load(self) -> Parts:
        parts: Parts = self.value.load()
        return parts.with_test(self.test.load())


class Evaluator(Respondent):
    """A process that asks models, and one of which compares what they say."""

    def __init__(self, config: PipelineConfig, graph: Graph) -> None:
        super().__init__(config.evaluation.resources)
        self.config = config
        self.graph = graph

    def choose(self, _: None) -> tuple[dict[str, Bag], Cost]:
        """The bag and its rivals, by what models say of validation examples; and the cost."""
        with Stopwatch() as watch:
            said, prices = self._said(VALIDATION), _prices(self.graph)
            bags = Selection(self.config.evaluation, said, self._trunks(), prices).bags()
        return bags, watch.cost

    def compare(self, bags: dict[str, Bag]) -> tuple[Evaluation, dict[str, Any], Cost]:
        """Figures and evidence, by what they say of the test part; and the cost."""
        with Stopwatch() as watch:
            stored = {name: self._models[name] for name in POPULATIONS}
            tested = self.graph.questions["samples"].about(TEST).answers.manifest()
            comparison = Comparison(
                section=self.config.evaluation,
                seed=self.config.seed,
                bags=bags,
                validation=self._said(VALIDATION),
                test=self._said(TEST),
                others={i.name: self._said(i) for i in self.graph.scored if i != TEST},
                trunks=self._trunks(),
                vectors={n: StoredVectors(q.population, rows) for n, (q, rows) in stored.items()},
                prices=_prices(self.graph),
                part=tested.metrics["part"],
            )
            found, shown = compared(comparison)
        return found, shown, watch.cost

    @cached_property
    def _models(self) -> dict[str, tuple[Question, NDArray[np.intp] | None]]:
        """Who is compared, by name: of which question, and which of its models; None: all."""
        asked = dict(self.graph.questions)
        seeds, samples = asked.pop("seeds"), asked.pop("samples")
        held_out = read_population(seeds.population, theta=False).held_out
        return {
            "generated": (samples, None),
            "originals": (seeds, np.flatnonzero(~held_out)),
            "held_out": (seeds, np.flatnonzero(held_out)),
            **{name: (question, None) for name, question in asked.items()},
        }

    def _said(self, inputs: Inputs) -> dict[str, Answers]:
        models = self._models.items()
        return {name: Answers(q.about(inputs).answers, rows) for name, (q, rows) in models}

    def _trunks(self) -> dict[str, Tensor]:
        """Of populations."""
        found = {}
        for name, (question, rows) in self._models.items():
            if question.rival is None:
                trunk = read_population(question.population, theta=False).trunk
                found[name] = torch.tensor(trunk if rows is None else trunk[rows]).long()
        return found


def _prices(graph: Graph) -> StageCosts:
    made = {stage: graph[stage].manifest() for stage in STAGES_OF_THE_BAG}
    seeds_made = made["seeds"]
    ordinary_made = graph.ordinary.manifest() if graph.ordinary else None
    cpu_seconds = seeds_made.cost.cpu_seconds
    root_share = seeds_made.metrics["root_cpu_seconds"] / cpu_seconds if cpu_seconds else 0.0
    # What others trained has no price unless they say it: unknown, and so is all that needs it.
    seeds = seeds_made.cost.seconds if seeds_made.metrics.get("priced", True) else math.nan
    others = sum(made[stage].cost.seconds for stage in STAGES_OF_THE_BAG if stage != "seeds")
    drawn = {name: q.answers.manifest() for name, q in graph.questions.items() if q.rival}
    return StageCosts(
        bag=seeds + others,
        samples=made["samples"].cost.seconds,
        seeds=seeds,
        roots=seeds * root_share,
        trained=seeds_made.metrics["models"],
        ordinary=ordinary_made.cost.seconds / ordinary_made.metrics["models"]
        if ordinary_made
        else None,
        drawing={name: each.cost.seconds / each.metrics["models"] for name, each in drawn.items()},
    )
