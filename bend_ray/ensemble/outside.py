"""Out of distribution: scores of uncertainty, and how well they tell strange inputs from known.

Shape letters: E members, N examples inside, M outside, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bend_ray.ensemble.predictions import Predictions

Floats = NDArray[np.float64]
KEPT = 0.95
"""Of inputs outside, the share that is to be found."""


def uncertainties(
    predictions: Predictions, weight_E: Tensor, probs_NC: Tensor
) -> dict[str, Floats]:
    """Scores ``(N,)``, higher where a bag is less sure, by its answers and its members' own.

    By name: one minus the highest probability; entropy; mutual information of class and member
    (members' own softmaxes); energy, the members' mean (Liu et al., 2020).
    """
    share_E, found = weight_E / weight_E.sum(), []
    for logits_ENC, _ in predictions.blocks():
        logs_ENC = torch.log_softmax(logits_ENC.double(), dim=-1)
        mean_NC = torch.einsum("e,enc->nc", share_E, logs_ENC.exp())
        own_EN = torch.special.entr(logs_ENC.exp()).sum(dim=-1)
        information_N = torch.special.entr(mean_NC).sum(dim=-1) - share_E @ own_EN
        energy_N = -(share_E @ torch.logsumexp(logits_ENC.double(), dim=-1))
        found.append(torch.stack([information_N, energy_N]))
    information_N, energy_N = torch.cat(found, dim=1)
    probs_NC = probs_NC.double()
    scores = {
        "probability": 1 - probs_NC.max(dim=1).values,
        "entropy": torch.special.entr(probs_NC).sum(dim=1),
        "information": information_N,
        "energy": energy_N,
    }
    return {name: values.numpy() for name, values in scores.items()}


def detection(inside_N: Floats, outside_M: Floats) -> dict[str, float]:
    """How a score, higher outside, tells outside from inside.

    Gives ``auroc``, the probability that one outside has a higher score than one inside, and its
    ``standard_error`` over examples of both; ``aupr``, the average precision, those outside being
    positive; ``fpr95``, the share inside taken for outside where 95 % outside are found. As
    ``roc_auc_score``, ``average_precision_score`` and ``roc_curve`` of scikit-learn.

    Source of the error: DeLong et al., "Comparing the areas under two or more correlated receiver
    operating characteristic curves", 1988.
    """
    above_M, above_N = _share_below(inside_N, outside_M), 1 - _share_below(outside_M, inside_N)
    variance = sum(
        each.var(ddof=1) / len(each) if len(each) > 1 else np.nan for each in (above_M, above_N)
    )
    thresholds, counts_T = np.unique(outside_M, return_counts=True)
    found_T = counts_T[::-1].cumsum()  # at the highest threshold first
    wrong_T = len(inside_N) - np.searchsorted(np.sort(inside_N), thresholds)[::-1]
    precision_T = found_T / (found_T + wrong_T)
    enough = np.argmax(found_T >= KEPT * len(outside_M))
    return {
        "auroc": above_M.mean().item(),
        "aupr": float((precision_T * counts_T[::-1]).sum() / len(outside_M)),
        "fpr95": float(wrong_T[enough] / len(inside_N)),
        "standard_error": float(np.sqrt(variance)),
    }


def _share_below(values_N: Floats, than_M: Floats) -> Floats:
    """Of some values, the share below each of others; equal ones are half below."""
    sorted_N = np.sort(values_N)
    sides = [np.searchsorted(sorted_N, than_M, side) for side in ("left", "right")]
    shares: Floats = np.mean(sides, axis=0) / len(values_N)
    return shares
