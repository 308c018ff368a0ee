"""Bags of random classifiers on digits: quick to make, and with every kind of vote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from figures import metrics
from scored import combine
from torch import Tensor

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import write_shard
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import Graph, graph_of
from bend_ray.config.reading import load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.networks.stacking import Stack, predict_logits
from bend_ray.parameters.layout import ParameterLayout

SCORES = {"accuracy": 0.97, "nll": 0.13, "brier": 0.05, "ece": 0.02}


def bag_config(*overrides: str) -> PipelineConfig:
    """A config of nine samples."""
    return load_config(None, ["samples.count=9", *overrides])


@dataclass(frozen=True)
class Bagged:
    """A store with an evaluated bag, and what is true of it."""

    config: PipelineConfig
    graph: Graph
    theta_EP: Tensor
    members: list[int]
    val_nll_E: Tensor

    def logits(self, pixels: np.ndarray) -> Tensor:
        """Every voter's logits, by the pipeline's own code."""
        dataset = self.config.dataset.load()
        module = self.config.seeds.architecture.build((1, 8, 8), 10).eval()
        stack = Stack(module, ParameterLayout.of(module), "loop")
        inputs = dataset.normalise(torch.from_numpy(pixels))
        return predict_logits(stack, self.theta_EP[self.members], inputs)

    def probabilities(self, pixels: np.ndarray) -> Tensor:
        """The bag's answer, by the pipeline's own code."""
        vote = self.config.evaluation.vote
        return combine(vote, self.logits(pixels), self.val_nll_E[self.members])


MakeBag = Callable[..., Bagged]


def store_bag(root: Path, config: PipelineConfig, members: list[int] | None = None) -> Bagged:
    """Commit samples and an evaluation of random classifiers."""
    artifacts = graph_of(config, Store(str(root)))
    module = config.seeds.architecture.build((1, 8, 8), 10)
    layout = ParameterLayout.of(module)
    count = config.samples.count
    generator = torch.Generator().manual_seed(0)
    theta_EP = 0.3 * torch.randn(count, layout.size, generator=generator)
    theta_EP[:, layout.num_trainable :] = theta_EP[:, layout.num_trainable :].abs() + 0.5
    val_nll_E = torch.linspace(0.1, 0.4, count)
    ids = np.arange(count)
    population = Population(
        model_id=ids,
        trunk=ids % 3,
        fork=ids // 3,
        step=ids * 0,
        seed=ids,
        held_out=ids < 0,
        val_accuracy=np.full(count, 0.9),
        val_nll=val_nll_E.numpy(),
        fit_seconds=np.full(count, 0.1),
        origin="generated",
        theta_KP=theta_EP.numpy(),
        layout_digest=layout.digest,
    )
    shard = write_shard(artifacts.samples, 0, population)
    for artifact in artifacts:
        said = {"models": count}
        files = [shard] if artifact.stage == "samples" else []
        chosen = list(range(count)) if members is None else members
        if artifact.stage == "evaluation":
            said = metrics()
            said["bag"] |= {**SCORES, "size": len(chosen), "members": chosen}
        rows = dict.fromkeys(files, count)
        artifact.commit(files=files, rows=rows, metrics=said, cost=Cost())
    return Bagged(config, artifacts, theta_EP, chosen, val_nll_E.double())
