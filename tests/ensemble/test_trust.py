import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from bend_ray.ensemble.metrics import (
    difference,
    ece,
    rejection,
    reliability,
    right_and_nats,
)


def answers(seed: int = 0, num: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probs = (2 * torch.randn(num, 5, generator=generator, dtype=torch.float64)).softmax(1)
    return probs, torch.multinomial(probs, 1, generator=generator).squeeze(1)


def test_reliability_agrees_with_scikit_learn() -> None:
    probs, labels = answers()
    confidence, predicted = probs.max(1)
    right, mean = calibration_curve((predicted == labels).numpy(), confidence.numpy(), n_bins=15)
    ours = reliability(probs, labels)
    np.testing.assert_allclose(ours["accuracy"], right)
    np.testing.assert_allclose(ours["confidence"], mean)
    assert sum(ours["count"]) == len(labels)


def test_the_gaps_of_reliability_add_up_to_the_ece() -> None:
    probs, labels = answers()
    ours = reliability(probs, labels)
    gaps = np.abs(np.subtract(ours["accuracy"], ours["confidence"]))
    assert np.average(gaps, weights=ours["count"]) == pytest.approx(ece(probs, labels))


def test_rejection_answers_the_surest_first() -> None:
    probs, labels = answers()
    entropy = -(probs * probs.log()).sum(1)
    surest = entropy.argsort()[: round(0.3 * len(labels))]
    expected = (probs[surest].argmax(1) == labels[surest]).double().mean().item()
    told = rejection(probs, labels, points=10)
    assert told["coverage"] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert told["accuracy"][2] == pytest.approx(expected)
    assert told["accuracy"][-1] == pytest.approx((probs.argmax(1) == labels).double().mean().item())


def test_fewer_images_than_points_are_each_told_once() -> None:
    probs, labels = answers(num=3)
    assert rejection(probs, labels)["coverage"] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_differences_are_paired_by_image() -> None:
    (ours, labels), (theirs, _) = answers(0), answers(1)
    both = (right_and_nats(probs, labels) for probs in (ours, theirs))
    right, nats = (difference(*each) for each in zip(*both, strict=True))
    index = torch.arange(len(labels))
    each = theirs[index, labels].log() - ours[index, labels].log()
    assert nats["mean"] == pytest.approx(each.mean().item())
    assert nats["standard_error"] == pytest.approx(each.std().item() / len(labels) ** 0.5)
    hits = [(p.argmax(1) == labels).double().mean().item() for p in (ours, theirs)]
    assert right["mean"] == pytest.approx(hits[0] - hits[1])
