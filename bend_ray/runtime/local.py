"""Work done in this process, one piece after another: what small jobs, notebooks and tests need.

The bits are those of a cluster, as pieces are the same and computed by as many threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from bend_ray.artifacts.cost import Stopwatch
from bend_ray.process.computing import gpu_problem, lent
from bend_ray.process.log import ProgressLine, duration
from bend_ray.runtime.gpus import equipped, network_size
from bend_ray.runtime.interface import Rows, Workers
from bend_ray.runtime.loop import Fitted, Team, TrainingTask, columns_of, tell_in, train

if TYPE_CHECKING:
    from bend_ray.artifacts.manifest import Manifest
    from bend_ray.config.resources import ActorResources, Resources
    from bend_ray.config.schema import PipelineConfig
    from bend_ray.data.datasets import Dataset
    from bend_ray.data.examples import Parts
    from bend_ray.data.streaming import Room

R = TypeVar("R", bound="Resources")
T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Here:
    """What this process has."""

    value: Any

    def load(self) -> Any:
        return self.value


@dataclass(frozen=True)
class _Worker:
    """One worker, made when it has something to do."""

    made: Callable[[], Any]

    def run(self, method: str, pieces: Sequence[T]) -> Iterator[tuple[T, Any]]:
        for piece in pieces:
            yield piece, getattr(self.made(), method)(piece)


class LocalRuntime:
    """See ``interface.Runtime``; keeps the data set it has read last."""

    def __init__(self) -> None:
        self._dataset: tuple[Dataset, _Here] | None = None

    def share(self, dataset: Dataset) -> _Here:
        """The data set, read once."""
        if self._dataset is None or self._dataset[0] != dataset:
            self._dataset = dataset, _Here(load_reported(dataset))
        return self._dataset[1]

    def hold(self, value: Any) -> _Here:
        """As it is."""
        return _Here(value)

    @contextmanager
    def workers(
        self, worker: type, *arguments: Any, resources: ActorResources
    ) -> Iterator[Workers]:
        """One, whatever the resources say."""
        with lent():
            yield _Worker(cache(partial(worker, *arguments)))

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

    def preflight(self, config: PipelineConfig, stages: Sequence[str]) -> PipelineConfig:
        """There is what there is; a GPU, if torch finds one, is this process's."""
        import torch

        there = [{"CPU": 1.0, "GPU": 1.0}] if torch.cuda.is_available() else []
        return equipped(
            config, there, lambda: gpu_problem() or "", partial(network_size, self, config)
        )

    def wait_for(self, config: PipelineConfig, stage: str) -> None:
        """There is room."""

    def holding(self, stage: str, resources: R, num_bytes: float) -> R:
        """There is what there is."""
        return resources

    def made(self, stage: str, manifest: Manifest) -> None:
        """Nobody watches."""

    def errors(self) -> AbstractContextManager[None]:
        """They are what they are."""
        return nullcontext()


def load_reported(dataset: Dataset, room: Room | None = None) -> Parts:
    """Its training and validation part, told about in one line; see ``Dataset.load``."""
    with Stopwatch() as watch:
        loaded = dataset.load(room)
        # Known once, not by every worker; of streamed images it takes reading a window of them.
        _ = loaded.statistics
    logger.info(
        "%-12s %d training and %d validation images of %s, %d classes, read in %s",
        *("dataset", len(loaded.train), len(loaded.validation)),
        "x".join(map(str, loaded.input_shape)),
        len(loaded.class_names),
        duration(watch.cost.wall_seconds),
    )
    return loaded


def train_here(job: TrainingTask, rows: pa.Table) -> Fitted:
    """A training in this process, with its progress on stderr and, for others, in the artifact."""
    with lent(), ProgressLine(job.stage, job.training.steps, "steps") as line:
        tell = tell_in(job)

        def progress(done: int) -> None:
            line.update(done)
            tell(done)

        return train(job, columns_of(rows), Team(progress=progress))
