"""One network that answers as a bag does, for the price of one.

It learns what the bag says, at its temperature, of *mixtures*: of two training examples in any
shares. No member has seen one, so that the bag is no surer of them than of anything else.
Source: Hinton et al., "Distilling the knowledge in a neural network", 2015.

Shape letters: N examples, C classes, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from bend_ray.config.graph import Graph
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Examples, Parts, each
from bend_ray.ensemble.votes import SoftVote
from bend_ray.errors import ConfigError, DataError
from bend_ray.export.card import Card
from bend_ray.export.files import refuse_strangers
from bend_ray.export.folder import bag_of, measured, publish_bag, votes
from bend_ray.networks.fitting import fit, initial_parameters
from bend_ray.networks.recipe import Stretch
from bend_ray.populations.networks import Classifiers
from bend_ray.randomness import generator_for, seed_for

MIXTURES, MOST = 10, 200_000
"""As many as training examples, times this, and at most."""


def distil(config: PipelineConfig, graph: Graph, output: str, epochs: float | None = None) -> Card:
    """Train a student of the bag that a config's evaluation chose, and write it as a bag of one.

    Output and errors are as of ``export_bag``; ConfigError also where the task has no classes,
    DataError where inputs cannot be mixed. ``epochs`` are passes over the mixtures; None: as many
    as a member's over its examples.
    """
    refuse_strangers(output)
    dataset = config.dataset.load()
    if not dataset.task.has_classes:
        raise ConfigError(
            f"distill: expected a bag of classes, got one of a {dataset.task.kind}; export the bag "
            "itself, or fewer of its members with --members"
        )
    card, state_K = bag_of(config, graph)
    theta_P, classifiers = _taught(config, dataset, card, state_K, epochs)
    state_1 = classifiers.whole.unflatten(theta_P[None])
    alone = {"vote": SoftVote(), "members": (0,), "weights": (1.0,)}
    version = {"model_version": f"{card.model_version}-student"}
    student = card.model_copy(update=alone | version)
    return publish_bag(output, measured(config, student, state_1, dataset), state_1)


def _taught(
    config: PipelineConfig,
    dataset: Parts,
    card: Card,
    state_K: Mapping[str, Tensor],
    epochs: float | None,
) -> tuple[Tensor, Classifiers]:
    """The parameters of a student ``(P,)``, and what network it is."""
    generator = generator_for(config.seed, "student")
    count = min(MIXTURES * len(dataset.train), MOST)
    inputs = _mixtures(dataset, count, generator)
    asked, classifiers = Examples(inputs, torch.zeros(count)), Classifiers(config, dataset, "cpu")
    probs_NC = card.task.scaled(votes(classifiers, card, state_K, asked), card.temperature)
    seed = seed_for(config.seed, "student")
    start_P = initial_parameters(classifiers.build, classifiers.whole.flatten, seed)
    told: dict[str, Any] = {"label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0}
    recipe = config.seeds.recipe
    recipe = recipe.model_copy(
        update=told | {"class_weights": None, "epochs": epochs or recipe.epochs}
    )
    theta_SKP = fit(
        classifiers.stack,
        start_P[None],
        Examples(inputs, probs_NC.float()),
        dataset.normalise,
        recipe,
        Stretch(start=0.0, epochs=recipe.epochs),
        [generator],
    )
    return theta_SKP[-1, 0], classifiers


def _mixtures(dataset: Parts, count: int, generator: Generator) -> Any:
    """Inputs ``(N, ...)``; DataError where they are whole numbers that are no pixels."""
    pairs_2N = torch.randint(len(dataset.train), (2, count), generator=generator)
    share_N = torch.rand(count, generator=generator)

    def mixed(one: Tensor, other: Tensor) -> Tensor:
        if one.dtype == torch.int64:
            raise DataError("distill: expected inputs that can be mixed, got tokens")
        share = share_N.reshape(-1, *(1,) * (one.dim() - 1))
        found = torch.lerp(other.float(), one.float(), share)
        return found if one.is_floating_point() else found.round().to(one.dtype)

    return each(mixed, *(dataset.train.take(own_N) for own_N in pairs_2N))
