"""How good the answer is, how far it can be trusted, and how much the members differ.

Shape letters: E and M members, N examples, T targets, C classes, B bins. Every score is a fraction
of 1, nats, or in the units of targets, never a percentage, and is computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# Lazy, because the axis files of this room import these functions at load.
from bend_ray.process.lazy import Tensor, torch
from bend_ray.process.matrix import per_block, scratch

SMALLEST_PROBABILITY = 2.0**-126
"""The smallest normal float32: no example costs more than 87.3 nats, whatever the dtype."""
LEVELS = (0.5, 0.9, 0.95)
"""Of the central intervals that are scored."""
SMALLEST_VARIANCE = 1e-12
"""As a share of the targets' variance: members that agree exactly have none."""
KEPT = 0.95
"""Of inputs out of distribution, the share that is to be found."""

Floats = NDArray[np.float64]


def score(probs_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """``accuracy``, ``nll`` (as of ``right_and_nats``), ``brier`` and ``ece`` of probabilities.

    ValueError if the shapes do not fit, or there is no example (so for every score).
    """
    right_N, nats_N = right_and_nats(probs_NC, labels_N)
    means = {"accuracy": right_N.mean().item(), "nll": nats_N.mean().item()}
    return means | {"brier": brier(probs_NC, labels_N), "ece": ece(probs_NC, labels_N)}


def right_and_nats(probs_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the most probable class, the lowest of equals, is the label; and its NLL in nats.

    Each ``(N,)`` float64. Probabilities are clipped at ``SMALLEST_PROBABILITY``, so a vote share of
    zero for the label costs 87.3 nats instead of infinitely many. The mean agrees with
    ``sklearn.metrics.log_loss`` where nothing is clipped.
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    right_N = (probs_NC.argmax(dim=1) == labels_N).double()
    true_N = probs_NC.double().gather(1, labels_N.long()[:, None]).squeeze(1)
    return right_N, -true_N.clamp(min=SMALLEST_PROBABILITY).log()


def brier(probs_NC: Tensor, labels_N: Tensor) -> float:
    """Squared distance to the one-hot label, summed over classes, mean over examples: in [0, 2].

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.
    """
    check_examples(probs_NC.shape[:-1], labels_N)

    def squared(probs_NC: Tensor, labels_N: Tensor) -> Tensor:
        truth_NC = torch.nn.functional.one_hot(labels_N.long(), num_classes=probs_NC.shape[1])
        return (probs_NC.double() - truth_NC).square().sum(dim=1)

    return by_example(squared, probs_NC, labels_N).mean().item()


def ece(probs_NC: Tensor, labels_N: Tensor, num_bins: int = 15) -> float:
    """Expected calibration error of the top label, in [0, 1].

    The mean of |accuracy - confidence| over bins ((m - 1) / num_bins, m / num_bins], each weighted
    by its share of the examples.

    Source: Guo et al., "On calibration of modern neural networks", 2017, equation 3.
    """
    bins = reliability(probs_NC, labels_N, num_bins)
    confidence_B, accuracy_B, count_B = map(np.array, bins.values())
    return float(np.average(abs(accuracy_B - confidence_B), weights=count_B))


def member_accuracy(logits_ENC: Tensor, labels_N: Tensor) -> Tensor:
    """Accuracy of every member, (E,) float64."""
    check_examples(logits_ENC.shape[1:-1], labels_N)
    return (logits_ENC.argmax(dim=-1) == labels_N).double().mean(dim=1)


def true_log_probs(logits_ENC: Tensor, labels_N: Tensor) -> Tensor:
    """Log probability that each member gives to the label, (E, N) float64.

    Finite logits give finite values, others nan: their member diverged.
    """
    check_examples(logits_ENC.shape[1:-1], labels_N)
    index_N1 = labels_N.long()[:, None]
    # A member at a time: the float64 copy of all logits would be the largest thing in memory.
    probs = (torch.log_softmax(logits_NC.double(), dim=1) for logits_NC in logits_ENC)
    return torch.stack([log_probs_NC.gather(1, index_N1).squeeze(1) for log_probs_NC in probs])


def disagreements(predictions_EN: Tensor) -> Tensor:
    """Mean share of examples on which each member and another differ, (E,); nan for one; O(E N)."""
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
    # The "0-norm" counts unequal entries without an (E, M, N) array; float32 is exact to 2**24.
    counts_EM = torch.zeros(len(a_EN), len(b_MN), dtype=torch.float64)
    width = _width(len(a_EN) + len(b_MN))
    for a_En, b_Mn in zip(*(torch.split(each, width, dim=1) for each in (a_EN, b_MN)), strict=True):
        counts_EM += torch.cdist(a_En.float(), b_Mn.float(), p=0.0)
    return counts_EM / a_EN.shape[1]


def error_iou(wrong_EN: Tensor) -> float:
    """Overlap of two members' errors, |both wrong| / |either wrong|, in [0, 1], mean over pairs.

    By what each member gets wrong. Pairs that never err are skipped; nan if no pair is left.

    Source: Wang et al., "Neural network diffusion", 2024, where it is the similarity of models.
    """
    return _mean_over_pairs(lambda both, a, b, neither: (both, both + a + b), wrong_EN)


def q_statistic(wrong_EN: Tensor) -> float:
    """Yule's Q of two members being right, in [-1, 1], mean over pairs: 0 for independent members.

    By what each gets wrong. Pairs with a zero denominator are skipped; nan if no pair is left.

    Source: Kuncheva & Whitaker, "Measures of diversity in classifier ensembles", 2003.
    """

    def q(both: Tensor, a: Tensor, b: Tensor, neither: Tensor) -> tuple[Tensor, Tensor]:
        same, different = both * neither, a * b
        return same - different, same + different

    return _mean_over_pairs(q, wrong_EN)


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


def reliability(probs_NC: Tensor, labels_N: Tensor, num_bins: int = 15) -> dict[str, list[float]]:
    """The reliability diagram whose gaps ``ece`` adds up: bins of equal width that are not empty.

    Gives ``confidence``, the mean probability of the answers given, ``accuracy``, the share of
    right ones, and ``count``, of examples. Agrees with ``sklearn.calibration.calibration_curve`` of
    "the answer is right".

    Source: Guo et al., "On calibration of modern neural networks", 2017, section 2.
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    confidence_N, predicted_N = probs_NC.max(dim=1)
    edges = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    # Rounded like the probabilities: a float32 0.2 lies on the edge 3/15, not just above it.
    bin_N = torch.bucketize(confidence_N, edges.to(probs_NC))
    count_B = bin_N.bincount(minlength=num_bins)
    confidence_B = bin_N.bincount(confidence_N.double(), minlength=num_bins)
    right_B = bin_N.bincount((predicted_N == labels_N).double(), minlength=num_bins)
    filled = count_B > 0
    return {
        "confidence": (confidence_B[filled] / count_B[filled]).tolist(),
        "accuracy": (right_B[filled] / count_B[filled]).tolist(),
        "count": count_B[filled].tolist(),
    }


def rejection(probs_NC: Tensor, labels_N: Tensor, points: int = 50) -> dict[str, list[float]]:
    """``accuracy`` by ``coverage``, the share that is answered, equally spaced and rising to 1.

    Those of lowest predictive entropy are answered first.

    Source: El-Yaniv & Wiener, "On the foundations of noise-free selective classification", 2010.
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    entropy_N = by_example(lambda p: torch.special.entr(p.double()).sum(dim=1), probs_NC)
    return rejected(entropy_N, (probs_NC.argmax(dim=1) == labels_N).double(), points)


def rejected(uncertainty_N: Tensor, score_N: Tensor, points: int = 50) -> dict[str, list[float]]:
    """As ``rejection``, by any uncertainty, of any score of an example."""
    num = len(score_N)
    right_N = score_N[uncertainty_N.argsort(stable=True)].double().cumsum(dim=0)
    counts = sorted({max(1, round(num * (i + 1) / points)) for i in range(points)})
    return {
        "coverage": [count / num for count in counts],
        "accuracy": [right_N[count - 1].item() / count for count in counts],
    }


def difference(ours_N: Tensor, theirs_N: Tensor) -> dict[str, float]:
    """``mean`` of ours minus theirs, paired by example, and its ``standard_error`` over these."""
    each_N = ours_N - theirs_N
    # One image has no spread; nan becomes null where it is stored.
    error = each_N.std() / len(each_N) ** 0.5 if len(each_N) > 1 else each_N.new_tensor(torch.nan)
    return {"mean": each_N.mean().item(), "standard_error": error.item()}


def log_density(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Log density of a normal at the targets, in nats."""
    return -0.5 * ((targets - mean) ** 2 / variance + (2 * math.pi * variance).log())


def crps(mean: Tensor, variance: Tensor, targets: Tensor) -> float:
    """Continuous ranked probability score: the absolute error, of a distribution; lower is better.

    Source: Gneiting & Raftery, "Strictly proper scoring rules", 2007, equation 21.
    """
    deviation = variance.sqrt()
    z = (targets - mean) / deviation
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    inside = z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi)
    mean_score: float = (deviation * inside).mean().item()
    return mean_score


def intervals(mean: Tensor, variance: Tensor, targets: Tensor) -> tuple[tuple[float, ...], ...]:
    """Share of targets inside of central intervals of ``LEVELS``, and the mean width of each."""
    deviation, error = variance.sqrt(), (targets - mean).abs()
    half = [torch.special.ndtri(torch.tensor(0.5 + p / 2, dtype=mean.dtype)) for p in LEVELS]
    return (
        tuple((error <= z * deviation).double().mean().item() for z in half),
        tuple((2 * z * deviation).mean().item() for z in half),
    )


def pit(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Probability integral transform: where in its predicted distribution each target lies.

    Uniform in [0, 1] where predictions are calibrated. Source: Dawid, 1984.
    """
    share: Tensor = torch.special.ndtr((targets - mean) / variance.sqrt())
    return share


def pit_error(mean: Tensor, variance: Tensor, targets: Tensor) -> float:
    """Area between the distribution of the PIT and the uniform one: 0 calibrated, 1/2 at most."""
    found = pit(mean, variance, targets).flatten().sort().values
    ideal = (torch.arange(len(found), dtype=found.dtype) + 0.5) / len(found)
    return (found - ideal).abs().mean().item()


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
