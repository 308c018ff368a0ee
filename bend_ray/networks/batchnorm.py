"""BatchNorm's running statistics, recomputed for models that no training gave them to.

A generated, averaged or disturbed model has running statistics that are not those of its own
activations. They are recomputed on training images, for many models at once.

Shape letters: K models, P parameters, Q buffers, N images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bend_ray.errors import DataError
from bend_ray.networks.stacking import Stack


@torch.no_grad()
def check_batches(module: nn.Module, image_shape: tuple[int, int, int], smallest: int) -> None:
    """Show a network the smallest batch that it will be trained on.

    Args:
        module: is left as it is.
        image_shape: channels, height and width.
        smallest: images of it.

    Raises:
        DataError: its norms have but one value a channel there, and nothing to divide by.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    training = module.training
    device = next(module.parameters()).device
    try:
        with torch.random.fork_rng(devices=[]):
            module.train()(torch.zeros(smallest, *image_shape, device=device))
    except ValueError as error:
        raise DataError(
            f"expected batches that the network's norms can be trained on, got one of {smallest} "
            f"at {image_shape[1]}x{image_shape[2]} pixels ({str(error).splitlines()[0]}); raise "
            "seeds.recipe.batch_size or samples.recalibration_images, take more or larger images, "
            "or a network without BatchNorm"
        ) from None
    finally:
        module.train(training)
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])


@torch.no_grad()
def recalibrate_batchnorm(
    stack: Stack,
    theta_KP: Tensor,
    inputs_N: Tensor,
    *,
    batch_size: int = 250,
    max_elements: int = 2**24,
) -> Tensor:
    """The models with running statistics of ``inputs_N``: the mean of those of its batches.

    Everything but the norms is in evaluation mode: no dropout, as when the models are asked.

    Args:
        stack: the models' architecture.
        theta_KP: one row of parameters and buffers a model.
        inputs_N: normalised training images ``(N, channels, height, width)``.
        batch_size: images from which one batch's statistics come; the batches differ by one
            image at most.
        max_elements: bound on models x image elements in flight.

    Returns:
        theta_KP, of which only the running means and variances are new.

    Source: ``torch.optim.swa_utils.update_bn``; its cumulative average is BatchNorm with
    ``momentum=None``.
    """
    if not stack.norms or not len(theta_KP):
        return theta_KP
    batches = torch.tensor_split(inputs_N, -(-len(inputs_N) // batch_size))
    models = max(1, max_elements // max(1, batches[0].numel()))
    rows = [_recalibrate(stack, part, batches) for part in torch.split(theta_KP, models)]
    return torch.cat(rows)


def _recalibrate(stack: Stack, theta_KP: Tensor, batches: Sequence[Tensor]) -> Tensor:
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
