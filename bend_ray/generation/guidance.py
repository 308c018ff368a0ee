"""Guidance: a drawn model is moved on along the way that its trunk's training has come.

Of every trunk two qualities are known, its early and its later checkpoints. Away from the worse
and beyond the better is where more training would lead, if it is far from its end.

Source: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself" (arXiv
2406.02507), with the means of two parts of a training for the two models.

Shape letters: N drawn, P parameters, T trunks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ways(centre_TP: Tensor, early_TP: Tensor) -> Tensor:
    """Each trunk's way ``(T, P)``, from the mean of its early checkpoints to that of its members.

    Args:
        centre_TP: means of the members that the generator learns from; nan for a trunk without.
        early_TP: means of early checkpoints; nan for a trunk without.

    Returns:
        The ways; 0 for a trunk that lacks one of the two.
    """
    return torch.nan_to_num(centre_TP - early_TP)


def guided(theta_NP: Tensor, trunks_N: Tensor, way_TP: Tensor, guidance: float) -> Tensor:
    """Drawn models, each moved on by ``guidance`` of its trunk's way."""
    return theta_NP + guidance * way_TP[trunks_N]
