"""Work done in this process, one piece after another: what small jobs, notebooks and tests need.

The bits are those of a cluster, as pieces are the same and computed by as many threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from bend_ray.errors import StoreError
from bend_ray.process.computing import lent
from bend_ray.process.log import ProgressLine
from bend_ray.runtime.interface import Rows, Workers
from bend_ray.runtime.loop import Fitted, Team, TrainingTask, columns_of, train
from bend_ray.runtime.reading import load_reported

if TYPE_CHECKING:
    from bend_ray.config.resources import ActorResources, Resources
    from bend_ray.config.schema import PipelineConfig
    from bend_ray.data.datasets import Dataset
    from bend_ray.data.examples import Parts

R = TypeVar("R", bound="Resources")
T = TypeVar("T")
PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class _Here:
    """A data set of this process."""

    dataset: Parts

    def load(self) -> Parts:
        return self.dataset


class _Worker:
    """One worker, made when it has something to do."""

    def __init__(self, worker: type, arguments: tuple[Any, ...]) -> None:
        self._make: Callable[[], Any] = partial(worker, *arguments)
        self._worker: Any = None

    def run(self, method: str, pieces: Sequence[T]) -> Iterator[tuple[T, Any]]:
        if pieces and self._worker is None:
            self._worker = self._make()
        for piece in pieces:
            yield piece, getattr(self._worker, method)(piece)


class LocalRuntime:
    """See ``interface.Runtime``; keeps the data set it has read last."""

    def __init__(self) -> None:
        self._dataset: tuple[Dataset, _Here] | None = None

    def share(self, dataset: Dataset) -> _Here:
        """The data set, read once."""
        if self._dataset is None or self._dataset[0] != dataset:
            self._dataset = dataset, _Here(load_reported(dataset))
        return self._dataset[1]

    @contextmanager
    def workers(
        self, worker: type, *arguments: Any, resources: ActorResources
    ) -> Iterator[Workers]:
        """One, whatever the resources say."""
        with lent():
            yield _Worker(worker, arguments)

    def run(self, work: Callable[..., T], *arguments: Any, resources: Resources) -> T:
        """Called."""
        with lent():
            return work(*arguments)

    def table(self, rows: Rows, resources: Resources) -> pa.Table:
        """One part after another."""
        with lent(resources.cpus):
            return pa.concat_tables([rows.part(number) for number in range(rows.parts)])

    def train(self, job: TrainingTask, rows: Rows) -> Fitted:
        """By a team of one."""
        return train_here(job, self.table(rows, job.resources))

    def preflight(self, config: PipelineConfig, stages: Sequence[str]) -> None:
        """There is what there is."""

    def wait_for(self, config: PipelineConfig, stage: str) -> None:
        """There is room."""

    def holding(self, stage: str, resources: R, num_bytes: float) -> R:
        """There is what there is."""
        return resources

    def errors(self) -> AbstractContextManager[None]:
        """They are what they are."""
        return nullcontext()


def train_here(job: TrainingTask, rows: pa.Table) -> Fitted:
    """A training in this process, with its progress on stderr and, for others, in the artifact."""
    shown = -PROGRESS_SECONDS
    with lent(), ProgressLine(job.stage, job.training.steps, "steps") as line:

        def progress(done: int) -> None:
            nonlocal shown
            line.update(done)
            if time.monotonic() - shown > PROGRESS_SECONDS:
                shown = time.monotonic()
                # A line that cannot be shown is no reason to end the training.
                with suppress(StoreError):
                    job.artifact.report_progress(done, job.training.steps, "steps")

        return train(job, columns_of(rows), Team(progress=progress))
