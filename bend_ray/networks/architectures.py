"""Base classifiers: ``architecture.build(input_shape, num_classes) -> nn.Module``.

What is built has parameters drawn from torch's global generator; the shape is that of one example,
by name where there are several inputs. A module maps inputs ``(B, ...)``, or several by name, to
logits ``(B, num_classes)``; in evaluation mode it is deterministic in its parameters and buffers.
One's own comes in as ``imported``; to add one here: one class, and its name in the union below.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from bend_ray.data.examples import Shape
from bend_ray.errors import DataError
from bend_ray.imported import Imported
from bend_ray.process.lazy import torch
from bend_ray.spec import Spec


class Mlp(Spec):
    """Fully connected network with ReLU between its layers."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = (32, 32)
    """Units of each hidden layer."""

    def build(self, input_shape: Shape, num_classes: int) -> torch.nn.Module:
        """The network for inputs of any one shape, flattened; DataError where there are several."""
        if isinstance(input_shape, dict):
            raise _unfit("mlp", "one input", input_shape)
        widths = (math.prod(input_shape), *self.hidden, num_classes)
        layers: list[torch.nn.Module] = [torch.nn.Flatten()]
        for index, (width, next_width) in enumerate(pairwise(widths)):
            if index:
                layers.append(torch.nn.ReLU())
            layers.append(torch.nn.Linear(width, next_width))
        return torch.nn.Sequential(*layers)


class ResidualMlp(Spec):
    """Residual blocks of LayerNorm and two dense layers, over periodic embeddings of numbers.

    Source: Gorishniy et al. 2021 (arXiv 2106.11959), section 3.2, with LayerNorm, as members train
    at once; embeddings: the same, 2022 (arXiv 2203.05556), section 3.3.
    """

    kind: Literal["residual_mlp"] = "residual_mlp"
    width: PositiveInt = 64
    """Units between blocks; inside of them there are twice as many."""
    blocks: PositiveInt = 2
    """Residual blocks."""
    frequencies: NonNegativeInt = 4
    """Sines and cosines learnt of each number, beside itself; 0 for none."""
    scale: PositiveFloat = 0.3
    """Standard deviation of the frequencies as they begin."""

    def build(self, input_shape: Shape, num_classes: int) -> torch.nn.Module:
        """The network for inputs of any one shape, flattened; DataError where there are several."""
        if isinstance(input_shape, dict):
            raise _unfit("residual_mlp", "one input", input_shape)
        from bend_ray.networks.residual import residual_mlp

        sizes = (self.width, self.blocks, self.frequencies, self.scale)
        return residual_mlp(math.prod(input_shape), num_classes, *sizes)


class ConvNet(Spec):
    """Blocks of 3x3 convolution, norm, 2x2 max-pooling and ReLU; global average, linear head."""

    kind: Literal["convnet"] = "convnet"
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (16, 32, 64)
    """Channels of each block; every block halves height and width."""
    norm: Literal["batch", "group", "none"] = "batch"
    """BatchNorm; GroupNorm of one group, so that channels keep their symmetry; or neither."""

    def build(self, input_shape: Shape, num_classes: int) -> torch.nn.Module:
        """The network for images of ``input_shape`` (channels, height, width).

        DataError where they are too small to be halved by every block, or are none.
        """
        num_channels, height, width = _image_shape("convnet", input_shape)
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


class TorchvisionModel(Spec):
    """Any classification model of torchvision: ResNet, RegNet, ViT, ConvNeXt, MobileNet, ..."""

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

    def build(self, input_shape: Shape, num_classes: int) -> torch.nn.Module:
        """The network for images of ``input_shape`` (channels, height, width).

        ConfigError where the model has no variant for small images, or no such weights; DataError
        where the images, or the tensors of ``weights``, do not fit it.
        """
        from bend_ray.networks.torchvision_models import build, check_image_shape, load_weights

        image_shape = _image_shape("torchvision", input_shape)
        module = build(self.name, image_shape, num_classes, small_images=self.small_images)
        if self.weights is not None:
            load_weights(module, self.name, self.weights)
        check_image_shape(module, self.name, image_shape)
        return module


class ImportedArchitecture(Imported):
    """One's own network: a function or class that gives a torch.nn.Module.

    Parameters of the function that are called ``num_classes`` and ``input_shape`` are filled in.
    """

    def build(self, input_shape: Shape, num_classes: int) -> Any:
        """What the function returns, drawn from torch's global generator.

        ConfigError where it cannot be imported, or needs other arguments.
        """
        return self.make(input_shape=input_shape, num_classes=num_classes)


def _image_shape(kind: str, shape: Shape) -> tuple[int, int, int]:
    if isinstance(shape, dict) or len(shape) != 3:
        raise _unfit(kind, "images (channels, height, width)", shape)
    channels, height, width = shape
    return channels, height, width


def _unfit(kind: str, expected: str, shape: Shape) -> DataError:
    got = (
        ", ".join(f"{name} {each}" for name, each in shape.items())
        if isinstance(shape, dict)
        else shape
    )
    return DataError(
        f"seeds.architecture: expected {expected} for {kind}, got inputs of shape {got}; use mlp "
        "for one flat input, or a network of your own (kind: imported)"
    )


Architecture = Annotated[
    Mlp | ResidualMlp | ConvNet | TorchvisionModel | ImportedArchitecture,
    Field(discriminator="kind"),
]
