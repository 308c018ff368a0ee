"""The base classifiers of a config on one device: their data, their layout, and all at once."""

from __future__ import annotations

import torch
from torch import Tensor

from bend_ray.classifiers.batchnorm import recalibrate_batchnorm
from bend_ray.classifiers.datasets import Images
from bend_ray.classifiers.stacking import Stack, form_for, predict_logits
from bend_ray.config import PipelineConfig
from bend_ray.ensemble.metrics import member_accuracy, member_nll
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.randomness import generator_for


class Classifiers:
    """What every stage needs to turn vectors into answers.

    Args:
        config: of the pipeline.
        device: where models run.
    """

    def __init__(self, config: PipelineConfig, device: str) -> None:
        self.config = config
        self.architecture = config.seeds.architecture
        self.dataset = config.dataset.load()
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
