"""A data set read by the process that runs a job, and told about in one line."""

from __future__ import annotations

import logging

from bend_ray.artifacts.cost import Stopwatch
from bend_ray.data.datasets import Dataset
from bend_ray.data.examples import Parts
from bend_ray.process.log import duration

logger = logging.getLogger(__name__)


def load_reported(dataset: Dataset) -> Parts:
    """Its training and validation part, decoded.

    Raises:
        DataError: as ``load``.
    """
    with Stopwatch() as watch:
        loaded = dataset.load()
    logger.info(
        "%-12s %d training and %d validation images of %s, %d classes, read in %s",
        "dataset",
        len(loaded.train),
        len(loaded.validation),
        "x".join(map(str, loaded.input_shape)),
        len(loaded.class_names),
        duration(watch.cost.wall_seconds),
    )
    return loaded
