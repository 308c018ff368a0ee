import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from bend_ray.ensemble.novelty import principal_plane
from bend_ray.process import matrix


def models(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 50, generator=generator) * torch.linspace(3, 0.1, 50)


@pytest.mark.parametrize("chunk_bytes", [2**26, 8 * 30 * 7])
def test_it_is_the_principal_plane_of_scikit_learn(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "BLOCK_BYTES", chunk_bytes)
    train, others = models(12, 0), models(5, 1)
    places, shares = principal_plane(train, [train, others])
    pca = PCA(2).fit(train.double().numpy())
    for ours, theirs in zip(places, (train, others), strict=True):
        expected = pca.transform(theirs.double().numpy())
        signs = np.sign((ours.numpy() * expected).sum(0))
        np.testing.assert_allclose(ours.numpy(), signs * expected, atol=1e-6)
    np.testing.assert_allclose(shares, pca.explained_variance_ratio_, atol=1e-9)


def test_models_that_differ_in_one_direction_lie_on_a_line() -> None:
    train = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    places, shares = principal_plane(train, [train, torch.tensor([[1.0, 5.0]])])
    np.testing.assert_allclose(places[0].abs(), [[1.0, 0.0], [1.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(places[1], [[0.0, 0.0]], atol=1e-12)
    assert shares == [1.0, 0.0]


def test_copies_of_one_model_are_a_point() -> None:
    train = torch.ones(3, 4)
    places, _ = principal_plane(train, [train, torch.zeros(0, 4)])
    assert places[0].tolist() == [[0.0, 0.0]] * 3
    assert places[1].shape == (0, 2)
