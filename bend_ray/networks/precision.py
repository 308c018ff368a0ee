"""What products are computed in while models train."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bend_ray.errors import ClusterError
from bend_ray.networks.recipe import Precision


@contextmanager
def float32_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Around a step: whether a card may round what it multiplies to TF32.

    Convolutions it would without being asked. torch's own settings are put back.
    """
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def check_precision(precision: Precision, device: torch.device) -> None:
    """ClusterError where a device has no bf16 and is asked for it.

    A CPU without it emulates it: measured, a step of a small CNN takes nine times as long.
    """
    if precision != "bf16":
        return
    if device.type == "cuda":
        has_it, name = torch.cuda.is_bf16_supported(False), torch.cuda.get_device_name()
    else:
        has_it, name = torch.ops.mkldnn._is_mkldnn_bf16_supported(), "a CPU without AVX-512"
    if not has_it:
        raise ClusterError(
            f"node {socket.gethostname()}: expected a processor that computes in bf16, as "
            f"seeds.recipe.precision asks, got {name}; set it to tf32 or float32"
        )
