from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bend_ray.parameters.features import Standardizer
from bend_ray.parameters.layout import ParameterLayout

LAYOUT = ParameterLayout.of(nn.Linear(3, 4))


def population(num_models: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    theta_KP = torch.randn(num_models, LAYOUT.size, generator=generator)
    theta_KP[:, :12] = theta_KP[:, :12] * 0.01 + 5
    return theta_KP


def fitted(theta_KP: Tensor) -> Standardizer:
    return Standardizer.fit(LAYOUT, [theta_KP])


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(1, LAYOUT.size - 1), max_size=4))
def test_any_blocks_of_columns_give_numpys_statistics(cuts: set[int]) -> None:
    theta_KP = population(20)
    edges = [0, *sorted(cuts), LAYOUT.size]
    blocks = [theta_KP[:, start:stop] for start, stop in pairwise(edges)]
    found = Standardizer.fit(LAYOUT, blocks)
    wide_KP = theta_KP.numpy().astype(np.float64)
    np.testing.assert_allclose(found.mean_P, wide_KP.mean(0), rtol=1e-6)
    scales = [wide_KP[:, own].var(0).mean() ** 0.5 for own in (slice(12), slice(12, None))]
    np.testing.assert_allclose(found.scale_P.unique(), sorted(scales), rtol=1e-6)


def test_each_layer_comes_out_with_mean_zero_and_mean_square_one() -> None:
    theta_KP = population(50)
    x_KP = fitted(theta_KP).apply(theta_KP)
    torch.testing.assert_close(x_KP.mean(0), torch.zeros(LAYOUT.size), rtol=0, atol=1e-4)
    for layer in LAYOUT.unflatten(x_KP).values():
        assert float(layer.square().mean()) == pytest.approx(1, rel=1e-4)


def test_there_is_one_scale_a_layer() -> None:
    standardizer = fitted(population(9))
    weight, bias = LAYOUT.unflatten(standardizer.scale_P).values()
    assert weight.unique().numel() == bias.unique().numel() == 1
    assert float(weight[0, 0]) == pytest.approx(0.01, rel=0.3)


def test_vectors_come_back() -> None:
    theta_KP = population(9)
    standardizer = fitted(theta_KP)
    torch.testing.assert_close(standardizer.invert(standardizer.apply(theta_KP)), theta_KP)


def test_a_layer_in_which_all_agree_maps_to_zero_and_back_to_itself() -> None:
    theta_KP = population(7)
    theta_KP[:, 12:] = torch.tensor([0.1, -3.7, 1e-12, 1e7])
    standardizer = fitted(theta_KP)
    x_KP = standardizer.apply(theta_KP)
    assert torch.equal(x_KP[:, 12:], torch.zeros(7, 4))
    assert torch.equal(standardizer.invert(x_KP)[:, 12:], theta_KP[:, 12:])
    drawn = standardizer.invert(torch.randn(5, LAYOUT.size))[:, 12:]
    torch.testing.assert_close(drawn, theta_KP[:5, 12:], rtol=1e-6, atol=1e-7)
