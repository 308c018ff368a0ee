"""Single scores of answers, for tests that ask for one."""

from __future__ import annotations

from torch import Tensor

from bend_ray.ensemble.metrics import disagreements, score, true_log_probs


def accuracy(probs_NC: Tensor, labels_N: Tensor) -> float:
    return score(probs_NC, labels_N)["accuracy"]


def nll(probs_NC: Tensor, labels_N: Tensor) -> float:
    return score(probs_NC, labels_N)["nll"]


def member_nll(logits_ENC: Tensor, labels_N: Tensor) -> Tensor:
    return -true_log_probs(logits_ENC, labels_N).mean(dim=1)


def disagreement(predictions_EN: Tensor) -> float:
    return disagreements(predictions_EN).mean().item()
