"""Chains of convolutions as a CPU trains them fastest.

Pooling first leaves a ReLU a quarter of the pixels, which it then changes in place.
"""

from __future__ import annotations

from torch import nn

from bend_ray.networks.dense import steps

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
    for name, layer in _in_place(_pooled_first(layers)):
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
