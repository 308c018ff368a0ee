"""The base classifiers of a config on one device: their data, their layout, and all at once."""

from __future__ import annotations

import torch
from torch import Tensor

from bend_ray.classifiers.datasets import Images
from bend_ray.classifiers.stacking import Stack, predict_logits
from bend_ray.config import PipelineConfig
from bend_ray.ensemble.metrics import member_accuracy, member_nll
from bend_ray.parameters.layout import ParameterLayout


class Classifiers:
    """What every stage needs to turn vectors into answers.

    Args:
        config: of the pipeline.
        device: where models run.
    """

    def __init__(self, config: PipelineConfig, device: str) -> None:
        self.architecture = config.seeds.architecture
        self.dataset = config.dataset.load()
        self.device = device
        self.layout = ParameterLayout.of(self.build())
        self.stack = Stack(self.build().to(device), self.layout.unflatten)

    def build(self) -> torch.nn.Module:
        """A fresh module; its parameters come from torch's global generator."""
        return self.architecture.build(self.dataset.image_shape, len(self.dataset.class_names))

    def logits(self, theta_KP: Tensor, images: Images) -> Tensor:
        """Logits ``(K, N, C)`` on the CPU."""
        inputs = self.dataset.normalise(images.pixels_NCHW.to(self.device))
        return predict_logits(self.stack, theta_KP.to(self.device), inputs).cpu()

    def validate(self, theta_KP: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy and NLL ``(K,)`` of each model on the validation part."""
        logits_KNC = self.logits(theta_KP, self.dataset.validation)
        labels_N = self.dataset.validation.labels_N
        return member_accuracy(logits_KNC, labels_N), member_nll(logits_KNC, labels_N)
