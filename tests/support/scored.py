"""Single scores of answers, for tests that ask for one."""

from __future__ import annotations

import torch
from torch import Tensor

from bend_ray.ensemble.metrics import disagreements, score, true_log_probs
from bend_ray.ensemble.predictions import Predictions
from bend_ray.ensemble.votes import Vote
from bend_ray.tasks import Classification


def combine(vote: Vote, logits_ENC: Tensor, val_nll_E: Tensor) -> Tensor:
    """What a bag says of classes."""
    labels_N = torch.zeros(logits_ENC.shape[1], dtype=torch.int64)
    return vote.answers(Predictions(logits_ENC, labels_N, Classification()), val_nll_E)


def accuracy(probs_NC: Tensor, labels_N: Tensor) -> float:
    return score(probs_NC, labels_N)["accuracy"]


def nll(probs_NC: Tensor, labels_N: Tensor) -> float:
    return score(probs_NC, labels_N)["nll"]


def member_nll(logits_ENC: Tensor, labels_N: Tensor) -> Tensor:
    return -true_log_probs(logits_ENC, labels_N).mean(dim=1)


def disagreement(predictions_EN: Tensor) -> float:
    return disagreements(predictions_EN).mean().item()
