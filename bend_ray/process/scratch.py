"""Memory for a while: what is too large for it is in a file without a name."""

from __future__ import annotations

import math
import tempfile
from typing import TYPE_CHECKING

import numpy as np

from bend_ray.process.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

HELD_BYTES = 128 * 2**20


def scratch(*shape: int) -> Tensor:
    """A float64 tensor to be filled, of zeros; one above ``HELD_BYTES`` is mapped from a file."""
    if 8 * math.prod(shape) <= HELD_BYTES:
        return torch.zeros(shape, dtype=torch.float64)
    with tempfile.TemporaryFile(prefix="bend-scratch-") as file:
        mapped: Tensor = torch.from_numpy(np.memmap(file, np.float64, "w+", shape=shape))
        return mapped
