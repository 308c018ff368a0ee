from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss

from bend_ray.ensemble import metrics
from bend_ray.ensemble.votes import apply_temperature, fit_temperature
from bend_ray.process import matrix


def random_probs(num_examples: int, num_classes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_examples, num_classes, generator=generator)
    return logits.double().softmax(dim=1)


def random_classes(*shape: int, num_classes: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.randint(num_classes, shape, generator=torch.Generator().manual_seed(seed))


def slow_ece(probs: np.ndarray, labels: np.ndarray, num_bins: int) -> float:
    confidence, predicted = probs.max(axis=1), probs.argmax(axis=1)
    total = 0.0
    for m in range(num_bins):
        inside = (confidence > m / num_bins) & (confidence <= (m + 1) / num_bins)
        if inside.any():
            gap = (predicted == labels)[inside].mean() - confidence[inside].mean()
            total += abs(gap) * inside.mean()
    return total


def pairs_of_errors(predictions: torch.Tensor, labels: torch.Tensor) -> list[tuple[set, set]]:
    wrong = [set(np.flatnonzero(row != labels)) for row in predictions]
    return list(itertools.combinations(wrong, 2))


def test_scores_agree_with_scikit_learn() -> None:
    probs, labels = random_probs(200, 5), random_classes(200, num_classes=5)

    scores = metrics.score(probs, labels)

    assert scores["accuracy"] == accuracy_score(labels, probs.argmax(dim=1))
    assert scores["nll"] == pytest.approx(log_loss(labels, probs), rel=1e-12)
    one_hot = np.eye(5)[labels.numpy()]
    assert scores["brier"] == pytest.approx(
        ((probs.numpy() - one_hot) ** 2).sum(1).mean(), rel=1e-12
    )
    assert scores["ece"] == metrics.ece(probs, labels)


def test_brier_is_zero_when_certain_and_right_and_two_when_certain_and_wrong() -> None:
    probs = torch.eye(3)

    assert metrics.brier(probs, torch.tensor([0, 1, 2])) == 0
    assert metrics.brier(probs, torch.tensor([1, 2, 0])) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_label_of_probability_zero_costs_a_finite_nll(dtype: torch.dtype) -> None:
    probs = torch.tensor([[1.0, 0.0]], dtype=dtype)

    nll = metrics.score(probs, torch.tensor([1]))["nll"]
    assert nll == pytest.approx(126 * math.log(2))


def test_ece_of_a_case_done_by_hand() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    labels = torch.tensor([0, 1, 1, 1])

    # Bins of a fifth: (.8, 1] holds .9 (right); (.6, .8] holds .8 (wrong), .7 (right);
    # (.4, .6] holds .6 (right).
    assert metrics.ece(probs, labels, num_bins=5) == pytest.approx(
        (abs(1 - 0.9) + abs(1 - 1.5) + abs(1 - 0.6)) / 4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(dtype: torch.dtype) -> None:
    on_edge = torch.full((1, 5), 0.2, dtype=dtype)
    above = torch.tensor([[0.24, 0.19, 0.19, 0.19, 0.19]], dtype=dtype)
    probs, labels = torch.cat([on_edge, above]), torch.tensor([0, 1])

    # Apart, the gaps .8 and .24 add up; in one bin they would cancel to .56.
    assert metrics.ece(probs, labels, num_bins=15) == pytest.approx((0.8 + 0.24) / 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), num_bins=st.integers(1, 30), num_classes=st.integers(2, 6))
def test_ece_agrees_with_a_loop_over_bins(seed: int, num_bins: int, num_classes: int) -> None:
    probs = random_probs(60, num_classes, seed)
    labels = random_classes(60, num_classes=num_classes, seed=seed)

    assert metrics.ece(probs, labels, num_bins) == pytest.approx(
        slow_ece(probs.numpy(), labels.numpy(), num_bins), abs=1e-12
    )


def test_member_scores_are_those_of_each_member_by_itself() -> None:
    logits, labels = (
        torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0)),
        random_classes(50),
    )

    probs = logits.double().softmax(dim=2)

    alone = [metrics.score(member, labels) for member in probs]
    expected = [each["accuracy"] for each in alone]
    assert metrics.member_accuracy(logits, labels).tolist() == expected
    nll = -metrics.true_log_probs(logits, labels).mean(dim=1)
    assert nll.tolist() == pytest.approx([each["nll"] for each in alone], rel=1e-12)


def test_the_nll_of_extreme_logits_is_exact_and_of_a_diverged_member_nan() -> None:
    logits = torch.tensor([[[1000.0, 0.0]], [[math.nan, 0.0]]])

    wrong, diverged = -metrics.true_log_probs(logits, torch.tensor([1]))[:, 0]

    assert wrong == 1000
    assert math.isnan(diverged)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), num_members=st.integers(2, 6), num_examples=st.integers(1, 20))
def test_diversity_agrees_with_a_loop_over_pairs(
    seed: int, num_members: int, num_examples: int
) -> None:
    predictions = random_classes(num_members, num_examples, seed=seed)
    labels = random_classes(num_examples, seed=seed + 1)
    disagreements = [
        (a != b).double().mean().item() for a, b in itertools.combinations(predictions, 2)
    ]
    ious, qs = [], []
    for a, b in pairs_of_errors(predictions, labels):
        if a | b:
            ious.append(len(a & b) / len(a | b))
        right = num_examples - len(a | b)
        same, different = len(a & b) * right, len(a - b) * len(b - a)
        if same + different:
            qs.append((same - different) / (same + different))

    assert metrics.disagreements(predictions).mean() == pytest.approx(np.mean(disagreements))
    iou = np.mean(ious) if ious else math.nan
    assert metrics.error_iou(predictions != labels) == pytest.approx(iou, nan_ok=True)
    q = np.mean(qs) if qs else math.nan
    assert metrics.q_statistic(predictions != labels) == pytest.approx(q, nan_ok=True)


def test_pairwise_disagreement_agrees_with_a_loop() -> None:
    a, b = random_classes(3, 17), random_classes(4, 17, seed=2)

    expected = [[(i != j).double().mean().item() for j in b] for i in a]

    assert metrics.pairwise_disagreement(a, b).tolist() == expected


def test_twins_never_disagree_and_err_together() -> None:
    predictions = random_classes(1, 30).expand(3, 30)
    labels = random_classes(30, seed=2)

    assert metrics.disagreements(predictions).mean() == 0
    assert metrics.error_iou(predictions != labels) == 1
    assert metrics.q_statistic(predictions != labels) == 1


def test_one_member_has_no_diversity() -> None:
    predictions, labels = random_classes(1, 30), random_classes(30, seed=2)

    assert math.isnan(metrics.disagreements(predictions).mean())
    assert math.isnan(metrics.error_iou(predictions != labels))
    assert math.isnan(metrics.q_statistic(predictions != labels))


def test_members_that_never_err_have_no_overlap_of_errors() -> None:
    labels = random_classes(30)

    assert math.isnan(metrics.error_iou(labels.expand(2, 30) != labels))
    assert math.isnan(metrics.q_statistic(labels.expand(2, 30) != labels))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\) and labels of shape \(2,\)"):
        metrics.score(torch.ones(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="at least one example"):
        metrics.score(torch.ones(0, 2), torch.zeros(0))
    with pytest.raises(RuntimeError, match="same number of columns"):
        metrics.pairwise_disagreement(random_classes(2, 5), random_classes(2, 6))


@settings(max_examples=20, deadline=None)
@given(members=st.integers(2, 9), seed=st.integers(0, 99), chunk=st.sampled_from([1, 200, 2**26]))
def test_chunks_of_members_or_examples_change_no_score(members: int, seed: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (23,), generator=generator)
    probs = torch.rand(23, 4, generator=generator).double().softmax(dim=1)
    said = torch.randint(4, (members, 23), generator=generator)

    def scores() -> list[float]:
        return [
            *metrics.score(probs, labels).values(),
            metrics.error_iou(said != labels),
            metrics.q_statistic(said != labels),
            metrics.disagreements(said).mean().item(),
            *metrics.pairwise_disagreement(said, said[:2]).flatten().tolist(),
            fit_temperature(probs, labels),
            *apply_temperature(probs, 0.7).flatten().tolist(),
        ]

    whole = scores()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "BLOCK_BYTES", chunk)
        patch.setattr(matrix, "HELD_BYTES", 0)
        assert scores() == pytest.approx(whole, rel=1e-9, nan_ok=True)
