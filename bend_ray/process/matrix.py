"""A matrix that is read a block at a time: a tensor, or vectors in a store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_BYTES = 64 * 2**20


class Matrix(Protocol):
    """Rows of numbers."""

    @property
    def shape(self) -> Any:
        """Rows and columns."""

    def __len__(self) -> int:
        """Rows."""

    def __getitem__(self, index: tuple[Any, Any], /) -> Tensor:
        """Some rows (a slice or their numbers) of a slice of the columns."""


def column_slices(num_columns: int, num_rows: int, itemsize: int = 4) -> Iterator[slice]:
    """Slices of columns, of which so many rows are a block."""
    width = max(1, BLOCK_BYTES // (itemsize * max(1, num_rows)))
    for start in range(0, num_columns, width):
        yield slice(start, min(start + width, num_columns))
