"""Base classifiers: ``architecture.build(image_shape, num_classes) -> nn.Module``.

A module maps images ``(B, C, H, W)`` to logits ``(B, num_classes)`` and is, in evaluation mode,
deterministic in its parameters and buffers. To add an architecture: one class, and its name in
the union below.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from bend_ray.errors import DataError
from bend_ray.process.lazy import torch
from bend_ray.spec import Spec

ImageShape = tuple[int, int, int]
PermutationGroup = tuple[tuple[str, int], ...]
"""(parameter name, axis) pairs on which one permutation of hidden units acts."""


class Mlp(Spec):
    """Fully connected network with ReLU between its layers."""

    stacks_on_cpu: ClassVar[bool] = True
    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (32, 32)
    """Units of each hidden layer."""

    def build(self, image_shape: ImageShape, num_classes: int) -> torch.nn.Module:
        """The network for images of ``image_shape`` (channels, height, width)."""
        widths = (math.prod(image_shape), *self.hidden, num_classes)
        layers: list[torch.nn.Module] = [torch.nn.Flatten()]
        for index, (width, next_width) in enumerate(pairwise(widths)):
            if index:
                layers.append(torch.nn.ReLU())
            layers.append(torch.nn.Linear(width, next_width))
        return torch.nn.Sequential(*layers)

    def permutation_groups(self) -> tuple[PermutationGroup, ...]:
        """The hidden units of each layer can be reordered without changing the function."""
        # Layers of the Sequential: 0 flatten, then linear at 1, 3, 5, ...
        return tuple(
            (
                (f"{1 + 2 * layer}.weight", 0),
                (f"{1 + 2 * layer}.bias", 0),
                (f"{3 + 2 * layer}.weight", 1),
            )
            for layer in range(len(self.hidden))
        )


class ConvNet(Spec):
    """Blocks of 3x3 convolution, norm, 2x2 max-pooling and ReLU; global average, linear head."""

    # Measured: under vmap a CPU convolves many small models slower than one after another.
    stacks_on_cpu: ClassVar[bool] = False
    kind: Literal["convnet"] = "convnet"
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (16, 32, 64)
    """Channels of each block; every block halves height and width."""
    norm: Literal["batch", "group", "none"] = "batch"
    """BatchNorm; GroupNorm of one group, so that channels keep their symmetry; or neither."""

    def build(self, image_shape: ImageShape, num_classes: int) -> torch.nn.Module:
        """The network for images of ``image_shape`` (channels, height, width).

        Raises:
            DataError: The images are too small to be halved by every block.
        """
        num_channels, height, width = image_shape
        least = 2 ** len(self.channels)
        if min(height, width) < least:
            raise DataError(
                f"expected images of at least {least}x{least} pixels for the {len(self.channels)} "
                f"blocks of convnet, got {height}x{width}; use fewer seeds.architecture.channels"
            )
        layers: OrderedDict[str, torch.nn.Module] = OrderedDict()
        for index, (before, after) in enumerate(pairwise((num_channels, *self.channels))):
            layers[f"block{index}"] = torch.nn.Sequential(self._block(before, after))
        layers["pool"] = torch.nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = torch.nn.Flatten()
        layers["head"] = torch.nn.Linear(self.channels[-1], num_classes)
        return torch.nn.Sequential(layers)

    def _block(self, before: int, after: int) -> OrderedDict[str, torch.nn.Module]:
        bare = self.norm == "none"
        block: OrderedDict[str, torch.nn.Module] = OrderedDict()
        block["conv"] = torch.nn.Conv2d(before, after, 3, padding=1, bias=bare)
        if self.norm == "batch":
            block["norm"] = torch.nn.BatchNorm2d(after)
        elif self.norm == "group":
            block["norm"] = torch.nn.GroupNorm(1, after)
        # The same to the bit as ReLU before pooling, gradients too, of a quarter of the numbers.
        block["pool"] = torch.nn.MaxPool2d(2)
        block["relu"] = torch.nn.ReLU()
        return block

    def permutation_groups(self) -> tuple[PermutationGroup, ...]:
        """The channels of each block can be reordered, with their norm and its statistics."""
        by_channel = {
            "batch": ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"),
            "group": ("norm.weight", "norm.bias"),
            "none": ("conv.bias",),
        }[self.norm]
        readers = [f"block{i}.conv.weight" for i in range(1, len(self.channels))] + ["head.weight"]
        return tuple(
            (
                (f"block{index}.conv.weight", 0),
                *((f"block{index}.{name}", 0) for name in by_channel),
                (reader, 1),
            )
            for index, reader in enumerate(readers)
        )


class TorchvisionModel(Spec):
    """Any classification model of torchvision: ResNet, RegNet, ViT, ConvNeXt, MobileNet, ...

    Its permutations are not known: ``align`` leaves its populations as they are, and says so.
    """

    stacks_on_cpu: ClassVar[bool] = False
    kind: Literal["torchvision"] = "torchvision"
    name: str = "resnet18"
    """As ``torchvision.models.list_models`` has it; auxiliary heads are left out."""
    small_images: bool = False
    """For images of CIFAR's size: a 3x3 first convolution of stride 1, and no first max-pool."""
    weights: str | None = None
    """What to start from: torchvision's name for it (downloaded), or the path of a state dict."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        from bend_ray.networks.torchvision_models import check_name

        check_name(name)
        return name

    def build(self, image_shape: ImageShape, num_classes: int) -> torch.nn.Module:
        """The network for images of ``image_shape`` (channels, height, width).

        Raises:
            ConfigError: The model has no variant for small images, or no such weights.
            DataError: The images, or the tensors of ``weights``, do not fit the model.
        """
        from bend_ray.networks.torchvision_models import build, check_image_shape, load_weights

        module = build(self.name, image_shape, num_classes, small_images=self.small_images)
        if self.weights is not None:
            load_weights(module, self.name, self.weights)
        check_image_shape(module, self.name, image_shape)
        return module

    def permutation_groups(self) -> tuple[PermutationGroup, ...]:
        """None that are known."""
        return ()


Architecture = Annotated[Mlp | ConvNet | TorchvisionModel, Field(discriminator="kind")]
