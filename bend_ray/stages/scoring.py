"""What a search asks of bags: tasks that score them on validation images, by their size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import read_population
from bend_ray.comparison.validation import BagCurve, validation_curve
from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.populations.members import load_roots
from bend_ray.populations.networks import Classifiers
from bend_ray.process.computing import settle
from bend_ray.runtime.interface import Runtime, Shared
from bend_ray.stages.sample_drawer import SampleDrawer


def bag_curve(
    config: PipelineConfig, graph: Graph, runtime: Runtime, sizes: Sequence[int]
) -> BagCurve:
    """Of the committed samples; TrainingError where fewer are left than the smallest bag has."""
    dataset = runtime.share(config.dataset)
    resources = config.evaluation.resources
    return runtime.run(_of_samples, config, graph, sizes, dataset, resources=resources)


def milestone_curve(
    config: PipelineConfig, graph: Graph, runtime: Runtime, weights: str, sizes: Sequence[int]
) -> BagCurve:
    """Of as many classifiers as the largest size, drawn by a generator still being trained.

    Needs the latents, and the file of weights that ``generator.train_until`` named. TrainingError
    where, of what is drawn, less is finite than the smallest bag has.
    """
    dataset = runtime.share(config.dataset)
    resources = config.samples.resources
    return runtime.run(_of_milestone, config, graph, weights, sizes, dataset, resources=resources)


def _of_samples(
    config: PipelineConfig, graph: Graph, sizes: Sequence[int], shared: Shared
) -> BagCurve:
    device = settle(config.evaluation.resources.cpus, config.evaluation.resources.num_gpus)
    classifiers = Classifiers(config, shared.load(), device, partial(load_roots, graph.seeds))
    return _curve(config, classifiers, read_population(graph.samples), sizes)


def _of_milestone(
    config: PipelineConfig, graph: Graph, weights: str, sizes: Sequence[int], shared: Shared
) -> BagCurve:
    drawer = SampleDrawer(config, graph, shared, weights)
    return _curve(config, drawer.classifiers, drawer.classifiers_of(range(max(sizes))), sizes)


def _curve(
    config: PipelineConfig, classifiers: Classifiers, drawn: Population, sizes: Sequence[int]
) -> BagCurve:
    theta_EP, trunks_E = torch.from_numpy(drawn.theta_KP), torch.tensor(drawn.trunk).long()
    return validation_curve(config, classifiers, theta_EP, trunks_E, sizes)
