from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.standardize import Moments, Standardizer

LAYOUT = ParameterLayout.of(nn.Linear(3, 4))


def population(num_models: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    theta_KP = torch.randn(num_models, LAYOUT.size, generator=generator)
    theta_KP[:, :12] = theta_KP[:, :12] * 0.01 + 5
    return theta_KP


def moments_of(theta_KP: Tensor) -> Moments:
    moments = Moments.empty(theta_KP.shape[1])
    moments.update(theta_KP)
    return moments


def test_moments_are_numpys() -> None:
    theta_KP = population(20)
    moments = moments_of(theta_KP)
    wide_KP = theta_KP.numpy().astype(np.float64)
    np.testing.assert_allclose(moments.mean_P, wide_KP.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.m2_P / 20, wide_KP.var(0), rtol=1e-10)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=4), st.integers(0, 12))
def test_batches_and_merges_give_the_one_pass_result(cuts: list[int], middle: int) -> None:
    theta_KP = population(12)
    left, right = Moments.empty(LAYOUT.size), Moments.empty(LAYOUT.size)
    edges = [0, *sorted(cuts), 12]
    for number, (start, stop) in enumerate(pairwise(edges)):
        (left if number < middle else right).update(theta_KP[start:stop])
    left.merge(right)
    whole = moments_of(theta_KP)
    assert left.count == 12
    torch.testing.assert_close(left.mean_P, whole.mean_P, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(left.m2_P, whole.m2_P, rtol=1e-10, atol=1e-12)


def test_merging_leaves_the_other_side_alone() -> None:
    left, right = moments_of(population(3)), moments_of(population(4, seed=1))
    before = right.mean_P.clone()
    left.merge(right)
    left.update(population(2))
    assert right.count == 4
    assert torch.equal(right.mean_P, before)


def test_each_layer_comes_out_with_mean_zero_and_mean_square_one() -> None:
    theta_KP = population(50)
    x_KP = Standardizer.fit(moments_of(theta_KP), LAYOUT).apply(theta_KP)
    torch.testing.assert_close(x_KP.mean(0), torch.zeros(LAYOUT.size), rtol=0, atol=1e-4)
    for layer in LAYOUT.unflatten(x_KP).values():
        assert float(layer.square().mean()) == pytest.approx(1, rel=1e-4)


def test_there_is_one_scale_a_layer() -> None:
    standardizer = Standardizer.fit(moments_of(population(9)), LAYOUT)
    weight, bias = LAYOUT.unflatten(standardizer.scale_P).values()
    assert weight.unique().numel() == bias.unique().numel() == 1
    assert float(weight[0, 0]) == pytest.approx(0.01, rel=0.3)


def test_vectors_come_back() -> None:
    theta_KP = population(9)
    standardizer = Standardizer.fit(moments_of(theta_KP), LAYOUT)
    torch.testing.assert_close(standardizer.invert(standardizer.apply(theta_KP)), theta_KP)
    restored = Standardizer.from_state(standardizer.state())
    assert torch.equal(restored.apply(theta_KP), standardizer.apply(theta_KP))


def test_a_layer_in_which_all_agree_maps_to_zero_and_back_to_itself() -> None:
    theta_KP = population(7)
    theta_KP[:, 12:] = torch.tensor([0.1, -3.7, 1e-12, 1e7])
    moments = moments_of(theta_KP[:3])
    moments.update(theta_KP[3:])
    standardizer = Standardizer.fit(moments, LAYOUT)
    x_KP = standardizer.apply(theta_KP)
    assert torch.equal(x_KP[:, 12:], torch.zeros(7, 4))
    assert torch.equal(standardizer.invert(x_KP)[:, 12:], theta_KP[:, 12:])
    drawn = standardizer.invert(torch.randn(5, LAYOUT.size))[:, 12:]
    torch.testing.assert_close(drawn, theta_KP[:5, 12:], rtol=1e-6, atol=1e-7)


def test_moments_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one vector"):
        Standardizer.fit(Moments.empty(LAYOUT.size), LAYOUT)
