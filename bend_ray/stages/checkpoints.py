"""The seeds stage of a population that somebody else has trained: read, checked and validated.

Shape letters: K members, P parameters.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bend_ray.artifacts.cost import Cost, Stopwatch, write_cost
from bend_ray.artifacts.population import Population
from bend_ray.artifacts.shards import shard_name, write_shard
from bend_ray.artifacts.store import Artifact
from bend_ray.artifacts.weights import save_weights
from bend_ray.config.schema import PipelineConfig
from bend_ray.data.files import File
from bend_ray.errors import DataError
from bend_ray.networks.checkpoints import listed_trunks, read_state
from bend_ray.networks.protocols import Checkpoints, held_out_ids
from bend_ray.parameters.symmetry import align
from bend_ray.populations.divergence import Divergence, finite_rows, note
from bend_ray.populations.members import LAYOUT, early_name
from bend_ray.populations.networks import Classifiers
from bend_ray.process.computing import settle
from bend_ray.randomness import generator_for
from bend_ray.runtime.interface import Shared


class CheckpointReader:
    """Reads the checkpoints of a trunk, a shard each; it keeps the data, and no other state.

    Args:
        config: of the pipeline, identified.
        artifact: where shards go.
        dataset: of the config.
    """

    def __init__(self, config: PipelineConfig, artifact: Artifact, dataset: Shared) -> None:
        assert isinstance(config.seeds.protocol, Checkpoints)
        self.section, self.protocol = config.seeds, config.seeds.protocol
        self.seed, self.artifact = config.seed, artifact
        device = settle(self.section.resources.cpus, self.section.resources.gpus)
        self.classifiers = Classifiers(config, dataset.load(), device)
        self.files, self.trunks = listed_trunks(self.protocol)
        self.runs = self.protocol.runs()
        share = generator_for(self.seed, "held out")
        self.held_out = held_out_ids(self.runs, self.section.held_out, share)

    def train_cohort(self, index: int) -> None:
        """Read one trunk and write its shard, with what it had cost if that is known."""
        members, early = self.runs[index], self.protocol.early
        with Stopwatch() as watch:
            files = self.trunks[index]
            theta_KP = torch.stack([self._vector(file) for file in files])
            if self.protocol.align:
                theta_KP = self._aligned(theta_KP)
            early_KP, theta_KP = theta_KP[:early], theta_KP[early:]
            val_accuracy_K, val_nll_K = self.classifiers.validate(theta_KP, [0] * len(theta_KP))
            finite_K = finite_rows(theta_KP) & val_nll_K.isfinite()
        if index == 0:
            self.artifact.write_note(LAYOUT, self.classifiers.layout.to_json())
        lost = tuple(m.model_id for m, ok in zip(members, finite_K.tolist(), strict=True) if not ok)
        dropped = Divergence(
            kind="run", trunk=index, fork=0, seed=0, outcome="dropped", models=lost
        )
        note(self.artifact, shard_name(index), [dropped] if lost else [])
        seconds = self.protocol.seconds or 0.0
        cost = watch.cost + Cost(cpu_seconds=seconds * len(files))
        write_cost(self.artifact, shard_name(index), cost)
        if early:
            means = {"theta": early_KP.mean(dim=0, keepdim=True), "trunk": torch.tensor([index])}
            save_weights(self.artifact, early_name(index), means)
        if len(lost) == len(members):
            return
        kept = np.flatnonzero(finite_K.numpy())
        ids = np.array([member.model_id for member in members])[kept]
        population = Population(
            model_id=ids,
            trunk=np.full(len(kept), index),
            fork=np.zeros(len(kept), dtype=np.int64),
            step=early + kept,
            seed=np.zeros(len(kept), dtype=np.int64),
            held_out=np.isin(ids, list(self.held_out)),
            val_accuracy=val_accuracy_K.numpy()[kept],
            val_nll=val_nll_K.numpy()[kept],
            fit_seconds=np.full(len(kept), seconds),
            origin="trained",
            theta_KP=theta_KP[kept].numpy(),
            layout_digest=self.classifiers.layout.digest,
        )
        write_shard(self.artifact, index, population)

    def _vector(self, file: File) -> Tensor:
        layout = self.classifiers.layout
        names = [entry.name for entry in layout.entries]
        state = read_state(self.files, file, names, self.protocol.prefix)
        try:
            return layout.flatten(state)
        except DataError as error:
            raise DataError(f"{file.name}: {error}") from None

    def _aligned(self, theta_KP: Tensor) -> Tensor:
        """In the units of the first trunk's last checkpoint."""
        reference_P = self._vector(self.trunks[0][-1])
        groups = self.section.architecture.permutation_groups()
        generator = generator_for(self.seed, "align")
        return align(reference_P, theta_KP, self.classifiers.whole, groups, generator)
