"""How far probabilities can be trusted: reliability, rejection, and differences image by image.

Shape letters: N examples, C classes, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bend_ray.ensemble.metrics import by_example, check_examples
from bend_ray.ensemble.rule import SMALLEST_PROBABILITY
from bend_ray.process.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reliability:
    """Bins of equal width over the probability of the most probable class; empty bins are out.

    Attributes:
        confidence: mean probability of the answer given.
        accuracy: share of right answers.
        count: examples.
    """

    confidence: list[float]
    accuracy: list[float]
    count: list[int]


def reliability(probs_NC: Tensor, labels_N: Tensor, num_bins: int = 15) -> Reliability:
    """The reliability diagram whose gaps ``metrics.ece`` adds up.

    Agrees with ``sklearn.calibration.calibration_curve`` of "the answer is right".

    Source: Guo et al., "On calibration of modern neural networks", 2017, section 2.
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    confidence_N, predicted_N = probs_NC.double().max(dim=1)
    edges = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    bin_N = torch.bucketize(confidence_N, edges)
    count_B = bin_N.bincount(minlength=num_bins)
    confidence_B = bin_N.bincount(confidence_N, minlength=num_bins)
    right_B = bin_N.bincount((predicted_N == labels_N).double(), minlength=num_bins)
    filled = count_B > 0
    return Reliability(
        confidence=(confidence_B[filled] / count_B[filled]).tolist(),
        accuracy=(right_B[filled] / count_B[filled]).tolist(),
        count=count_B[filled].tolist(),
    )


@dataclass(frozen=True)
class Rejection:
    """Accuracy on the share, rising to 1, that is answered when the least certain are refused."""

    coverage: list[float]
    accuracy: list[float]


def rejection(probs_NC: Tensor, labels_N: Tensor, points: int = 50) -> Rejection:
    """Answer the examples of lowest predictive entropy first, at equally spaced coverages.

    Source: El-Yaniv & Wiener, "On the foundations of noise-free selective classification", 2010.
    """
    check_examples(probs_NC.shape[:-1], labels_N)
    entropy_N = by_example(lambda p: torch.special.entr(p.double()).sum(dim=1), probs_NC)
    return rejected(entropy_N, (probs_NC.argmax(dim=1) == labels_N).double(), points)


def rejected(uncertainty_N: Tensor, score_N: Tensor, points: int = 50) -> Rejection:
    """As ``rejection``, by any uncertainty, of any score of an example."""
    num = len(score_N)
    right_N = score_N[uncertainty_N.argsort(stable=True)].double().cumsum(dim=0)
    counts = sorted({max(1, round(num * (i + 1) / points)) for i in range(points)})
    return Rejection(
        coverage=[count / num for count in counts],
        accuracy=[right_N[count - 1].item() / count for count in counts],
    )


@dataclass(frozen=True)
class PairedDifference:
    """A mean of differences image by image, and its standard error over the images."""

    mean: float
    standard_error: float


def differences(
    ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]
) -> tuple[PairedDifference, PairedDifference]:
    """Our score and our NLL minus theirs, paired by example; each as ``each`` of a task has it."""
    score_N, nats_N = (a - b for a, b in zip(ours, theirs, strict=True))
    return _difference(score_N), _difference(nats_N)


def right_and_nats(probs_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each answer is right, and its NLL, each ``(N,)`` float64."""
    check_examples(probs_NC.shape[:-1], labels_N)
    right_N = (probs_NC.argmax(dim=1) == labels_N).double()
    true_N = probs_NC.double().gather(1, labels_N.long()[:, None]).squeeze(1)
    return right_N, -true_N.clamp(min=SMALLEST_PROBABILITY).log()


def _difference(each_N: Tensor) -> PairedDifference:
    # One image has no spread; nan becomes null where it is stored.
    error = each_N.std() / len(each_N) ** 0.5 if len(each_N) > 1 else each_N.new_tensor(torch.nan)
    return PairedDifference(each_N.mean().item(), error.item())
