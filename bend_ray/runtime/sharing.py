"""A data set read once and looked at by every process of a node, in Ray's object store."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import ray
import ray.cloudpickle

from bend_ray.artifacts.cost import Stopwatch
from bend_ray.data.datasets import Dataset
from bend_ray.data.parts import ImageDataset
from bend_ray.process.log import duration
from bend_ray.runtime.pool import get

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedDataset:
    """An ``ImageDataset`` in the object store, for any process to load without copying it.

    It travels as bytes: of a reference among the arguments of an actor Ray warns that it may be
    lost before the actor is started again, but the process that shared it holds it.
    """

    reference: bytes

    def load(self) -> ImageDataset:
        """The data set, its pixels in the object store."""
        return get(ray.cloudpickle.loads(self.reference))  # type: ignore[no-any-return]


def share_dataset(dataset: Dataset) -> SharedDataset:
    """A data set read and decoded by this process, once.

    Every process of a node looks at the same pixels; what is read is the training and the
    validation part.

    Raises:
        DataError: as ``load``.
    """
    # References of another job, as when a cluster was left and another joined, mean nothing here.
    asked = (dataset, ray.get_runtime_context().get_job_id())
    if asked not in _shared:
        _keep(asked, SharedDataset(ray.cloudpickle.dumps(_put(dataset))))
    return _shared[asked]


def use_shared(dataset: Dataset, shared: SharedDataset) -> None:
    """Have ``share_dataset`` of this process give what another process of the job has shared.

    The other process must outlive this one.
    """
    _keep((dataset, ray.get_runtime_context().get_job_id()), shared)


_shared: dict[tuple[Dataset, str], SharedDataset] = {}
_owned: list[ray.ObjectRef] = []


def _keep(asked: tuple[Dataset, str], shared: SharedDataset) -> None:
    """Remember one data set, the latest: they are large."""
    _shared.clear()
    _shared[asked] = shared


def _put(dataset: Dataset) -> ray.ObjectRef:
    with Stopwatch() as watch:
        loaded = dataset.load()
    logger.info(
        "%-12s %d training and %d validation images of %s, %d classes, read in %s",
        "dataset",
        len(loaded.train),
        len(loaded.validation),
        "x".join(map(str, loaded.image_shape)),
        len(loaded.class_names),
        duration(watch.cost.wall_seconds),
    )
    # Whoever put an object there must hold it.
    _owned[:] = [ray.put(loaded)]
    return _owned[0]
