"""The members in torch, of which ONNX programs are made, and which answer where there are none.

Shape letters: K members, N examples, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bend_ray.data.columns import encode
from bend_ray.data.examples import Inputs
from bend_ray.export.card import Card, noise
from bend_ray.networks.stacking import Stack, form_for, predict_logits
from bend_ray.parameters.layout import ParameterLayout


def network_of(card: Card) -> nn.Module:
    """One member, untrained; for a network of a user's own this runs his code.

    Raises:
        ConfigError: the code cannot be imported.
    """
    module: nn.Module = card.architecture.build(card.input_shape, card.num_outputs)
    return module.eval()


def normalised(card: Card, inputs: Mapping[str, NDArray[Any]]) -> Inputs:
    """What the network is given of raw inputs by name."""
    if columns := card.columns:
        return torch.from_numpy(encode(columns, inputs))
    found = {}
    for name, own in card.inputs.items():
        values = torch.from_numpy(inputs[name])
        if own.mean is not None and own.std is not None:
            shape = (-1,) + (1,) * (len(own.shape) - 1) if own.shape else ()
            mean, std = (torch.tensor(each).reshape(shape) for each in (own.mean, own.std))
            values = (values.float() - mean) / std
        found[name] = values.float() if own.dtype == "uint8" else values
    return found if len(found) > 1 else next(iter(found.values()))


class Members:
    """Of a bag, as one function; ``state_K`` are their tensors, stacked."""

    def __init__(self, card: Card, state_K: Mapping[str, Any]) -> None:
        self.card = card
        module = network_of(card)
        layout = ParameterLayout.of(module)
        form = form_for(module, "cpu", normalised(card, noise(card, 1)))
        self._stack = Stack(module, layout, form)
        tensors = {name: torch.as_tensor(tensor) for name, tensor in state_K.items()}
        self._theta_KP = layout.flatten(tensors)

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, NDArray[Any]]) -> Tensor:
        """What each member makes of raw inputs, ``(K, N, O)``."""
        return self.told(normalised(self.card, inputs))

    @torch.no_grad()
    def told(self, inputs: Inputs) -> Tensor:
        """The same of what the network is given."""
        return predict_logits(self._stack, self._theta_KP, inputs)
