"""Images decoded by tasks of Ray Data, ahead of the process that looks at them."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import pyarrow as pa
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import ExecutionResources, TaskPoolStrategy

from bend_ray.data.streaming import BLOCK_BYTES, Work
from bend_ray.process.computing import usable_cores
from bend_ray.runtime.causes import our_errors
from bend_ray.runtime.cluster import set_up_data
from bend_ray.runtime.nodes import expect, versions

MOST_TASKS = 16


def by_tasks(work: Work, count: int) -> Generator[NDArray[np.uint8]]:
    """See ``streaming.Ahead``: rows of bytes, an image each.

    Tasks ask for no CPU. Workers that wait for images may hold all CPUs of a cluster, and who asks
    for one more would wait for ever. What is decoded and not yet fetched is bounded instead.
    """
    set_up_data()
    tasks, wanted = min(MOST_TASKS, max(2, usable_cores())), versions()

    def decode(batch: pa.Table) -> pa.Table:
        expect(wanted)
        pixels = work(batch.column("id")[0].as_py())
        return pa.table({"pixels": as_bytes(pixels)})

    # Not `ray.data.range`, whose own tasks ask for CPUs.
    numbers = [{"id": number} for number in range(count)]
    blocks = ray.data.from_items(numbers, override_num_blocks=count).map_batches(
        decode,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0,
        compute=TaskPoolStrategy(size=tasks),
    )
    held = 2 * (tasks + 1) * BLOCK_BYTES
    limits = ExecutionResources(object_store_memory=held)
    blocks.context.execution_options.resource_limits = limits
    with our_errors():
        for batch in blocks.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=tasks
        ):
            yield from_bytes(batch.column("pixels"))


def as_bytes(pixels: NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """A column of images, each as its bytes, over the same memory."""
    rows = pixels.reshape(len(pixels), -1)
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows)]
    )


def from_bytes(column: pa.ChunkedArray) -> NDArray[np.uint8]:
    """``(M, bytes)``, over the same memory where it is in one piece."""
    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    size = column.type.byte_width
    flat = np.frombuffer(whole.buffers()[1], np.uint8, len(whole) * size, whole.offset * size)
    return flat.reshape(-1, size)
