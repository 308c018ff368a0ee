"""Guidance: a drawn model is moved on along the way that its trunk's training has come.

Of every trunk two qualities are known, its early and its later checkpoints. Away from the worse
and beyond the better is where more training would lead, if it is far from its end.

Source: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself" (arXiv
2406.02507), with the means of two parts of a training for the two models.

Shape letters: N drawn, K members, P parameters, T trunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bend_ray.generation.rivals import trunk_means


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
