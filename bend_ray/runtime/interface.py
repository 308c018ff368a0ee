"""What a stage asks of whoever runs its work, and the same done in this process.

Work comes in pieces that are pure functions of what they are given, so that the same bits come out
wherever they are done, in whatever order, and however often one is done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bend_ray.artifacts.cost import Stopwatch
from bend_ray.config.graph import STAGES
from bend_ray.config.resources import ActorResources, Resources
from bend_ray.process.computing import gpu_problem, lent
from bend_ray.process.log import ProgressLine, duration

if TYPE_CHECKING:
    from bend_ray.artifacts.manifest import Manifest
    from bend_ray.config.schema import PipelineConfig
    from bend_ray.data.datasets import Dataset
    from bend_ray.data.examples import Parts
    from bend_ray.data.streaming import Room
    from bend_ray.runtime.loop import Fitted, TrainingTask

R = TypeVar("R", bound=Resources)
T = TypeVar("T")

Amounts = Mapping[str, float]
"""Of a node, by Ray's names."""

logger = logging.getLogger(__name__)

OF_CLASSIFIERS = ("seeds", "samples", "evaluation")
SMALL_NETWORK = 2_000_000
"""Parameters below which a process leaves a GPU idle most of the time."""
MOST_ON_A_GPU = 4


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


def vectors(rows_KF: NDArray[Any]) -> pa.FixedSizeListArray:
    """A column of vectors of one length, over the same memory where that is in one piece."""
    flat = np.ascontiguousarray(rows_KF).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), rows_KF.shape[1])


def from_vectors(column: pa.ChunkedArray) -> NDArray[Any]:
    """``(K, F)``, the inverse of ``vectors``; of one chunk a view, which may be read-only."""
    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    flat: NDArray[Any] = whole.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, column.type.list_size)


@dataclass(frozen=True)
class Shared:
    """What was read once, as a data set."""

    value: Any

    def load(self) -> Any:
        """It, without reading it again."""
        return self.value


class Workers:
    """Processes that share out pieces of work; here one, made when it has something to do."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._worker = cache(make)

    def run(
        self, method: str, pieces: Sequence[T], how_far: Callable[[T], Any] = lambda _: None
    ) -> Iterator[tuple[T, Any]]:
        """Call a method of a worker with each piece; yields the piece and what came, as they end.

        They are begun in their order. Calling it twice with a piece must do no harm. Of a piece
        that a dead worker leaves further than one before, by ``how_far``, none has died in vain.
        """
        for piece in pieces:
            yield piece, getattr(self._worker(), method)(piece)


class Runtime:
    """Where the work of stages is done: one piece after another in this process.

    That is what small jobs, notebooks and tests need. ``on_ray.RayRuntime`` is a cluster. What no
    machine ever gives is a ClusterError, with what was asked and what there is.
    """

    _shared: tuple[Dataset, Shared] | None = None

    def share(self, dataset: Dataset) -> Shared:
        """A data set, read by this process, for all that work; the latest is remembered.

        DataError as of ``dataset.load``.
        """
        if self._shared is None or self._shared[0] != dataset:
            self._shared = None
            with Stopwatch() as watch:
                loaded = dataset.load(self._room())
                # Known once, not by every worker; of streamed images it takes reading a window.
                _ = loaded.statistics
            kept, count = loaded.calibration, len(loaded.class_names)
            logger.info(
                "%-12s %d training and %d validation examples of %s, %d %s, read in %s",
                *("dataset", len(loaded.train), len(loaded.validation)),
                "x".join(map(str, loaded.input_shape)),
                count,
                ("classes" if loaded.task.has_classes else "target" + "s" * (count > 1))
                + (f", {len(kept)} kept back for calibration" if kept else ""),
                duration(watch.cost.wall_seconds),
            )
            return self.lend(dataset, loaded)
        return self._shared[1]

    def lend(self, dataset: Dataset, parts: Parts) -> Shared:
        """A data set that this process has already, as if it had been read."""
        self._shared = dataset, self.hold(parts)
        return self._shared[1]

    def _room(self) -> Room | None:
        """What a data set may take; None for what it says."""
        return None

    def hold(self, value: Any) -> Shared:
        """What this process has, for all that work."""
        return Shared(value)

    @contextmanager
    def workers(
        self, worker: type, *arguments: Any, resources: ActorResources
    ) -> Iterator[Workers]:
        """As many ``worker(*arguments)`` as the resources allow and their pieces need."""
        with lent():
            yield Workers(partial(worker, *arguments))

    def run(self, work: Callable[..., T], *arguments: Any, resources: Resources) -> T:
        """What ``work(*arguments)`` returns, done by one process."""
        with lent():
            return work(*arguments)

    def table(self, rows: Rows, resources: Resources) -> pa.Table:
        """All rows, in the order of their parts."""
        with lent(resources.cpus):
            return pa.concat_tables([rows.part(number) for number in range(rows.parts)])

    def train(self, job: TrainingTask, rows: Rows) -> Fitted:
        """Train on all rows, ``features``, ``trunk`` and ``model_id``, and store the weights.

        Its progress is on stderr and, for others, in the artifact. TrainingError where it diverged
        or kept failing.
        """
        from bend_ray.runtime.loop import Team, train

        table = self.table(rows, Resources())
        steps = job.section.training.steps
        with lent(), ProgressLine(job.artifact.stage, steps, "steps") as line:
            return train(job, table, Team(progress=line.update))

    def preflight(self, config: PipelineConfig, stages: Sequence[str]) -> PipelineConfig:
        """Refuse before any work what stages ask for and never get.

        Gives the config, with the GPUs of stages that left them to us.
        """
        import torch

        there = [{"CPU": 1.0, "GPU": 1.0}] if torch.cuda.is_available() else []
        return self.equipped(config, there, lambda: gpu_problem() or "")

    def equipped(
        self, config: PipelineConfig, nodes: Sequence[Amounts], problem: Callable[[], str]
    ) -> PipelineConfig:
        """The config with GPUs for every stage whose ``resources.gpus`` is auto; a line says which.

        ``problem`` says why a GPU of the nodes does not work, and is empty where all do.
        """
        sections = {stage: getattr(config, stage) for stage in STAGES}
        left = {stage: each for stage, each in sections.items() if each.resources.gpus == "auto"}
        with_gpus = [node for node in nodes if node.get("GPU", 0.0) >= 1.0]
        given = dict.fromkeys(left, 0.0)
        if left and with_gpus and (why := problem()):
            logger.warning("%-12s all on CPUs: %s", "gpus", why)
        elif asked := [stage for stage in left if with_gpus and stage in OF_CLASSIFIERS]:
            size = self.network_size(config)
            cpus = max(left[stage].resources.cpus for stage in asked)
            given |= dict.fromkeys(asked, share_of_gpu(size, cpus, with_gpus))
            logger.info(
                "%-12s %g there: %g a process of %s, for networks of %d parameters",
                *("gpus", sum(node["GPU"] for node in with_gpus), given[asked[0]]),
                *(", ".join(asked), size),
            )
        return config.with_resources(
            {
                stage: each.resources.model_copy(update={"gpus": given[stage]})
                for stage, each in left.items()
            }
        )

    def network_size(self, config: PipelineConfig) -> int:
        """Parameters of one classifier, on the data set."""
        dataset = self.share(config.dataset).load()
        network = config.seeds.architecture.build(dataset.input_shape, dataset.num_outputs)
        return sum(parameter.numel() for parameter in network.parameters())

    def wait_for(self, config: PipelineConfig, stage: str) -> None:
        """Wait until there is room for a stage."""

    def holding(self, stage: str, resources: R, num_bytes: float) -> R:
        """Resources of a process that will hold at least so many bytes of models."""
        return resources

    def made(self, stage: str, manifest: Manifest) -> None:
        """Tell whoever watches the run of a stage that was committed."""

    def errors(self) -> AbstractContextManager[None]:
        """Around work: errors of workers come out as they were raised."""
        return nullcontext()


def share_of_gpu(num_parameters: int, cpus: float, nodes: Sequence[Amounts]) -> float:
    """GPUs a process that has so many CPUs: a whole one for a large network, a fraction for others.

    No smaller a fraction than its node has CPUs for.
    """
    if num_parameters > SMALL_NETWORK:
        return 1.0
    per_gpu = min(node.get("CPU", 0.0) / node["GPU"] for node in nodes)
    return 1 / max(1, min(MOST_ON_A_GPU, int(per_gpu / cpus + 1e-9)))
