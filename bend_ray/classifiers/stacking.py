"""Many models of one architecture as one program.

Shape letters: K models, P parameters, B images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

Unflatten = Callable[[Tensor], dict[str, Tensor]]


class Stack(nn.Module):
    """K models as one function of their flattened parameters.

    Args:
        module: one model of the architecture; only its structure is used.
        unflatten: ``(K, P)`` to ``{name: (K, *shape)}``, the inverse of the flattening.
    """

    def __init__(self, module: nn.Module, unflatten: Unflatten) -> None:
        super().__init__()
        self._module = module.requires_grad_(False)
        self._unflatten = unflatten

    def forward(self, theta_KP: Tensor, images: Tensor, *, shared: bool = True) -> Tensor:
        """Logits of every model.

        Args:
            theta_KP: one row of parameters a model.
            images: ``(B, ...)`` shown to all models if ``shared``, else ``(K, B, ...)``.
            shared: whether all models see the same images.

        Returns:
            Logits ``(K, B, C)``.
        """

        def one(state: dict[str, Tensor], batch: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._module, state, (batch,))
            return logits

        stacked = vmap(one, in_dims=(0, None if shared else 0), randomness="different")
        logits_KBC: Tensor = stacked(self._unflatten(theta_KP), images)
        return logits_KBC


@torch.no_grad()
def predict_logits(
    stack: Stack, theta_KP: Tensor, images: Tensor, *, max_elements: int = 2**24
) -> Tensor:
    """Logits ``(K, N, C)`` of every model on every image, in pieces of bounded size.

    Args:
        stack: the models' architecture, in evaluation mode.
        theta_KP: one row of parameters a model.
        images: normalised, ``(N, channels, height, width)``.
        max_elements: bound on models x image elements in flight.
    """
    stack.eval()
    models = min(len(theta_KP), max(1, max_elements // max(1, images[0].numel())))
    batch = max(1, max_elements // max(1, models * images[0].numel()))
    rows = [
        torch.cat([stack(theta, part) for part in torch.split(images, batch)], dim=1)
        for theta in torch.split(theta_KP, models)
    ]
    return torch.cat(rows)
