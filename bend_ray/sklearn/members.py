"""The members of a bag: of a contest over folds, or of the pipeline's stages; here or on a cluster.

Shape letters: K members, P parameters, N examples, F numbers of an example, O outputs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import DATASETS, graph_of, identified
from bend_ray.config.reading import validated, with_knobs
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.arrays import Arrays, split_arrays
from bend_ray.data.datasets import ArrayParts
from bend_ray.data.examples import Parts, itself
from bend_ray.data.files import Part
from bend_ray.data.given import spilled
from bend_ray.errors import ConfigError
from bend_ray.networks.architectures import Architecture
from bend_ray.networks.fitting import initial_parameters
from bend_ray.networks.protocols import Varied
from bend_ray.networks.recipe import Stretch
from bend_ray.pipeline import connect, make_stage
from bend_ray.populations.contest import ASKED, Chosen, Contest
from bend_ray.populations.networks import Classifiers, checked
from bend_ray.process.computing import settle
from bend_ray.process.log import ProgressLine
from bend_ray.runtime.interface import Runtime, Shared, split
from bend_ray.storage.uris import joined
from bend_ray.tasks import Task

_ALONE = threading.Lock()
"""Networks begin as torch's global generator draws them, which all threads share."""
TIMED_STEPS = 5
"""By which a time limit is planned."""
USED = 0.7
"""Share of the time that is left which is planned for training."""


@dataclass(frozen=True)
class Members:
    """Who votes ``(K, P)``, with what weight, and what they say of examples they never saw."""

    architecture: Architecture
    theta_KP: Tensor
    weight_K: Tensor
    ballots_NO: Tensor
    labels_N: Tensor


class Workshop:
    """Where members are trained.

    Args:
        store: of the artifacts.
        address: of a cluster; None: in this process.
        last: the stage whose population votes, where the pipeline makes it.
    """

    def __init__(self, store: str, address: str | None, last: str) -> None:
        self.store, self.address, self.last = Store(store), address, last

    def train(
        self,
        sections: Mapping[str, Any],
        folds: Sequence[Mapping[Part, Arrays]],
        task: Task,
        settings: Mapping[str, Any],
        seconds: float | None,
    ) -> Members:
        """The members; BendError where they cannot be trained.

        ``folds`` are parts of data sets, and ``settings`` further knobs by path; ``seconds`` in
        which to be done, about, None: any.
        """
        with _ALONE:
            dataset = {"kind": "arrays", "train": "memory", "standardise": False, "task": task}
            config = with_knobs(validated({**sections, "dataset": dataset}), settings)
            protocol, spec = config.seeds.protocol, config.dataset
            runtime = Runtime() if self.address is None else connect(self.address, config)
            if isinstance(protocol, Varied):
                assert isinstance(spec, ArrayParts)
                parts = [split_arrays(spec, _given(fold)) for fold in folds]
                return _elected(runtime, config, parts, seconds)
            if len(folds) > 1:
                raise ConfigError(
                    f"folds: expected 1 with seeds.protocol {protocol.kind}, got {len(folds)}"
                )
            folder = joined(self.store.uri, DATASETS)
            files: dict[str, str] = {p: spilled(its, folder) for p, its in folds[0].items()}
            spec = spec.model_copy(update=files)
            config = identified(config.model_copy(update={"dataset": spec}))
            return self._made(runtime, config, seconds)

    def _made(self, runtime: Runtime, config: PipelineConfig, seconds: float | None) -> Members:
        """By the stages of the pipeline."""
        classifiers = Classifiers(config, runtime.share(config.dataset).load(), "cpu")
        if seconds is not None:
            config = _affordable(config, classifiers, seconds)
        graph = graph_of(config, self.store)
        equipped = runtime.preflight(config, graph.steps(self.last))
        for stage in graph.steps(self.last):
            make_stage(stage, equipped, graph, runtime)
        population = read_population(graph[self.last])
        theta_KP, trunks = torch.from_numpy(population.theta_KP), population.trunk.tolist()
        return _members(theta_KP[:, None], torch.ones(len(trunks)), [classifiers], trunks)


class Electorate:
    """An actor that holds the contests for some places each."""

    def __init__(
        self, config: PipelineConfig, datasets: Sequence[Shared], seconds: float | None
    ) -> None:
        resources = config.seeds.resources
        device = settle(resources.cpus, resources.num_gpus)
        self.fields = [Classifiers(config, dataset.load(), device) for dataset in datasets]
        self.seed, self.seconds = config.seed, seconds

    def elected(self, places: Sequence[int]) -> Chosen:
        """Who has these places."""
        return Contest(self.fields, self.seed, places, seconds=self.seconds).held()


def _given(fold: Mapping[Part, Arrays]) -> dict[Part, Callable[[], Arrays]]:
    return {part: partial(itself, its) for part, its in fold.items()}


def _elected(
    runtime: Runtime, config: PipelineConfig, parts: Sequence[Parts], seconds: float | None
) -> Members:
    """By contests over all folds."""
    protocol, section = config.seeds.protocol, config.seeds
    fields = [checked(config, parts[0]), *(Classifiers(config, its, "cpu") for its in parts[1:])]
    datasets = [runtime.lend(config.dataset, its) for its in parts]
    equipped = runtime.preflight(config, ["seeds"])
    together = max(1, section.cohort_size // protocol.begun)
    cohorts = split(range(section.num_models), together)
    each = None if seconds is None else seconds / len(cohorts)
    models = together * protocol.begun * len(datasets)
    needs = runtime.holding("seeds", equipped.seeds.resources, 8 * models * fields[0].whole.size)
    bags: list[Chosen] = []
    with (
        runtime.workers(Electorate, equipped, datasets, each, resources=needs) as workers,
        ProgressLine("members", len(cohorts), "groups of candidates") as progress,
    ):
        for _, bag in sorted(workers.run("elected", cohorts), key=lambda found: found[0][0]):
            bags.append(bag)
            progress.update(len(bags))
    theta_BFP, votes_B = (
        torch.cat([getattr(b, n) for b in bags]) for n in ("theta_BFP", "votes_B")
    )
    return _members(theta_BFP, votes_B, fields)


def _members(
    theta_BFP: Tensor,
    votes_B: Tensor,
    fields: Sequence[Classifiers],
    trunks_B: Sequence[int] | None = None,
) -> Members:
    """Models of every field by their votes, and what those of a field say of its validation."""
    weight_B, ballots, labels = votes_B.double() / votes_B.sum(), [], []
    for f, classifiers in enumerate(fields):
        dataset = classifiers.dataset
        given = (theta_BFP[:, f], dataset.validation, trunks_B, ASKED)
        outputs_BNO = torch.cat([*classifiers.answers(*given)], dim=1)
        ballots.append(torch.tensordot(weight_B, dataset.task.ballots(outputs_BNO).double(), 1))
        labels.append(dataset.validation.labels_N)
    return Members(
        fields[0].architecture,
        theta_BFP.flatten(0, 1),
        weight_B.repeat_interleave(len(fields)) / len(fields),
        torch.cat(ballots),
        torch.cat(labels),
    )


def _affordable(config: PipelineConfig, classifiers: Classifiers, seconds: float) -> PipelineConfig:
    """The config, its training as short as can be done in time, by a few steps that are timed."""
    recipe = config.seeds.recipe
    models = max(config.seeds.num_models, config.seeds.protocol.num_roots)
    whole = recipe.num_steps(1, len(classifiers.dataset.train))
    fresh_P = initial_parameters(classifiers.build, classifiers.whole.flatten, 0)
    generators = [torch.Generator().manual_seed(model) for model in range(models)]
    started = time.monotonic()
    stretch = Stretch(start=0.0, epochs=TIMED_STEPS / whole)
    next(classifiers.fitted(fresh_P.repeat(models, 1), None, stretch, generators))
    spent = time.monotonic() - started
    epochs = int((seconds - spent) * USED * TIMED_STEPS / (spent * whole))
    return with_knobs(config, {"seeds.recipe.epochs": max(1, min(recipe.epochs, epochs))})
