"""Repeats of one config under other seeds.

They share the store and the cluster and nothing else: every model, split and test image choice is
a repeat's own, so that what differs between them is chance.
"""

from __future__ import annotations

from bend_ray.config.schema import PipelineConfig


def repeats_of(config: PipelineConfig, count: int) -> list[PipelineConfig]:
    """The config under ``count`` seeds in a row, of everything and of the data set's split.

    >>> [each.seed for each in repeats_of(PipelineConfig(seed=3), 2)]
    [3, 4]
    """
    return [_under(config, repeat) for repeat in range(count)]


def _under(config: PipelineConfig, repeat: int) -> PipelineConfig:
    split_seed = config.dataset.split_seed + repeat
    dataset = config.dataset.model_copy(update={"split_seed": split_seed})
    return config.model_copy(update={"seed": config.seed + repeat, "dataset": dataset})
