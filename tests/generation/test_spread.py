"""Spread in closed form."""

import torch

from bend_ray.generation.rivals import Gaussian
from bend_ray.generation.spread import centres, spread_out


def test_a_gaussian_that_is_spread_out_is_a_wider_one_around_the_same_means() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_TP, trunks_K = torch.tensor([[0.0, 1.0], [5.0, -2.0]]), torch.arange(400) % 2
    theta_KP = mean_TP[trunks_K] + 0.1 * torch.randn(400, 2, generator=generator)
    drawn_NP, trunks_N = Gaussian().draw(theta_KP, trunks_K, 4000, generator)
    wider_NP = spread_out(drawn_NP, trunks_N, centres(theta_KP, trunks_K, 2), 2.5)
    for trunk in range(2):
        ours_NP = wider_NP[trunks_N == trunk]
        torch.testing.assert_close(ours_NP.mean(0), mean_TP[trunk], atol=0.03, rtol=0)
        torch.testing.assert_close(ours_NP.std(0), torch.full((2,), 0.25), atol=0.03, rtol=0)


def test_a_trunk_without_members_has_no_centre() -> None:
    centre_TP = centres(torch.tensor([[5.0], [3.0], [4.0]]), torch.tensor([2, 0, 2]), 3)
    assert centre_TP.nan_to_num(-1.0).tolist() == [[3.0], [-1.0], [4.5]]
