"""How good the answer is, and how much the members differ.

Shape letters: E and M members, N examples, C classes. Every score is a fraction of 1 (or nats),
never a percentage, and is computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bend_ray.ensemble.rule import SMALLEST_PROBABILITY

# Lazy, because the axis files of this room import these functions at load.
from bend_ray.process.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """What one set of probabilities is worth; each score as the function of its name has it."""

    accuracy: float
    nll: float
    brier: float
    ece: float


def score(probs_NC: Tensor, labels_N: Tensor) -> Scores:
    """All scores of one set of probabilities."""
    return Scores(*(of(probs_NC, labels_N) for of in (accuracy, nll, brier, ece)))


def accuracy(probs_NC: Tensor, labels_N: Tensor) -> float:
    """Share of examples whose most probable class, the lowest of equals, is the label.

    Raises:
        ValueError: if the shapes do not fit, or there is no example (so for every score).
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    return (probs_NC.argmax(dim=-1) == labels_N).double().mean().item()


def nll(probs_NC: Tensor, labels_N: Tensor) -> float:
    """Mean negative log likelihood of the label, in nats.

    Probabilities are clipped at ``SMALLEST_PROBABILITY``, so a vote share of zero for the label
    costs 87.3 nats instead of infinitely many. Agrees with ``sklearn.metrics.log_loss`` where
    nothing is clipped.
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    true_N = probs_NC.gather(1, labels_N.long()[:, None]).double()
    return -true_N.clamp(min=SMALLEST_PROBABILITY).log().mean().item()


def brier(probs_NC: Tensor, labels_N: Tensor) -> float:
    """Squared distance to the one-hot label, summed over classes, mean over examples: in [0, 2].

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    error_NC = probs_NC.double() - torch.nn.functional.one_hot(
        labels_N.long(), num_classes=probs_NC.shape[1]
    )
    return error_NC.square().sum(dim=1).mean().item()


def ece(probs_NC: Tensor, labels_N: Tensor, num_bins: int = 15) -> float:
    """Expected calibration error of the top label, in [0, 1].

    The mean of |accuracy - confidence| over bins ((m - 1) / num_bins, m / num_bins], each weighted
    by its share of the examples.

    Source: Guo et al., "On calibration of modern neural networks", 2017, equation 3.
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    confidence_N, predicted_N = probs_NC.max(dim=1)
    edges = torch.arange(1, num_bins, dtype=torch.float64, device=probs_NC.device) / num_bins
    # Rounded like the probabilities: a float32 0.2 lies on the edge 3/15, not just above it.
    bins_N = torch.bucketize(confidence_N, edges.to(probs_NC.dtype))
    gap_N = (predicted_N == labels_N).double() - confidence_N.double()
    gaps = torch.zeros(num_bins, dtype=torch.float64, device=probs_NC.device)
    return gaps.index_add_(0, bins_N, gap_N).abs().sum().item() / len(labels_N)


def member_accuracy(logits_ENC: Tensor, labels_N: Tensor) -> Tensor:
    """Accuracy of every member, (E,) float64."""
    check_examples(logits_ENC.shape[1:-1], labels_N)
    return (logits_ENC.argmax(dim=-1) == labels_N).double().mean(dim=1)


def member_nll(logits_ENC: Tensor, labels_N: Tensor) -> Tensor:
    """Mean negative log likelihood of every member, (E,) float64 in nats.

    Finite logits give finite values. A member with non-finite logits gets nan: it diverged.
    """
    return -true_log_probs(logits_ENC, labels_N).mean(dim=1)


def true_log_probs(logits_ENC: Tensor, labels_N: Tensor) -> Tensor:
    """Log probability that each member gives to the label, (E, N) float64."""
    check_examples(logits_ENC.shape[1:-1], labels_N)
    index_N1 = labels_N.long()[:, None]
    # A member at a time: the float64 copy of all logits would be the largest thing in memory.
    probs = (torch.log_softmax(logits_NC.double(), dim=1) for logits_NC in logits_ENC)
    return torch.stack([log_probs_NC.gather(1, index_N1).squeeze(1) for log_probs_NC in probs])


def disagreement(predictions_EN: Tensor) -> float:
    """Share of examples on which two members differ, mean over pairs; nan for one alone; O(E N)."""
    num_members, num_examples = predictions_EN.shape
    if num_members < 2:
        return float("nan")
    predictions_EN = predictions_EN.long()
    votes_CN = predictions_EN.new_zeros(int(predictions_EN.max()) + 1, num_examples)
    votes_CN.scatter_add_(0, predictions_EN, torch.ones_like(predictions_EN))
    agreeing = (votes_CN * (votes_CN - 1)).sum().item()
    return 1 - agreeing / (num_members * (num_members - 1) * num_examples)


def pairwise_disagreement(a_EN: Tensor, b_MN: Tensor) -> Tensor:
    """Share of examples on which each member of a and each member of b differ, (E, M) float64."""
    if a_EN.shape[1:] != b_MN.shape[1:]:
        raise ValueError(
            f"expected predictions on the same examples, got shapes {tuple(a_EN.shape)} and "
            f"{tuple(b_MN.shape)}"
        )
    # The "0-norm" counts unequal entries without an (E, M, N) array; float32 is exact to 2**24.
    counts_EM = torch.cdist(a_EN.float(), b_MN.float(), p=0.0)
    return counts_EM.double() / a_EN.shape[1]


def error_iou(predictions_EN: Tensor, labels_N: Tensor) -> float:
    """Overlap of two members' errors, |both wrong| / |either wrong|, in [0, 1], mean over pairs.

    Pairs that never err are skipped; nan if no pair is left.

    Source: Wang et al., "Neural network diffusion", 2024, where it is the similarity of models.
    """
    check_examples(predictions_EN.shape[1:], labels_N)
    return overlap(predictions_EN != labels_N)


def overlap(wrong_EN: Tensor) -> float:
    """As ``error_iou``, of what each member gets wrong."""
    both, only_a, only_b, _ = _error_counts(wrong_EN)
    either = both + only_a + only_b
    return (both / either)[either > 0].mean().item()


def q_statistic(predictions_EN: Tensor, labels_N: Tensor) -> float:
    """Yule's Q of two members being right, in [-1, 1], mean over pairs: 0 for independent members.

    Pairs with a zero denominator are skipped; nan if no pair is left.

    Source: Kuncheva & Whitaker, "Measures of diversity in classifier ensembles", 2003.
    """
    check_examples(predictions_EN.shape[1:], labels_N)
    both, only_a, only_b, neither = _error_counts(predictions_EN != labels_N)
    same, different = both * neither, only_a * only_b
    total = same + different
    return ((same - different) / total)[total > 0].mean().item()


def _error_counts(wrong_EN: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By pair, how many examples both, only the first, only the second, or neither get wrong."""
    num_members, num_examples = wrong_EN.shape
    wrong_EN = wrong_EN.double()
    first, second = torch.triu_indices(num_members, num_members, 1, device=wrong_EN.device)
    both = (wrong_EN @ wrong_EN.T)[first, second]
    errors_E = wrong_EN.sum(dim=1)
    only_first, only_second = errors_E[first] - both, errors_E[second] - both
    return both, only_first, only_second, num_examples - both - only_first - only_second


def check_examples(shape: torch.Size, labels_N: Tensor) -> None:
    """Raise ValueError unless there is one label an example, and an example."""
    if labels_N.dim() != 1 or shape != labels_N.shape or len(labels_N) == 0:
        raise ValueError(
            f"expected one label for each of at least one example, got examples of shape "
            f"{tuple(shape)} and labels of shape {tuple(labels_N.shape)}"
        )
