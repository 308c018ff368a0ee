from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bend_ray.errors import ConfigError
from bend_ray.parameters.features import PrincipalBasis, Standardizer, gram, gram_sums, mix
from bend_ray.parameters.layout import ParameterLayout

LAYOUT = ParameterLayout.of(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))
SPREADS = torch.tensor([0.1, 0.01, 1.0, 0.3, 0.05, 2.0, 10.0, 100.0])


def population(num_models: int, seed: int = 0) -> Tensor:
    """Layers of very different spread around means that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([entry.size for entry in LAYOUT.entries])
    spread_P = torch.repeat_interleave(SPREADS, sizes)
    centre_P = torch.randn(LAYOUT.size, generator=generator)
    return centre_P + spread_P * torch.randn(num_models, LAYOUT.size, generator=generator)


def training(num_models: int, num_held_out: int = 0) -> Tensor:
    """Held-out rows stand in between, not at the end."""
    train_K = torch.ones(num_models, dtype=torch.bool)
    train_K[1 : 1 + 2 * num_held_out : 2] = False
    return train_K


def fit(theta_KP: Tensor, train_K: Tensor) -> tuple[PrincipalBasis, Tensor]:
    return PrincipalBasis.fit(whole(theta_KP, train_K), train_K)


def whole(theta_KP: Tensor, train_K: Tensor) -> Tensor:
    """The Gram matrix, of one block."""
    return gram([summed(theta_KP, train_K, [0, LAYOUT.size])], LAYOUT, train_K)


def summed(theta_KP: Tensor, train_K: Tensor, edges: list[int]) -> dict[str, Tensor]:
    """The sums of the columns between the first and the last edge, a block at a time."""
    blocks = (theta_KP[:, start:stop] for start, stop in pairwise(edges))
    return gram_sums(LAYOUT, train_K, blocks, edges[0])


def standardised(theta_KP: Tensor, train_K: Tensor) -> np.ndarray:
    return Standardizer.fit(LAYOUT, [theta_KP[train_K]]).apply(theta_KP.double()).numpy()


@pytest.mark.parametrize("num_models", [12, 120], ids=["K < P", "K > P"])
def test_training_models_decode_to_themselves(num_models: int) -> None:
    theta_KP, train_K = population(num_models), training(num_models)
    basis, coefficients_KR = fit(theta_KP, train_K)
    assert coefficients_KR.shape == (num_models, min(num_models - 1, LAYOUT.size))
    decoded_KP = mix(basis.weights(coefficients_KR), theta_KP)
    for name, decoded in LAYOUT.unflatten(decoded_KP).items():
        original = LAYOUT.unflatten(theta_KP)[name]
        assert float((decoded - original).norm() / original.norm()) < 1e-5, name


@pytest.mark.parametrize("num_models", [9, 90])
def test_coefficients_are_numpys_principal_components(num_models: int) -> None:
    theta_KP, train_K = population(num_models), training(num_models)
    basis, coefficients_KR = fit(theta_KP, train_K)
    left, singular, _ = np.linalg.svd(standardised(theta_KP, train_K), full_matrices=False)
    rank = coefficients_KR.shape[1]
    expected = np.abs(left * singular)[:, :rank] / float(basis.scale)
    np.testing.assert_allclose(coefficients_KR.abs(), expected, atol=1e-4)
    assert bool((coefficients_KR.abs().max(0).values == coefficients_KR.max(0).values).all())


def test_held_out_models_are_projected_onto_the_training_directions() -> None:
    theta_KP, train_K = population(14), training(14, num_held_out=4)
    basis, coefficients_KR = fit(theta_KP, train_K)
    x_KP = standardised(theta_KP, train_K)
    rows = train_K.numpy()
    _, _, directions = np.linalg.svd(x_KP[rows], full_matrices=False)
    projected = x_KP @ directions[:9].T / float(basis.scale)
    np.testing.assert_allclose(coefficients_KR.abs(), np.abs(projected), atol=1e-4)
    decoded = mix(basis.weights(coefficients_KR[~train_K]), theta_KP[train_K])
    seen = standardised(
        torch.cat([theta_KP[train_K], decoded]), training(14) & (torch.arange(14) < 10)
    )
    expected = x_KP[~rows] @ directions[:9].T @ directions[:9]
    np.testing.assert_allclose(seen[10:], expected, atol=1e-3)


def test_held_out_models_do_not_change_the_basis() -> None:
    theta_KP, train_K = population(14), training(14, num_held_out=4)
    basis, coefficients_KR = fit(theta_KP, train_K)
    alone, coefficients_TR = fit(theta_KP[train_K], training(10))
    torch.testing.assert_close(basis.to_weights_RT, alone.to_weights_RT)
    torch.testing.assert_close(coefficients_KR[train_K], coefficients_TR)


def test_distances_between_models_are_kept() -> None:
    theta_KP, train_K = population(15), training(15)
    basis, coefficients_KR = fit(theta_KP, train_K)
    expected = torch.pdist(torch.from_numpy(standardised(theta_KP, train_K)))
    distances = torch.pdist(coefficients_KR.double()) * float(basis.scale)
    torch.testing.assert_close(distances, expected, rtol=1e-5, atol=0)


def test_training_coefficients_have_mean_zero_and_mean_square_one() -> None:
    theta_KP, train_K = population(20), training(20, num_held_out=5)
    _, coefficients_KR = fit(theta_KP, train_K)
    assert float(coefficients_KR[train_K].square().mean()) == pytest.approx(1, rel=1e-5)
    assert float(coefficients_KR[train_K].mean(0).abs().max()) < 1e-5


def test_the_gram_matrix_is_that_of_the_standardised_models() -> None:
    theta_KP, train_K = population(14), training(14, num_held_out=4)
    x_KP = standardised(theta_KP, train_K)
    gram_KK = whole(theta_KP, train_K)
    np.testing.assert_allclose(gram_KK, x_KP @ x_KP.T, rtol=1e-5, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    st.sets(st.integers(1, LAYOUT.size - 1), max_size=6),
    st.sets(st.integers(1, LAYOUT.size - 1), max_size=3),
)
def test_any_cuts_and_any_ranges_give_the_result_of_one_block(
    cuts: set[int], borders: set[int]
) -> None:
    theta_KP, train_K = population(8), training(8, num_held_out=2)
    parts = []
    for start, stop in pairwise([0, *sorted(borders), LAYOUT.size]):
        inside = sorted(cut for cut in cuts if start < cut < stop)
        parts.append(summed(theta_KP, train_K, [start, *inside, stop]))
        assert len(parts[-1]) <= 3, "all that the range holds, and two layers that it cuts"
    merged_KK = gram(parts, LAYOUT, train_K)
    torch.testing.assert_close(merged_KK, whole(theta_KP, train_K), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("width", [1, 7, 1000])
def test_decoding_streams_over_column_blocks(width: int) -> None:
    theta_KP, train_K = population(8), training(8)
    basis, coefficients_KR = fit(theta_KP, train_K)
    weights_NT = basis.weights(coefficients_KR.flip(0) * 0.5)
    pieces = [mix(weights_NT, own) for own in theta_KP.split(width, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), mix(weights_NT, theta_KP))


def test_duplicate_models_lower_the_rank_and_still_decode() -> None:
    theta_KP = population(6).repeat(3, 1)
    basis, coefficients_KR = fit(theta_KP, training(18))
    assert coefficients_KR.shape == (18, 5)
    torch.testing.assert_close(coefficients_KR[:6], coefficients_KR[6:12])
    decoded_KP = mix(basis.weights(coefficients_KR), theta_KP)
    assert float((decoded_KP - theta_KP).norm() / theta_KP.norm()) < 1e-5


def test_a_layer_in_which_all_agree_is_ignored_and_decodes_to_itself() -> None:
    theta_KP, train_K = population(7), training(7, num_held_out=2)
    theta_KP[:, 30:35] = torch.tensor([0.1, -3.7, 1e-12, 1e7, 0.3])
    basis, coefficients_KR = fit(theta_KP, train_K)
    theta_KP[~train_K, 30:35] += 1  # held-out models may differ where the training ones do not
    _, moved_KR = fit(theta_KP, train_K)
    assert torch.equal(moved_KR, coefficients_KR)
    decoded = mix(basis.weights(torch.randn(3, 4)), theta_KP[train_K])
    assert torch.equal(decoded[:, 30:35], theta_KP[train_K][:3, 30:35])


def test_zero_coefficients_are_the_mean_model() -> None:
    theta_KP, train_K = population(7), training(7)
    basis, coefficients_KR = fit(theta_KP, train_K)
    decoded_NP = mix(basis.weights(torch.zeros(1, coefficients_KR.shape[1])), theta_KP)
    torch.testing.assert_close(decoded_NP, theta_KP.mean(0, keepdim=True))


def test_fewer_than_two_different_training_models_are_refused() -> None:
    theta_KP = population(4)
    for train_K in (torch.zeros(4, dtype=torch.bool), torch.arange(4) == 2):
        with pytest.raises(ConfigError, match="at least 2 different training models"):
            fit(theta_KP, train_K)
    with pytest.raises(ConfigError, match="got 4 without any difference"):
        fit(theta_KP[:1].repeat(4, 1), training(4))
