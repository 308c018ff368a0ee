"""BatchNorm's running statistics, recomputed for models that no training gave them to.

A generated, averaged or disturbed model has running statistics that are not those of its own
activations. They are recomputed on training images, for many models at once.

Shape letters: K models, P parameters, Q buffers, N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bend_ray.data.examples import Inputs, count, numbers, rows
from bend_ray.networks.stacking import Stack


@torch.no_grad()
def recalibrate_batchnorm(
    stack: Stack,
    theta_KP: Tensor,
    inputs: Inputs,
    *,
    batch_size: int = 250,
    max_elements: int = 2**24,
) -> Tensor:
    """The models with running statistics of ``inputs``: the mean of those of its batches.

    Everything but the norms is in evaluation mode: no dropout, as when the models are asked. Inputs
    are normalised; batches have ``batch_size`` examples, one more or one less. ``max_elements``
    bounds models x input numbers in flight.

    Source: ``torch.optim.swa_utils.update_bn``; its cumulative average is BatchNorm with
    ``momentum=None``.
    """
    if not stack.norms or not len(theta_KP):
        return theta_KP
    cuts = torch.arange(count(inputs)).tensor_split(-(-count(inputs) // batch_size))
    batches = [rows(inputs, cut) for cut in cuts]
    models = max(1, max_elements // max(1, len(cuts[0]) * numbers(inputs)))
    return torch.cat([_recalibrate(stack, part, batches) for part in torch.split(theta_KP, models)])


def _recalibrate(stack: Stack, theta_KP: Tensor, batches: Sequence[Inputs]) -> Tensor:
    norms = stack.norms
    trained_KT = theta_KP[:, : stack.num_trainable]
    buffers_KQ = theta_KP[:, stack.num_trainable :].clone()
    momenta = [norm.momentum for norm in norms]
    stack.eval()
    try:
        for count, batch in enumerate(batches, 1):
            for norm in norms:
                norm.train()
                # Not None: the module counts its calls, not those of each of its K models.
                norm.momentum = 1 / count
            stack(trained_KT, batch, buffers_KQ=buffers_KQ)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    return torch.cat([trained_KT, buffers_KQ], dim=1)
