"""Stage 6, evaluation: the bag of generated classifiers against its rivals, on the test part.

The only stage that opens the test part, and that once all is chosen: workers ask all models about
validation examples, one of them chooses members, rivals and temperatures, workers ask about the
test part, one scores. What models said stays in artifacts of its own, so that another vote or
another bag asks none of them again: of a ``Question``, a population or a rival on a named set of
inputs, ``ask`` makes the artifact ``question.answers``, some models at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bend_ray.artifacts.cost import (
    COST_DIRECTORY,
    Cost,
    Stopwatch,
    cost_of_pieces,
    read_costs,
    write_cost,
)
from bend_ray.artifacts.shards import read_format, read_population
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import save_weights
from bend_ray.comparison.comparison import POPULATIONS, Bag, Comparison, Selection, StageCosts
from bend_ray.comparison.evidence import compared, provenance
from bend_ray.config.graph import EVIDENCE, STAGES, Graph, Question
from bend_ray.data.examples import Examples, Parts
from bend_ray.data.inputs import TEST, VALIDATION, Inputs
from bend_ray.data.streaming import Streamed
from bend_ray.ensemble.predictions import block_size
from bend_ray.errors import StoreError
from bend_ray.generation.rivals import Trained
from bend_ray.populations.answers import LABELS, Answers, piece_name, shape_of, write_piece
from bend_ray.populations.members import StoredVectors, learnt_vectors
from bend_ray.populations.networks import Classifiers
from bend_ray.process.computing import settle
from bend_ray.process.log import ProgressLine
from bend_ray.randomness import generator_for
from bend_ray.report.evaluation import Evaluation
from bend_ray.runtime.interface import Runtime, Shared, Workers, split
from bend_ray.storage.filesystems import side_by_side

STAGES_OF_THE_BAG = STAGES[:-1]
PIECE_BYTES = 256 * 2**20
"""Parameters of the models of a piece; at least one model's."""
PIECE_MODELS = 256
"""Models of a piece, at most."""


def make(graph: Graph, runtime: Runtime) -> None:
    """Evaluate ``graph.samples`` and everything it is compared with, and commit the figures."""
    config, artifact, asked = graph.config, graph.evaluation, graph.questions.values()

    @cache
    def with_test() -> Shared:
        dataset = runtime.share(config.dataset)
        return _Opened(dataset, runtime.hold(dataset.load().test))

    with (
        Stopwatch() as watch,
        runtime.workers(Evaluator, graph, resources=config.evaluation.resources) as workers,
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


@dataclass(frozen=True)
class Piece:
    """Some models of a question, by their places, and the data set they are asked about."""

    question: Question
    index: int
    models: range
    num_models: int
    """Of the question."""
    dataset: Shared


def num_models(question: Question) -> int:
    """How many models there are, or a rival draws at most."""
    models = sum(file.rows or 0 for file in question.population.manifest().files)
    if question.rival is None:
        return models
    trunks = question.config.seeds.protocol.num_trunks
    return question.rival.num_drawn(question.config.samples.count, trunks)


def models_a_piece(num_parameters: int) -> int:
    """How many models of so many parameters are asked at once."""
    return min(PIECE_MODELS, max(1, PIECE_BYTES // (4 * num_parameters)))


def ask(
    questions: Sequence[Question],
    workers: Workers,
    share: Callable[[], Shared],
    progress_of: Artifact | None = None,
) -> None:
    """Make the answers to questions that are not there; what was made of them before is kept.

    By workers of ``Evaluator``. ``share`` reads the data set of whose parts the inputs are, where
    there is need; ``progress_of`` is the artifact they are asked for, which tells how far that is.
    """
    unanswered = [each for each in questions if not each.answers.exists()]
    if not unanswered:
        return
    dataset, todo = share(), []
    counts: list[int] = []
    for question in unanswered:
        noted = question.answers.list_files(f"{COST_DIRECTORY}/")
        # Pieces depend on the models alone.
        count = num_models(question)
        size = models_a_piece(read_format(question.population).num_parameters)
        some = enumerate(split(range(count), size))
        own = [Piece(question, i, models, count, dataset) for i, models in some]  # type: ignore[arg-type]
        counts.append(len(own))
        todo += [p for p in own if f"{COST_DIRECTORY}/{piece_name(p.index)}.json" not in noted]
    name, total = unanswered[0].inputs.name, sum(counts)
    before = total - len(todo)
    with Stopwatch() as watch, ProgressLine(f"{name:<12}", total, "pieces answered") as progress:
        progress.update(before)
        for done, _ in enumerate(workers.run("ask", todo), before + 1):
            progress.update(done)
            if progress_of is not None:
                progress_of.report_progress(done, total, f"pieces of {name} answers")
    parts = dataset.load()
    asked = {question.inputs.name: question.inputs for question in unanswered}
    labels = {name: inputs.of(parts).labels_N for name, inputs in asked.items()}
    for question, count in zip(unanswered, counts, strict=True):
        _commit(question, count, parts, labels[question.inputs.name], watch.cost.wall_seconds)


def _commit(
    question: Question, num_pieces: int, parts: Parts, labels_N: Tensor, wall_seconds: float
) -> None:
    artifact = question.answers
    names = [piece_name(index) for index in range(num_pieces)]
    try:
        costs = read_costs(artifact, names)
        models = [count for count, _ in side_by_side(partial(shape_of, artifact), names)]
        save_weights(artifact, LABELS, {"labels": labels_N})
        artifact.commit(
            files=[*names, LABELS],
            rows=dict(zip(names, models, strict=True)),
            metrics={
                "models": sum(models),
                "part": question.inputs.named(parts),
                "task": parts.task.model_dump(mode="json"),
            },
            cost=cost_of_pieces(costs, wall_seconds),
        )
    except StoreError:
        # Another run that asks the same may have been quicker.
        if not artifact.exists():
            raise


class Evaluator:
    """A process that asks models, and one of which compares what they say.

    It holds a piece's models, and the network of the latest question.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        resources = graph.config.evaluation.resources
        self.gpus = resources.num_gpus
        self.device = settle(resources.cpus, resources.num_gpus)
        self._latest: tuple[tuple[str, ...], tuple[Classifiers, Examples | Streamed]] | None = None

    def ask(self, piece: Piece) -> None:
        """Ask the models of a piece, write what they say, then note what it cost."""
        artifact = piece.question.answers
        with Stopwatch(self.gpus) as watch:
            classifiers, examples = self._asked(piece)
            theta_EP, trunks = models_of(piece.question, piece.models, classifiers)
            num_classes = classifiers.dataset.num_outputs
            size = block_size(piece.num_models, num_classes)
            blocks = classifiers.answers(theta_EP, examples, trunks, size)
            write_piece(artifact, piece.index, len(theta_EP), num_classes, blocks)
        write_cost(artifact, piece_name(piece.index), watch.cost)

    def _asked(self, piece: Piece) -> tuple[Classifiers, Examples | Streamed]:
        """Networks are the same for all that are of one trained population, as are examples."""
        question = piece.question
        asked = question.seeds.fingerprint, question.inputs.name
        if self._latest is None or self._latest[0] != asked:
            config, parts = question.config, piece.dataset.load()
            made = Classifiers(config, parts, self.device, question.seeds)
            self._latest = asked, (made, question.inputs.of(made.dataset))
        return self._latest[1]

    def choose(self, _: None) -> tuple[dict[str, Bag], Cost]:
        """The bag and its rivals, by what models say of validation examples; and the cost."""
        with Stopwatch() as watch:
            said, prices = self._said(VALIDATION), _prices(self.graph)
            bags = Selection(self.graph.config.evaluation, said, self._trunks(), prices).bags()
        return bags, watch.cost

    def compare(self, bags: dict[str, Bag]) -> tuple[Evaluation, dict[str, Any], Cost]:
        """Figures and evidence, by what they say of the test part; and the cost."""
        with Stopwatch() as watch:
            stored = {name: self._models[name] for name in POPULATIONS}
            tested = self.graph.questions["samples"].about(TEST).answers.manifest()
            comparison = Comparison(
                section=self.graph.config.evaluation,
                seed=self.graph.config.seed,
                bags=bags,
                answers={i.name: self._said(i) for i in (VALIDATION, *self.graph.scored)},
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
        found = {}
        for name, (question, rows) in self._models.items():
            if question.rival is None:
                trunk = read_population(question.population, theta=False).trunk
                found[name] = torch.tensor(trunk if rows is None else trunk[rows]).long()
        return found


def models_of(
    question: Question, models: range, classifiers: Classifiers
) -> tuple[Tensor, list[int]]:
    """Vectors ``(E, P)`` and trunks of some models of a question, read or drawn."""
    if question.rival is None:
        trunks = read_population(question.population, theta=False).trunk
        theta_EP = StoredVectors(question.population, models)[:, :]
        return theta_EP, trunks[models.start : models.stop].tolist()
    name, seed = question.rival.name, question.config.seed
    trained = Trained(
        *learnt_vectors(question.population),
        question.config.samples.count,
        lambda index: generator_for(seed, "rival", name, index),
    )
    theta_EP, trunks_E = question.rival.draw(trained, models)
    # As drawn models are: an average of running statistics is of no one model.
    theta_EP = classifiers.recalibrate(theta_EP, trunks_E.tolist())
    return theta_EP, trunks_E.tolist()


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
