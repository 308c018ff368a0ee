from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bend_ray.errors import DataError
from bend_ray.networks.batches import mixed
from bend_ray.networks.recipe import Recipe


def batches(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 1.0


@given(
    mixup=st.sampled_from([0.0, 0.2, 1.0]),
    cutmix=st.sampled_from([0.0, 1.0, 4.0]),
    size=st.tuples(*[st.integers(1, 9)] * 2),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**62),
)
@settings(max_examples=60, deadline=None)
def test_an_example_is_a_blend_or_a_mosaic_in_its_share(
    mixup: float, cutmix: float, size: tuple[int, int], batch: int, seed: int
) -> None:
    recipe, whole = Recipe(mixup=mixup, cutmix=cutmix), batches(3, batch, 2, *size)
    blended, share_K = mixed(whole, recipe, [seed, seed + 1, seed + 2])
    if not (mixup or cutmix):
        assert blended is whole
        assert share_K is None
        return
    assert share_K is not None
    assert ((share_K >= 0) & (share_K <= 1)).all()
    others = whole.roll(1, dims=1)
    for k, share in enumerate(share_K.tolist()):
        of_both = share * whole[k] + (1 - share) * others[k]
        is_own, is_other = blended[k] == whole[k], blended[k] == others[k]  # type: ignore[index]
        is_mosaic = bool((is_own | is_other).all()) and (
            batch == 1 or float(is_own.float().mean()) == pytest.approx(share, abs=1e-5)
        )
        is_blend = torch.allclose(blended[k], of_both, atol=1e-5)  # type: ignore[index]
        assert (is_mosaic and cutmix) or (is_blend and mixup)
    alone, alone_share = mixed(whole[1:2], recipe, [seed + 1])
    assert alone_share is not None
    torch.testing.assert_close(alone[0], blended[1])  # type: ignore[index]
    assert alone_share[0] == share_K[1]


def test_shares_are_of_the_beta_distribution_and_both_kinds_are_as_frequent() -> None:
    whole, seeds = batches(600, 2, 1, 8, 8), list(range(600))
    _, share_K = mixed(whole, Recipe(mixup=1.0), seeds)
    assert share_K is not None
    quarters = np.quantile(share_K, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quarters, [0.25, 0.5, 0.75], atol=0.08)
    both, _ = mixed(whole, Recipe(mixup=1.0, cutmix=1.0), seeds)
    blends = ((both != whole) & (both != whole.roll(1, dims=1))).flatten(1).any(dim=1)  # type: ignore[union-attr]
    assert float(blends.float().mean()) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("recipe", "inputs"),
    [
        (Recipe(mixup=0.2), torch.zeros(1, 3, 7, dtype=torch.int64)),
        (Recipe(cutmix=1.0), torch.zeros(1, 3, 7)),
        (Recipe(cutmix=1.0), {"a": torch.zeros(1, 3, 2, 4, 4), "b": torch.zeros(1, 3, 7)}),
    ],
)
def test_what_cannot_be_mixed_is_refused(recipe: Recipe, inputs: Tensor) -> None:
    with pytest.raises(DataError, match=r"expected floats or pixels for seeds\.recipe\.mixup"):
        mixed(inputs, recipe, [0])


def test_features_are_blended_by_name() -> None:
    inputs = {"a": batches(1, 4, 3), "b": batches(1, 4, 2, 2)}
    blended, share_K = mixed(inputs, Recipe(mixup=1.0), [3])
    assert share_K is not None
    for name, values in inputs.items():
        expected = torch.lerp(values.roll(1, dims=1), values, share_K[0])
        torch.testing.assert_close(blended[name], expected)  # type: ignore[call-overload]
