"""Guidance in closed form."""

import torch
from answers import drawn

from bend_ray.generation.rivals import Gaussian
from bend_ray.stages.samples import ways


def test_a_guided_gaussian_is_the_gaussian_moved_on() -> None:
    generator = torch.Generator().manual_seed(0)
    early_TP = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    centre_TP = early_TP + torch.tensor([[1.0, 0.0], [0.0, -2.0]])
    trunks_K = torch.arange(400) % 2
    theta_KP = centre_TP[trunks_K] + 0.1 * torch.randn(400, 2, generator=generator)
    drawn_NP, trunks_N = drawn(Gaussian(), theta_KP, trunks_K, 4000)
    way_TP = ways(theta_KP, trunks_K, early_TP)
    moved_NP = drawn_NP + 0.5 * way_TP[trunks_N]
    for trunk, expected in enumerate(([1.5, 0.0], [5.0, 2.0])):
        ours_NP = moved_NP[trunks_N == trunk]
        torch.testing.assert_close(ours_NP.mean(0), torch.tensor(expected), atol=0.03, rtol=0)
        torch.testing.assert_close(ours_NP.std(0), torch.full((2,), 0.1), atol=0.01, rtol=0)


def test_guidance_leads_on_where_a_training_is_far_from_its_end() -> None:
    # Gradient descent on a quadratic: the way that is left shrinks by a constant factor a step.
    minimum_P = torch.tensor([3.0, -1.0])
    for rate, better in ((0.02, True), (0.9, False)):
        path_SP = minimum_P * (1 - (1 - rate) ** torch.arange(16.0))[:, None]
        noise_SP = 0.05 * torch.randn(16, 2, generator=torch.Generator().manual_seed(1))
        early_SP, late_SP = (path_SP + noise_SP).split(8)
        way_1P = ways(late_SP, torch.zeros(8).long(), early_SP[2:].mean(0)[None])
        moved = [late_SP.mean(0) + guidance * way_1P[0] for guidance in (0.0, 1.0)]
        left = [(moved_P - minimum_P).norm().item() for moved_P in moved]
        assert (left[1] < left[0]) is better


def test_a_trunk_without_members_has_no_way() -> None:
    early_TP = torch.tensor([[1.0], [torch.nan], [2.0]])
    way_TP = ways(torch.tensor([[5.0], [3.0], [4.0]]), torch.tensor([2, 0, 2]), early_TP)
    assert way_TP.tolist() == [[2.0], [0.0], [2.5]]
