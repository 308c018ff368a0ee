"""Closed forms of the normal distribution, against sampling, scipy and numerical integrals."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from bend_ray.ensemble.metrics import crps, intervals, log_density, pit, pit_error

MEAN = torch.tensor([[0.0], [3.0], [-2.0]], dtype=torch.float64)
VARIANCE = torch.tensor([[1.0], [4.0], [0.25]], dtype=torch.float64)
TARGET = torch.tensor([[0.5], [-1.0], [-2.0]], dtype=torch.float64)


def drawn(spread: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means, claimed variances, and targets that have ``spread`` times the claimed deviation."""
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(count, 2)), np.exp(rng.normal(size=(count, 2)))
    targets = mean + spread * std * rng.normal(size=(count, 2))
    return torch.tensor(mean), torch.tensor(std**2), torch.tensor(targets)


def test_the_density_is_scipys() -> None:
    expected = scipy.stats.norm.logpdf(TARGET, MEAN, VARIANCE.sqrt())
    assert log_density(MEAN, VARIANCE, TARGET).numpy() == pytest.approx(expected, rel=1e-12)


def test_crps_is_the_integral_it_is_defined_as() -> None:
    x = np.linspace(-60, 60, 2_000_001)
    slow = []
    for mean, variance, target in zip(MEAN, VARIANCE, TARGET, strict=True):
        below = scipy.stats.norm.cdf(x, mean.item(), math.sqrt(variance.item()))
        slow.append(np.trapezoid((below - (x >= target.item())) ** 2, x))
    assert crps(MEAN, VARIANCE, TARGET) == pytest.approx(np.mean(slow), abs=1e-4)


@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_intervals_cover_what_the_normal_distribution_says(spread: float) -> None:
    mean, variance, targets = drawn(spread)
    coverage, width = intervals(mean, variance, targets)
    z = scipy.stats.norm.ppf([0.75, 0.95, 0.975])
    expected = 2 * scipy.stats.norm.cdf(z / spread) - 1
    assert coverage == pytest.approx(expected, abs=0.01)
    assert width == pytest.approx(2 * z * variance.sqrt().mean().item(), rel=1e-9)


def test_the_pit_of_calibrated_predictions_is_uniform_and_of_others_is_not() -> None:
    assert pit_error(*drawn(1.0)) < 0.01
    for spread in (0.5, 2.0):
        assert pit_error(*drawn(spread)) > 0.05
    mean, variance, targets = drawn(1.0)
    assert pit_error(mean - 100, variance, targets) == pytest.approx(0.5, abs=0.01)
    assert pit(mean, variance, mean).numpy() == pytest.approx(0.5)
