"""Spread: a drawn model is moved away from the mean of its trunk's members.

What a generator draws lies nearer to that mean than the members do, as what a few tails cannot
teach it is drawn at its mean. There a model is better than they are, and less its own.

Shape letters: N drawn, K members, P parameters, T trunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bend_ray.generation.rivals import trunk_means


def centres(theta_KP: Tensor, trunks_K: Tensor, num_trunks: int) -> Tensor:
    """The mean of each trunk's members ``(T, P)``; nan for a trunk without one.

    Args:
        theta_KP: members that the generator learns from.
        trunks_K: of each.
        num_trunks: T, above all of them.
    """
    means_UP, _ = trunk_means(theta_KP, trunks_K)
    centre_TP = theta_KP.new_full((num_trunks, theta_KP.shape[1]), torch.nan)
    centre_TP[torch.unique(trunks_K)] = means_UP
    return centre_TP


def spread_out(theta_NP: Tensor, trunks_N: Tensor, centre_TP: Tensor, scale: float) -> Tensor:
    """Drawn models, each ``scale`` times as far from its trunk's centre, in the same direction."""
    centre_NP = centre_TP[trunks_N]
    return centre_NP + scale * (theta_NP - centre_NP)
