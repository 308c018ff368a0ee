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
from bend_ray.process.matrix import per_block, scratch

if TYPE_CHECKING:
    from collections.abc import Callable

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
    return by_example(_squared_errors, probs_NC, labels_N).mean().item()


def _squared_errors(probs_NC: Tensor, labels_N: Tensor) -> Tensor:
    truth_NC = torch.nn.functional.one_hot(labels_N.long(), num_classes=probs_NC.shape[1])
    return (probs_NC.double() - truth_NC).square().sum(dim=1)


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
    return disagreements(predictions_EN).mean().item()


def disagreements(predictions_EN: Tensor) -> Tensor:
    """Each member's mean disagreement with the others, (E,); nan for one alone."""
    num_members, num_examples = predictions_EN.shape
    agreeing_E = torch.zeros(num_members, dtype=torch.float64)
    for part in torch.split(predictions_EN, _width(num_members), dim=1):
        part_En = part.long()
        votes_Cn = part_En.new_zeros(int(part_En.max()) + 1, part_En.shape[1])
        votes_Cn.scatter_add_(0, part_En, torch.ones_like(part_En))
        agreeing_E += (votes_Cn.gather(0, part_En) - 1).double().sum(dim=1)
    return 1 - agreeing_E / ((num_members - 1) * num_examples)


def pairwise_disagreement(a_EN: Tensor, b_MN: Tensor) -> Tensor:
    """Share of examples on which each member of a and each member of b differ, (E, M) float64."""
    if a_EN.shape[1:] != b_MN.shape[1:]:
        raise ValueError(
            f"expected predictions on the same examples, got shapes {tuple(a_EN.shape)} and "
            f"{tuple(b_MN.shape)}"
        )
    # The "0-norm" counts unequal entries without an (E, M, N) array; float32 is exact to 2**24.
    counts_EM = torch.zeros(len(a_EN), len(b_MN), dtype=torch.float64)
    width = _width(len(a_EN) + len(b_MN))
    for a_En, b_Mn in zip(*(torch.split(each, width, dim=1) for each in (a_EN, b_MN)), strict=True):
        counts_EM += torch.cdist(a_En.float(), b_Mn.float(), p=0.0)
    return counts_EM / a_EN.shape[1]


def error_iou(predictions_EN: Tensor, labels_N: Tensor) -> float:
    """Overlap of two members' errors, |both wrong| / |either wrong|, in [0, 1], mean over pairs.

    Pairs that never err are skipped; nan if no pair is left.

    Source: Wang et al., "Neural network diffusion", 2024, where it is the similarity of models.
    """
    check_examples(predictions_EN.shape[1:], labels_N)
    return overlap(predictions_EN != labels_N)


def overlap(wrong_EN: Tensor) -> float:
    """As ``error_iou``, of what each member gets wrong."""
    return _mean_over_pairs(_iou, wrong_EN)


def _iou(both: Tensor, only_a: Tensor, only_b: Tensor, neither: Tensor) -> tuple[Tensor, Tensor]:
    return both, both + only_a + only_b


def q_statistic(predictions_EN: Tensor, labels_N: Tensor) -> float:
    """Yule's Q of two members being right, in [-1, 1], mean over pairs: 0 for independent members.

    Pairs with a zero denominator are skipped; nan if no pair is left.

    Source: Kuncheva & Whitaker, "Measures of diversity in classifier ensembles", 2003.
    """
    check_examples(predictions_EN.shape[1:], labels_N)
    return _mean_over_pairs(_q, predictions_EN != labels_N)


def _q(both: Tensor, only_a: Tensor, only_b: Tensor, neither: Tensor) -> tuple[Tensor, Tensor]:
    same, different = both * neither, only_a * only_b
    return same - different, same + different


def _mean_over_pairs(ratio: Callable[..., tuple[Tensor, Tensor]], wrong_EN: Tensor) -> float:
    """Mean of a ratio of how many examples both, only one, only the other, or neither get wrong.

    Pairs of members without a denominator are left out; some hundred members at a time.
    """
    num_members, num_examples = wrong_EN.shape
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    groups = torch.split(torch.arange(num_members), min(1024, _width(num_examples)))
    for number, first in enumerate(groups):
        one_EN = wrong_EN[first].double()
        for second in groups[number:]:
            other_EN = wrong_EN[second].double()
            both = one_EN @ other_EN.T
            only_a = one_EN.sum(dim=1)[:, None] - both
            only_b = other_EN.sum(dim=1) - both
            above, below = ratio(both, only_a, only_b, num_examples - both - only_a - only_b)
            counted = (first[:, None] < second) & (below > 0)
            total += (above / below)[counted].sum()
            pairs += int(counted.sum())
    return total.item() / pairs if pairs else float("nan")


def by_example(work: Callable[..., Tensor], probs_NC: Tensor, *more: Tensor) -> Tensor:
    """What ``work`` gives of each example, ``(N, ...)``; of some thousand at a time."""
    tensors = (probs_NC, *more)
    num_examples, size = len(probs_NC), _width(probs_NC.shape[1])
    if num_examples <= size:
        return work(*tensors)
    found: Tensor | None = None
    for start in range(0, num_examples, size):
        own = slice(start, start + size)
        part = work(*(each[own] for each in tensors))
        found = scratch(num_examples, *part.shape[1:]) if found is None else found
        found[own] = part
    assert found is not None
    return found


def _width(num_members: int) -> int:
    """How many float64 of each of so many are a chunk."""
    return per_block(8 * num_members)


def check_examples(shape: torch.Size, labels_N: Tensor) -> None:
    """Raise ValueError unless there is one label an example, and an example."""
    if labels_N.dim() != 1 or shape != labels_N.shape or len(labels_N) == 0:
        raise ValueError(
            f"expected one label for each of at least one example, got examples of shape "
            f"{tuple(shape)} and labels of shape {tuple(labels_N.shape)}"
        )
