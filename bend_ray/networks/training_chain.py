"""Chains of convolutions as a CPU trains them fastest.

Both ways of writing a chain compute the same: pooling first leaves a ReLU a quarter of the pixels,
and channels that are zero everywhere fill up what a processor computes at once.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from bend_ray.networks.dense import steps

LANES = 8
"""Numbers that a CPU computes at once."""
MOST_PADDING = 2
"""Channels worth adding: filling 6 or 7 up to 8 is 1.1 times as fast, 5 or 10 slower (measured)."""

_LEAVE_ZEROS = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d)
_KEEP_INPUTS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d)
"""Layers whose gradients follow from their inputs, not from what they gave."""

Chain = list[tuple[str, nn.Module]]


def for_training(module: nn.Module) -> nn.Module:
    """The same function of the same state by name, for training; itself if it is no chain.

    Args:
        module: whose plain ``Sequential``s, also nested ones, are rewritten.
    """
    if type(module) is not nn.Sequential:
        return module
    layers = [(name, for_training(child)) for name, child in steps(module)]
    chain = nn.Sequential()
    for name, layer in _padded(_in_place(_pooled_first(layers))):
        chain.add_module(name, layer)
    return chain


def _pooled_first(layers: Chain) -> Chain:
    """Maxima before ReLUs: to the bit the same, gradients included, as ReLU keeps the order."""
    layers = list(layers)
    for at in range(len(layers) - 1):
        (_, before), (_, after) = layers[at : at + 2]
        if type(before) is nn.ReLU and type(after) is nn.MaxPool2d and not after.return_indices:
            layers[at], layers[at + 1] = layers[at + 1], layers[at]
    return layers


def _in_place(layers: Chain) -> Chain:
    """ReLUs in the memory of what they are given, where the layer before needs it no longer."""
    before: nn.Module | None = None
    changed = []
    for name, layer in layers:
        spent = type(layer) is nn.ReLU and type(before) in _KEEP_INPUTS
        changed.append((name, nn.ReLU(inplace=True) if spent else layer))
        before = layer
    return changed


def _padded(layers: Chain) -> Chain:
    """Convolutions with channels of zeros between them, where that is worth it."""
    convs = {at: layer for at, (_, layer) in enumerate(layers) if type(layer) is nn.Conv2d}
    added = dict.fromkeys(convs, (0, 0))
    for first, second in pairwise(convs):
        more = -convs[first].out_channels % LANES
        between = [layer for _, layer in layers[first + 1 : second]]
        if (
            more <= MOST_PADDING
            and _is_plain(convs[first])
            and _is_plain(convs[second])
            and all(type(layer) in _LEAVE_ZEROS for layer in between)
        ):
            added[first] = (added[first][0], more)
            added[second] = (more, 0)
    return [
        (name, _PaddedConv2d(convs[at], *added[at]) if any(added.get(at, ())) else layer)
        for at, (name, layer) in enumerate(layers)
    ]


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.padding_mode == "zeros"


class _PaddedConv2d(nn.Module):
    """A convolution of more channels, to and from which nothing goes.

    Args:
        conv: whose tensors it has, under their names.
        inputs: channels that its images have beyond its own.
        outputs: channels of zeros that it gives beyond its own.
    """

    def __init__(self, conv: nn.Conv2d, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.inputs, self.outputs = inputs, outputs

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C + inputs, H, W)`` to as many more channels of zeros as ``outputs``."""
        weight = nn.functional.pad(self.weight, (0, 0, 0, 0, 0, self.inputs, 0, self.outputs))
        bias = None if self.bias is None else nn.functional.pad(self.bias, (0, self.outputs))
        return nn.functional.conv2d(images, weight, bias, self.stride, self.padding, self.dilation)
