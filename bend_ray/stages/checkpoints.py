"""The seeds stage of a population that somebody else has trained: read, checked and validated.

Shape letters: K members, P parameters.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Artifact
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.files import File
from bend_ray.networks.checkpoints import listed_trunks, read_state
from bend_ray.networks.protocols import Checkpoints
from bend_ray.populations.divergence import Divergence, finite_rows
from bend_ray.runtime.interface import Shared
from bend_ray.stages.seed_trainer import SeedTrainer


class CheckpointReader(SeedTrainer):
    """Takes a trunk's members from files instead, each trunk a cohort."""

    def __init__(self, config: PipelineConfig, artifact: Artifact, dataset: Shared) -> None:
        super().__init__(config, artifact, dataset)
        assert isinstance(config.seeds.protocol, Checkpoints)
        self.protocol = config.seeds.protocol
        self.files, self.trunks = listed_trunks(self.protocol)

    def train_cohort(self, index: int) -> None:
        """Read one trunk and write its shard, with what it had cost if that is known."""
        files, early = self.trunks[index], self.protocol.early
        with self._stopwatch() as watch:
            theta_KP = torch.stack([self._vector(file) for file in files])
            if self.protocol.align and self._reference is not None:
                theta_KP = self._align(self._reference, theta_KP)
            early_KP, theta_KP = theta_KP[:early], theta_KP[early:]
            val_accuracy_K, val_nll_K = self.classifiers.validate(theta_KP, [0] * len(theta_KP))
            finite_K = finite_rows(theta_KP) & val_nll_K.isfinite()
        kept = np.flatnonzero(finite_K.numpy())
        members = [self.runs[index][row] for row in kept]
        lost = tuple(member.model_id for member in self.runs[index] if member not in members)
        dropped = Divergence(
            kind="run", trunk=index, fork=0, seed=0, outcome="dropped", models=lost
        )
        seconds = self.protocol.seconds or 0.0
        self._write(
            index,
            members,
            watch.cost + Cost(cpu_seconds=seconds * len(files)),
            [dropped] if lost else [],
            early_RP=early_KP.mean(dim=0, keepdim=True) if early else None,
            step=early + kept,
            seed=np.zeros(len(kept), dtype=np.int64),
            val_accuracy=val_accuracy_K.numpy()[kept],
            val_nll=val_nll_K.numpy()[kept],
            fit_seconds=np.full(len(kept), seconds),
            theta_KP=theta_KP[kept].numpy(),
        )

    @cached_property
    def _reference(self) -> Tensor | None:
        """What all are aligned to: the first trunk's last checkpoint that did not diverge."""
        files = (file for trunk in self.trunks for file in reversed(trunk))
        vectors = map(self._vector, files)
        return next((vector_P for vector_P in vectors if vector_P.isfinite().all()), None)

    def _vector(self, file: File) -> Tensor:
        layout = self.classifiers.layout
        shapes = {entry.name: entry.shape for entry in layout.entries}
        return layout.flatten(read_state(self.files, file, shapes, self.protocol.prefix))
