"""The base classifiers of a config on one device: their data, their layout, and all at once."""

from __future__ import annotations

import logging
from functools import lru_cache

import ray
import torch
from torch import Tensor

from bend_ray.artifacts.cost import Stopwatch
from bend_ray.classifiers.batchnorm import recalibrate_batchnorm
from bend_ray.classifiers.datasets import Dataset
from bend_ray.classifiers.images import ImageDataset, Images
from bend_ray.classifiers.stacking import Stack, form_for, predict_logits
from bend_ray.config import PipelineConfig
from bend_ray.ensemble.metrics import member_accuracy, member_nll
from bend_ray.log import duration
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.randomness import generator_for

logger = logging.getLogger(__name__)


def share_dataset(dataset: Dataset) -> ray.ObjectRef:
    """An ``ImageDataset`` in the object store, read and decoded by this process, once.

    Every process of a node looks at the same pixels; what is read is the training and the
    validation part.

    Raises:
        DataError: as ``load``.
    """
    return _put(dataset, ray.get_runtime_context().get_job_id())


@lru_cache(maxsize=1)
def _put(dataset: Dataset, job: str) -> ray.ObjectRef:
    # References of another job, as when a cluster was left and another joined, mean nothing here.
    with Stopwatch() as watch:
        loaded = dataset.load()
    logger.info(
        "%-12s %d training and %d validation images of %s, %d classes, read in %s",
        "dataset",
        len(loaded.train),
        len(loaded.validation),
        "x".join(map(str, loaded.image_shape)),
        len(loaded.class_names),
        duration(watch.cost.wall_seconds),
    )
    return ray.put(loaded)


class Classifiers:
    """What every stage needs to turn vectors into answers.

    Args:
        config: of the pipeline.
        dataset: of the config, loaded.
        device: where models run.
    """

    def __init__(self, config: PipelineConfig, dataset: ImageDataset, device: str) -> None:
        self.config = config
        self.architecture = config.seeds.architecture
        self.dataset = dataset
        self.device = device
        module = self.build()
        self.layout = ParameterLayout.of(module)
        form = form_for(module, device, self.architecture.stacks_on_cpu)
        self.stack = Stack(module.to(device), self.layout, form)

    def build(self) -> torch.nn.Module:
        """A fresh module; its parameters come from torch's global generator."""
        return self.architecture.build(self.dataset.image_shape, len(self.dataset.class_names))

    def logits(self, theta_KP: Tensor, images: Images) -> Tensor:
        """Logits ``(K, N, C)`` on the CPU."""
        inputs = self.dataset.normalise(images.pixels_NCHW.to(self.device))
        return predict_logits(self.stack, theta_KP.to(self.device), inputs).cpu()

    def recalibrate(self, theta_KP: Tensor) -> Tensor:
        """Models that were not trained, with BatchNorm's statistics of their own.

        The statistics are those of ``samples.recalibration_images`` training images, the same
        ones for every model; no validation or test image is looked at.
        """
        train, count = self.dataset.train, self.config.samples.recalibration_images
        if count == 0 or self.layout.num_trainable == self.layout.size:
            return theta_KP
        generator = generator_for(self.config.seed, "recalibration")
        chosen = torch.randperm(len(train), generator=generator)[:count]
        inputs = self.dataset.normalise(train.pixels_NCHW[chosen].to(self.device))
        return recalibrate_batchnorm(self.stack, theta_KP.to(self.device), inputs).cpu()

    def validate(self, theta_KP: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy and NLL ``(K,)`` of each model on the validation part."""
        logits_KNC = self.logits(theta_KP, self.dataset.validation)
        labels_N = self.dataset.validation.labels_N
        return member_accuracy(logits_KNC, labels_N), member_nll(logits_KNC, labels_N)
