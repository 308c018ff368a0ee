"""What a stage asks of whoever runs its work: in this process, or on a cluster.

Work comes in pieces that are pure functions of what they are given, so that the same bits come out
wherever they are done, in whatever order, and however often one is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bend_ray.artifacts.manifest import Manifest
    from bend_ray.config.resources import ActorResources, Resources
    from bend_ray.config.schema import PipelineConfig
    from bend_ray.data.datasets import Dataset
    from bend_ray.runtime.loop import Fitted, TrainingTask

R = TypeVar("R", bound="Resources")
T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """A table that is made in so many parts; of each, by its number, the rows."""

    parts: int
    part: Callable[[int], pa.Table]

    def map(self, work: Callable[[pa.Table], pa.Table]) -> Rows:
        """The rows that ``work`` makes of each part's."""
        return Rows(self.parts, lambda number: work(self.part(number)))


def split(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Consecutive pieces of ``size``; the last may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def vectors(rows_KF: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """A column of vectors of one length."""
    flat = np.ascontiguousarray(rows_KF).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), rows_KF.shape[1])


def from_vectors(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """``(K, F)``, the inverse of ``vectors``."""
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    width = column.type.list_size
    values: NDArray[np.float32] = np.concatenate(chunks or [np.empty(0, np.float32)])
    return values.reshape(-1, width)


class Shared(Protocol):
    """What was read once, as a data set."""

    def load(self) -> Any:
        """It, without reading it again."""


class Workers(Protocol):
    """Processes that share out pieces of work."""

    def run(self, method: str, pieces: Sequence[T]) -> Iterator[tuple[T, Any]]:
        """Call a method of a worker with each piece; yields the piece and what came, as they end.

        They are begun in their order. Calling it twice with a piece must do no harm.
        """


class Runtime(Protocol):
    """Where the work of stages is done.

    What no machine ever gives is a ClusterError, with what was asked and what there is.
    """

    def share(self, dataset: Dataset) -> Shared:
        """A data set, read by this process, for all that work.

        Raises:
            DataError: as ``dataset.load``.
        """

    def hold(self, value: Any) -> Shared:
        """What this process has, for all that work."""

    def workers(
        self, worker: type, *arguments: Any, resources: ActorResources
    ) -> AbstractContextManager[Workers]:
        """As many ``worker(*arguments)`` as the resources allow and their pieces need."""

    def run(self, work: Callable[..., T], *arguments: Any, resources: Resources) -> T:
        """What ``work(*arguments)`` returns, done by one process."""

    def table(self, rows: Rows, resources: Resources) -> pa.Table:
        """All rows, in the order of their parts."""

    def train(self, job: TrainingTask, rows: Rows) -> Fitted:
        """Train on all rows, ``features``, ``trunk`` and ``model_id``, and store the weights.

        Raises:
            TrainingError: the training diverged or kept failing.
        """

    def preflight(self, config: PipelineConfig, stages: Sequence[str]) -> PipelineConfig:
        """Refuse before any work what stages ask for and never get.

        Gives the config, with the GPUs of stages that left them to us.
        """

    def wait_for(self, config: PipelineConfig, stage: str) -> None:
        """Wait until there is room for a stage."""

    def holding(self, stage: str, resources: R, num_bytes: float) -> R:
        """Resources of a process that will hold at least so many bytes of models."""

    def made(self, stage: str, manifest: Manifest) -> None:
        """Tell whoever watches the run of a stage that was committed."""

    def errors(self) -> AbstractContextManager[None]:
        """Around work: errors of workers come out as they were raised."""
