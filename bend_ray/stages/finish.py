"""What becomes of decoded models before they are validated: guidance, then annealing.

Guidance moves a drawn model on along the way that its trunk's training has come, from early to
later checkpoints: where more training would lead, if it is far from its end.

Source: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself" (arXiv
2406.02507), with the means of two parts of a training for the two models.

Shape letters: N drawn, K members, P parameters, T trunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Artifact
from bend_ray.config.schema import PipelineConfig
from bend_ray.generation.rivals import trunk_means
from bend_ray.networks.fitting import stretch_marks
from bend_ray.populations.members import load_early, member_blocks, read_block, read_layout
from bend_ray.populations.networks import Classifiers
from bend_ray.randomness import generator_for


class Finisher:
    """Guidance and annealing of a config's drawn models; the first holds two vectors a trunk."""

    def __init__(self, config: PipelineConfig, seeds: Artifact, classifiers: Classifiers) -> None:
        self.config = config
        self.seeds = seeds
        self.classifiers = classifiers
        self.finish = config.finish
        self.stretch = self.finish.annealing.stretch(config.seeds.recipe)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of a model's annealing."""
        num_images = len(self.classifiers.dataset.train)
        return stretch_marks(self.config.seeds.recipe, self.stretch, num_images)[-1]

    def __call__(
        self, theta_NP: Tensor, trunks_N: NDArray[np.int32], model_ids: Sequence[int]
    ) -> Tensor:
        """Models ``(N, P)``, each moved on along its trunk's way, and trained."""
        if self.finish.guidance:
            way_TP, trunks = self._ways, torch.from_numpy(trunks_N).long()
            theta_NP = guided(theta_NP, trunks, way_TP, self.finish.guidance)
        if self.num_steps:
            streams = [generator_for(self.config.seed, "annealing", i) for i in model_ids]
            given = (theta_NP, trunks_N.tolist(), self.stretch, streams)
            ((_, theta_NSP, _),) = self.classifiers.fitted(*given)
            theta_NP = theta_NSP[:, -1]
        return theta_NP

    @cached_property
    def _centres(self) -> Tensor:
        """The mean of what the generator learnt from of every trunk, ``(T, P)``."""
        layout, members = read_layout(self.seeds), read_population(self.seeds, theta=False)
        train_K = torch.from_numpy(~members.held_out)
        trunks_K = torch.from_numpy(members.trunk[~members.held_out]).long()
        trunks = self.config.seeds.protocol.num_trunks
        centre_TP = torch.empty(trunks, layout.size)
        for block in member_blocks(layout, len(train_K)):
            theta_KB = read_block(self.seeds, block)[train_K]
            centre_TP[:, block.start : block.stop] = centres(theta_KB, trunks_K, trunks)
        return centre_TP

    @cached_property
    def _ways(self) -> Tensor:
        """Every trunk's way ``(T, P)``; running statistics stay."""
        way_TP = ways(self._centres, load_early(self.seeds, *self._centres.shape))
        # A variance that is moved on may be negative.
        way_TP[:, self.classifiers.layout.num_trainable :] = 0.0
        return way_TP


def centres(theta_KP: Tensor, trunks_K: Tensor, num_trunks: int) -> Tensor:
    """The mean of each trunk's members ``(T, P)``; nan for a trunk without one."""
    means_UP, _ = trunk_means(theta_KP, trunks_K)
    centre_TP = theta_KP.new_full((num_trunks, theta_KP.shape[1]), torch.nan)
    centre_TP[torch.unique(trunks_K)] = means_UP
    return centre_TP


def ways(centre_TP: Tensor, early_TP: Tensor) -> Tensor:
    """Each trunk's way ``(T, P)``, from the mean of its early checkpoints to that of its members.

    It is 0 for a trunk that lacks one of the two, whose mean is nan.
    """
    return torch.nan_to_num(centre_TP - early_TP)


def guided(theta_NP: Tensor, trunks_N: Tensor, way_TP: Tensor, guidance: float) -> Tensor:
    """Drawn models, each moved on by ``guidance`` of its trunk's way."""
    return theta_NP + guidance * way_TP[trunks_N]
