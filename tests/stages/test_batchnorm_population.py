"""BatchNorm in the stages: what is drawn gets statistics of training images, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import MakeConfig, make

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.examples import Examples, Parts
from bend_ray.populations.networks import Classifiers

CONVNET = "seeds.architecture={kind: convnet, channels: [8, 16]}"


class Sealed:
    """A data set of which nothing but the training part can be had."""

    def __init__(self, dataset: Parts) -> None:
        self.train = dataset.train
        self.normalise = dataset.normalise

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"recalibration looked at the data set's {name}")


def classifiers_of(config: PipelineConfig) -> Classifiers:
    return Classifiers(config, config.dataset.load(), "cpu")


def random_models(classifiers: Classifiers) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 + torch.rand(3, classifiers.layout.size, generator=generator)


def test_only_training_images_are_looked_at(tiny: MakeConfig) -> None:
    classifiers = classifiers_of(tiny(CONVNET))
    theta_KP = random_models(classifiers)
    expected = classifiers.recalibrate(theta_KP)
    classifiers.dataset = Sealed(classifiers.dataset)  # type: ignore[assignment]
    assert torch.equal(classifiers.recalibrate(theta_KP), expected)
    assert not torch.equal(expected, theta_KP)


def test_statistics_follow_the_training_images(tiny: MakeConfig) -> None:
    classifiers = classifiers_of(tiny(CONVNET))
    dataset, theta_KP = classifiers.dataset, random_models(classifiers)
    before = classifiers.recalibrate(theta_KP)
    black = Examples(torch.zeros_like(dataset.train.inputs), dataset.train.labels_N)
    classifiers.dataset = Parts(black, dataset.validation, dataset.class_names, dataset.load_test)
    assert not torch.allclose(classifiers.recalibrate(theta_KP), before)


def test_a_model_gets_the_same_statistics_in_any_company(tiny: MakeConfig) -> None:
    classifiers = classifiers_of(tiny(CONVNET, "samples.recalibration_images=100"))
    theta_KP = random_models(classifiers)
    together = classifiers.recalibrate(theta_KP)
    assert torch.equal(classifiers.recalibrate(theta_KP[1:2]), together[1:2])
    whole = classifiers_of(tiny(CONVNET)).recalibrate(theta_KP)
    assert not torch.equal(whole, together)


@pytest.mark.parametrize(
    "overrides",
    [(), (CONVNET, "samples.recalibration_images=0"), (f"{CONVNET[:-1]}, norm: group}}",)],
    ids=["mlp", "switched off", "group norm"],
)
def test_without_batchnorm_or_switched_off_nothing_changes(
    tiny: MakeConfig, overrides: tuple[str, ...]
) -> None:
    classifiers = classifiers_of(tiny(*overrides))
    theta_KP = random_models(classifiers)
    assert classifiers.recalibrate(theta_KP) is theta_KP


@pytest.mark.trains
def test_a_batchnorm_population_goes_through_the_pipeline(
    tiny: MakeConfig, shared_store: Store
) -> None:
    rivals = "evaluation.rivals=[{kind: originals_bag}, {kind: weight_average}]"
    config = tiny(CONVNET, rivals, "seeds.recipe.optimizer.learning_rate=0.02")
    graph = make(config, shared_store)
    trained, drawn = read_population(graph.seeds), read_population(graph.samples)
    assert (trained.val_accuracy > 0.7).all()
    classifiers = classifiers_of(config)
    stored = torch.from_numpy(drawn.theta_KP.copy())
    torch.testing.assert_close(classifiers.recalibrate(stored), stored, rtol=1e-4, atol=1e-4)
    statistics = slice(classifiers.layout.num_trainable, None)
    assert np.isfinite(drawn.theta_KP[:, statistics]).all()
    assert graph.evaluation.manifest().metrics["rivals"]["weight_average"]["accuracy"] > 0.3
