"""What a search asks of bags of drawn classifiers: scores on validation images, by their size.

A search looks at this, and never at the test part. Where members are chosen or weighted, or a
temperature is fitted, by validation images, it is done on one half of them and scored on the
other, and the other way round: else the search would reward choosing by what it is scored on.
Where members vote as they come, a size is scored as the mean over several orders: which trunks
come first is chance, and with fewer members than trunks it would decide (measured: on the digits a
search by the one order there is finds that two members are best).

Shape letters: E members, N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bend_ray.artifacts.shards import read_population
from bend_ray.config.graph import Graph
from bend_ray.config.schema import EvaluationSection
from bend_ray.ensemble.bagging import All, Bagging
from bend_ray.ensemble.curves import Growth
from bend_ray.ensemble.predictions import Predictions
from bend_ray.errors import TrainingError
from bend_ray.networks.stacking import call
from bend_ray.populations.networks import Classifiers
from bend_ray.process.computing import settle
from bend_ray.randomness import generator_for
from bend_ray.runtime.interface import Runtime, Shared
from bend_ray.stages.samples import SampleDrawer

FOLDS = 2
ORDERS = 20
"""Over which bags of members that vote as they come are averaged."""


@dataclass(frozen=True)
class BagCurve:
    """Bags of the first members in voting order, by size, on validation images; FLOPs of one."""

    sizes: list[int]
    accuracy: list[float]
    nll: list[float]
    member_flops: int


def bag_curve(
    graph: Graph, runtime: Runtime, sizes: Sequence[int], weights: str | None = None
) -> BagCurve:
    """Of the committed samples, or of classifiers of a generator that is still being trained.

    As many of these as the largest size; that needs the latents, and the file of ``weights`` that
    ``generator.train_until`` named. TrainingError where less is finite than the smallest bag has.
    """
    config = graph.config
    resources = (config.samples if weights else config.evaluation).resources
    given = graph, weights, sizes, runtime.share(config.dataset)
    return runtime.run(_curve, *given, resources=resources)


def _curve(graph: Graph, weights: str | None, sizes: Sequence[int], shared: Shared) -> BagCurve:
    config = graph.config
    if weights is None:
        resources = config.evaluation.resources
        device = settle(resources.cpus, resources.num_gpus)
        classifiers = Classifiers(config, shared.load(), device, graph.seeds)
        drawn = read_population(graph.samples)
    else:
        drawer = SampleDrawer(graph, shared, weights)
        classifiers, drawn = drawer.classifiers, drawer.classifiers_of(range(max(sizes)))
    # Fewer than the largest bag may be left of what was drawn.
    sizes = [size for size in sizes if size <= len(drawn)]
    if not sizes:
        raise TrainingError(
            f"expected as many classifiers as a bag has, got {len(drawn)} that did not diverge; "
            "train the generator for longer"
        )
    validation, trunks_E = classifiers.dataset.validation, torch.tensor(drawn.trunk).long()
    logits_ENC = classifiers.logits(torch.from_numpy(drawn.theta_KP), validation, trunks_E.tolist())
    predictions = Predictions(logits_ENC, validation.labels_N, classifiers.dataset.task)
    accuracy, nll = cross_fitted_curve(config.evaluation, predictions, trunks_E, sizes)
    return BagCurve(sizes, accuracy, nll, _member_flops(classifiers))


def cross_fitted_curve(
    section: EvaluationSection, predictions: Predictions, trunks_E: Tensor, sizes: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Accuracy and NLL by size; what is fitted is so on the half that is not scored.

    An image's place says which half it belongs to. Sizes rise from 1 to E; the section's
    ``bagging.size`` is not looked at.
    """
    logits_ENC, labels_N = predictions.logits_ENC, predictions.labels_N
    fold_N = torch.arange(len(labels_N)) % FOLDS
    accuracy, nll = np.zeros(len(sizes)), np.zeros(len(sizes))
    for fold in range(FOLDS):
        scored, seen = (
            Predictions(logits_ENC[:, own], labels_N[own], predictions.task)
            for own in (fold_N == fold, fold_N != fold)
        )
        orders = _orders(section.bagging, seen, trunks_E)
        growth = Growth(section.vote, seen.scores()[1], sizes, orders)
        curve = growth.curve(scored, seen if section.temperature_scaling else None)
        share = len(scored.labels_N) / len(labels_N)
        accuracy += share * np.array(curve["accuracy"]["mean"])
        nll += share * np.array(curve["nll"]["mean"])
    return accuracy.tolist(), nll.tolist()


def _orders(bagging: Bagging, seen: Predictions, trunks_E: Tensor) -> list[list[int]]:
    """Voting orders: of members that are chosen the one chosen, else several, trunks in turn."""
    whole = bagging.model_copy(update={"size": None})
    if not isinstance(bagging, All):
        return [whole.choose(seen, trunks_E)]
    found = []
    for draw in range(ORDERS):
        dealt_E = torch.randperm(len(trunks_E), generator=generator_for(0, "orders", draw))
        order = whole.choose(seen, trunks_E[dealt_E])
        found.append(dealt_E[order].tolist())
    return found


def _member_flops(classifiers: Classifiers) -> int:
    """Counted, not timed: the same on a busy machine."""
    dataset = classifiers.dataset
    example = dataset.shown(1)
    with torch.random.fork_rng(devices=[]):
        network = classifiers.build().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(network, example)
    return int(counter.get_total_flops())
