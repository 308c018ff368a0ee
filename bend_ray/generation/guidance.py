"""Guidance: a drawn model is moved on along the way that its trunk's training has come.

Of every trunk two qualities are known, its early and its later checkpoints. Away from the worse
and beyond the better is where more training would lead, if it is far from its end.

Source: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself" (arXiv
2406.02507), with the means of two parts of a training for the two models.

Shape letters: N drawn, K members, P parameters, T trunks.
"""

from __future__ import annotations

from bend_ray.generation.rivals import trunk_means
from bend_ray.lazy import torch


def ways(theta_KP: torch.Tensor, trunks_K: torch.Tensor, early_TP: torch.Tensor) -> torch.Tensor:
    """Each trunk's way ``(T, P)``, from the mean of its early checkpoints to that of its members.

    Args:
        theta_KP: members that the generator learns from.
        trunks_K: of each, below T; a trunk without one has a way of 0.
        early_TP: means of early checkpoints; nan for a trunk without.
    """
    means_UP, _ = trunk_means(theta_KP, trunks_K)
    way_TP = torch.zeros_like(early_TP)
    present_U = torch.unique(trunks_K)
    way_TP[present_U] = means_UP - early_TP[present_U]
    return way_TP


def guided(
    theta_NP: torch.Tensor, trunks_N: torch.Tensor, way_TP: torch.Tensor, guidance: float
) -> torch.Tensor:
    """Drawn models, each moved on by ``guidance`` of its trunk's way."""
    return theta_NP + guidance * way_TP[trunks_N]
