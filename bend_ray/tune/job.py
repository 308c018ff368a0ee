"""What every trial of a study is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bend_ray.artifacts.directory import Directory
from bend_ray.config import PipelineConfig
from bend_ray.tune.space import TuneSection


@dataclass(frozen=True)
class Job:
    """What every trial of a study is told.

    Attributes:
        config: whose knobs a trial sets; its resources are one trial's share of the cluster.
        section: the search.
        store_uri: where artifacts are.
        study: where records are.
        dataset: ``SharedDataset.reference`` of the config's, shared by the driver.
        own_cluster: what ``cluster.is_own`` says in the driver.
        workers: handles of ``StageWorker``, one for each trial that runs at once.
    """

    config: PipelineConfig
    section: TuneSection
    store_uri: str
    study: Directory
    dataset: bytes
    own_cluster: bool
    workers: tuple[Any, ...] = ()
