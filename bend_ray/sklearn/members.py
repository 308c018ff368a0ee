"""The members of one fold, made by the pipeline's stages, here or on a cluster.

Shape letters: K members, P parameters, N examples, F numbers of an example, O outputs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import DATASETS, graph_of, identified
from bend_ray.config.reading import validated, with_knobs
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.arrays import SINGLE, Arrays
from bend_ray.data.given import spilled
from bend_ray.networks.fitting import initial_parameters
from bend_ray.networks.recipe import Stretch
from bend_ray.pipeline import connect, make_stage
from bend_ray.populations.networks import Classifiers
from bend_ray.runtime.interface import Runtime
from bend_ray.storage.uris import joined
from bend_ray.tasks import Task

_ALONE = threading.Lock()
"""Networks begin as torch's global generator draws them, which all threads share."""
TIMED_STEPS = 5
"""By which a time limit is planned."""
USED = 0.7
"""Share of the time that is left which is planned for training."""


@dataclass(frozen=True)
class Fold:
    """Members of a fold ``(K, P)``, and what they say together of examples they never saw."""

    config: PipelineConfig
    theta_KP: Tensor
    ballots_NO: Tensor
    labels_N: Tensor


class Workshop:
    """Where folds are trained.

    Args:
        store: of the artifacts.
        address: of a cluster; None: in this process.
        last: the stage whose population votes.
    """

    def __init__(self, store: str, address: str | None, last: str) -> None:
        self.store, self.address, self.last = Store(store), address, last
        self._runtime: Runtime | None = None

    def written(
        self,
        inputs_NF: NDArray[Any],
        labels_N: NDArray[Any],
        rows: Mapping[str, NDArray[np.int64]],
        task: Task,
        class_names: list[str],
    ) -> dict[str, Any]:
        """The data set of a fold, whose ``train`` and ``validation`` have ``rows`` of all examples.

        Labels are codes of classes, of which each has a name, or targets ``(N, T)``.
        """
        files, folder = {}, joined(self.store.uri, DATASETS)
        for part, own in rows.items():  # one at a time, as each is a copy
            given = {SINGLE: inputs_NF[own]}, labels_N[own], class_names or None
            files[part] = spilled(Arrays.of(*given, task=task), folder)
        return {"kind": "arrays", "standardise": False, "task": task, **files}

    def train(
        self, sections: Mapping[str, Any], settings: Mapping[str, Any], seconds: float | None
    ) -> Fold:
        """A fold's members, one fold at a time; BendError where they cannot be trained.

        ``settings`` are further knobs by path; ``seconds`` in which to be done, about, None: any.
        """
        with _ALONE:
            config = identified(with_knobs(validated(sections), settings))
            if self._runtime is None:
                here = self.address is None
                self._runtime = Runtime() if here else connect(self.address, config)
            runtime = self._runtime
            dataset = runtime.share(config.dataset).load()
            classifiers = Classifiers(config, dataset, "cpu")
            if seconds is not None:
                config = _affordable(config, classifiers, seconds)
            graph = graph_of(config, self.store)
            equipped = runtime.preflight(config, graph.steps(self.last))
            for stage in graph.steps(self.last):
                make_stage(stage, equipped, graph, runtime)
            population = read_population(graph[self.last])
            theta_KP = torch.from_numpy(population.theta_KP)
            outputs_KNO = classifiers.logits(
                theta_KP, dataset.validation, population.trunk.tolist()
            )
            ballots_NO = dataset.task.ballots(outputs_KNO).mean(dim=0)
            return Fold(config, theta_KP, ballots_NO, dataset.validation.labels_N)


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
