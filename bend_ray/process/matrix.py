"""Matrices too large for memory: read a block at a time, or mapped from a file for a while."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from bend_ray.process.lazy import Tensor, torch

BLOCK_BYTES = 64 * 2**20
HELD_BYTES = 128 * 2**20
"""Of a scratch matrix in memory, or of what was read of a stored one."""
STORED_COLUMNS = 2**16
"""Columns of a row that lie together in a store, and are read together."""


class Matrix(Protocol):
    """Rows of numbers."""

    @property
    def shape(self) -> Any:
        """Rows and columns."""

    def __len__(self) -> int:
        """Rows."""

    def __getitem__(self, index: tuple[Any, Any], /) -> Tensor:
        """Some rows (a slice or their numbers) of a slice of the columns."""


def per_block(num_bytes: int) -> int:
    """How many of so many bytes are a block; at least one."""
    return max(1, BLOCK_BYTES // max(1, num_bytes))


def column_slices(num_columns: int, num_rows: int, itemsize: int = 4) -> Iterator[slice]:
    """Slices of columns, of which so many rows are a block at most.

    Their widths are powers of two, as ``STORED_COLUMNS`` is: none lies astride of what is stored.
    """
    width = 1 << (per_block(itemsize * num_rows).bit_length() - 1)
    for start in range(0, num_columns, width):
        yield slice(start, min(start + width, num_columns))


def scratch(*shape: int) -> Tensor:
    """A float64 tensor to be filled, of zeros; one above ``HELD_BYTES`` is mapped from a file."""
    if 8 * math.prod(shape) <= HELD_BYTES:
        return torch.zeros(shape, dtype=torch.float64)
    with tempfile.TemporaryFile(prefix="bend-scratch-") as file:
        mapped: Tensor = torch.from_numpy(np.memmap(file, np.float64, "w+", shape=shape))
        return mapped
