"""Work done on a Ray cluster: pieces by actors, tables by Ray Data, trainings by Ray Train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.cloudpickle
import ray.data
from numpy.typing import NDArray
from ray.data import ExecutionResources, TaskPoolStrategy

from bend_ray.config.resources import GIGABYTE, ActorResources, Resources
from bend_ray.data.datasets import Dataset
from bend_ray.data.streaming import BLOCK_BYTES, RESIDENT_SHARE, Room, Work
from bend_ray.process import log
from bend_ray.process.computing import lent, usable_cores
from bend_ray.runtime.causes import our_errors
from bend_ray.runtime.cluster import set_up_data
from bend_ray.runtime.interface import Rows, Runtime, Shared, from_vectors, vectors
from bend_ray.runtime.loop import Fitted, TrainingTask
from bend_ray.runtime.nodes import Nodes, Request, expect, versions
from bend_ray.runtime.pool import Pool
from bend_ray.runtime.tracking import count, count_progress
from bend_ray.runtime.training import fit

if TYPE_CHECKING:
    from bend_ray.artifacts.manifest import Manifest
    from bend_ray.config.schema import PipelineConfig

logger = logging.getLogger(__name__)

MOST_TASKS = 16

R = TypeVar("R", bound=Resources)
T = TypeVar("T")


@dataclass(frozen=True)
class InStore(Shared):
    """What is in the object store, for any process to load without copying it.

    It travels as bytes: of a reference among the arguments of an actor Ray warns that it may be
    lost before the actor is started again, but the process that shared it holds it.
    """

    value: bytes

    def load(self) -> Any:
        """It, its arrays in the object store."""
        return get(ray.cloudpickle.loads(self.value))


def get(reference: Any) -> Any:
    """``ray.get`` whose errors are ours."""
    with our_errors():
        return ray.get(reference)


class RayRuntime(Runtime):
    """A cluster, of our own or not: see ``interface.Runtime``, and ``Nodes``.

    ``shared`` is a data set that another process of the job has shared, and outlives this one.
    """

    def __init__(self, own: bool, shared: tuple[Dataset, Shared] | None = None) -> None:
        self.own = own
        self.nodes = Nodes(own)
        self._shared = shared
        self._held: list[ray.ObjectRef] = []
        log.watchers.add(count_progress)

    def _room(self) -> Room:
        self._held = []
        # On one machine threads do the same work for half of the processor's time.
        return Room(RESIDENT_SHARE * self.nodes.memory(), None if self.own else by_tasks)

    def hold(self, value: Any) -> InStore:
        """In the object store, with the latest data set."""
        # Whoever put an object there must hold it.
        self._held.append(ray.put(value))
        return InStore(ray.cloudpickle.dumps(self._held[-1]))

    @contextmanager
    def workers(self, worker: type, *arguments: Any, resources: ActorResources) -> Iterator[Pool]:
        """Actors; one that dies is replaced."""
        make = partial(worker, *arguments)
        with Pool(worker.__name__, make, resources, self.nodes) as pool:
            yield pool

    def run(self, work: Callable[..., T], *arguments: Any, resources: Resources) -> T:
        """An actor's only call, tried again when its process dies."""
        make = partial(SimpleNamespace, call=lambda _: work(*arguments))
        with Pool(work.__name__, make, resources, self.nodes) as pool:
            ((_, result),) = pool.run("call", [0])
        return result  # type: ignore[no-any-return]

    def table(self, rows: Rows, resources: Resources) -> pa.Table:
        """Streamed by Ray Data, a task a part."""
        parts = dataset_of(rows, resources, self.nodes)
        blocks = parts.iter_batches(batch_size=None, batch_format="pyarrow")
        return pa.concat_tables(list(blocks))

    def train(self, job: TrainingTask, rows: Rows) -> Fitted:
        """By Ray Train; on one machine a single worker without a GPU is this process.

        Ray Train's own processes take 25 s to start on two cores, ten times what the training does.
        """
        resources = job.section.resources
        if self.own and resources.workers == 1 and not resources.num_gpus:
            return super().train(job, rows)
        return fit(job, dataset_of(rows, Resources(), self.nodes), self.nodes)

    def preflight(self, config: PipelineConfig, stages: Sequence[str]) -> PipelineConfig:
        """Ask what nodes there are, and each of them what it computes with."""
        amounts = [node.resources for node in self.nodes.usable()]
        config = self.equipped(config, amounts, self.nodes.gpu_problem)
        asked = [Request.of(config, stage) for stage in stages]
        self.nodes.refuse_what_never_fits(asked)
        gpus = any(each.resources.num_gpus for each in asked)
        # Of one machine, which is this, there is nothing to compare.
        if not self.own or gpus:
            self.nodes.check(gpus)
        return config

    def wait_for(self, config: PipelineConfig, stage: str) -> None:
        """Where the cluster grows to what is asked of it."""
        self.nodes.wait_for(Request.of(config, stage))

    def holding(self, stage: str, resources: R, num_bytes: float) -> R:
        """Memory is asked for that is not in the config, where it is a gigabyte or more."""
        if resources.memory is not None or num_bytes < GIGABYTE:
            return resources
        resources = resources.model_copy(update={"memory": num_bytes / GIGABYTE})
        logger.info("%-12s a process holds %.3g GB of models", stage, num_bytes / GIGABYTE)
        self.nodes.wait_for(Request(stage, resources))
        return resources

    def made(self, stage: str, manifest: Manifest) -> None:
        """Prometheus, by Ray."""
        count("bytes", sum(file.bytes for file in manifest.files), stage=stage)
        for of, seconds in manifest.cost:
            count("seconds", seconds, stage=stage, of=of.removesuffix("_seconds"))

    def errors(self) -> AbstractContextManager[None]:
        """A worker's come out as themselves, however deep Ray has wrapped them."""
        return our_errors()


def dataset_of(rows: Rows, resources: Resources, nodes: Nodes) -> ray.data.Dataset:
    """The rows as a data set of Ray's, a block a part."""

    def make(number: int) -> pa.Table:
        with lent(resources.cpus):
            return rows.part(number)

    return _blocks(rows.parts, make, **nodes.options(resources))


def _blocks(count: int, make: Callable[[int], pa.Table], **options: Any) -> ray.data.Dataset:
    """So many tables, each made by a task whose process computes with what this one does."""
    wanted = versions()

    def block(batch: pa.Table) -> pa.Table:
        expect(wanted)
        return make(batch.column("number")[0].as_py())

    # Not `ray.data.range`, whose own tasks ask for CPUs.
    numbers = [{"number": number} for number in range(count)]
    return ray.data.from_items(numbers, override_num_blocks=count).map_batches(
        block, batch_size=1, batch_format="pyarrow", **options
    )


def by_tasks(work: Work, count: int) -> Generator[NDArray[np.uint8]]:
    """See ``streaming.Ahead``: rows of bytes, an image each.

    Tasks ask for no CPU. Workers that wait for images may hold all CPUs of a cluster, and who asks
    for one more would wait for ever. What is decoded and not yet fetched is bounded instead.
    """
    set_up_data()
    tasks = min(MOST_TASKS, max(2, usable_cores()))

    def decode(number: int) -> pa.Table:
        pixels = work(number)
        return pa.table({"pixels": vectors(pixels.reshape(len(pixels), -1))})

    blocks = _blocks(count, decode, num_cpus=0, compute=TaskPoolStrategy(size=tasks))
    held = 2 * (tasks + 1) * BLOCK_BYTES
    limits = ExecutionResources(object_store_memory=held)
    blocks.context.execution_options.resource_limits = limits
    with our_errors():
        for batch in blocks.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=tasks
        ):
            yield from_vectors(batch.column("pixels"))
