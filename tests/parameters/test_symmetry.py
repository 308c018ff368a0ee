from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bend_ray.networks.stacking import call
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.proof import find_symmetries
from bend_ray.parameters.symmetry import Groups, align, permute


class Residual(nn.Module):
    """A stream of five units: the block reads and writes it through one entry."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.embed(x)
        return self.head(stream + self.block(torch.relu(stream)))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
    )


def convnet() -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.Flatten(),
        nn.Linear(20, 3),
    )
    nn.init.normal_(module[1].running_mean)
    nn.init.uniform_(module[1].running_var, 0.5, 2)
    nn.init.normal_(module[1].weight)
    return module.eval()


CASES = [
    pytest.param(mlp, (8,), id="mlp"),
    pytest.param(convnet, (1, 6, 6), id="convnet"),
    pytest.param(Residual, (4,), id="residual"),
]
Build = Callable[[], nn.Module]
Known = tuple[nn.Module, ParameterLayout, Tensor, Groups]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shuffled(state: dict[str, Tensor], groups: Groups, seed: int) -> dict[str, Tensor]:
    generator = seeded(seed)
    orders = [
        torch.rand(group.num_copies, group.num_units, generator=generator) for group in groups
    ]
    return permute(state, groups, [order.argsort(dim=1) for order in orders])


def known(make: Build, shape: tuple[int, ...]) -> Known:
    torch.manual_seed(1)
    module = make()
    layout = ParameterLayout.of(module)
    groups = find_symmetries(module, torch.randn(4, *shape), call).groups
    return module, layout, layout.flatten(module.state_dict()).detach(), groups


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_aligned_copies_are_closer_and_answer_the_same(make: Build, shape: tuple[int, ...]) -> None:
    module, layout, theta_P, groups = known(make, shape)
    noise_KP = 0.2 * theta_P.abs() * torch.randn(2, layout.size, generator=seeded(4))
    copies = [layout.unflatten(row) for row in theta_P + noise_KP]
    theta_KP = torch.stack([layout.flatten(shuffled(c, groups, s)) for s, c in enumerate(copies)])
    aligned_KP = align(theta_P, theta_KP, layout, groups, seeded(5))
    assert float((aligned_KP - theta_P).norm()) < 0.5 * float((theta_KP - theta_P).norm())
    images = torch.randn(16, *shape, generator=seeded(6))
    for before, after in zip(theta_KP, aligned_KP, strict=True):
        expected = functional_call(module, layout.unflatten(before), (images,))
        actual = functional_call(module, layout.unflatten(after), (images,))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_no_single_swap_of_units_brings_a_matched_network_closer() -> None:
    _, layout, theta_P, groups = known(mlp, (8,))
    other_P = torch.randn(layout.size, generator=seeded(7))
    aligned = layout.unflatten(align(theta_P, other_P[None], layout, groups, seeded(8))[0])
    distance = float((layout.flatten(aligned) - theta_P).norm())
    for group in groups:
        for i, j in torch.combinations(torch.arange(group.num_units)).tolist():
            swap = torch.arange(group.num_units)[None]
            swap[0, [i, j]] = swap[0, [j, i]]
            swapped_P = layout.flatten(permute(aligned, (group,), (swap,)))
            assert float((swapped_P - theta_P).norm()) >= distance - 1e-5, (i, j)


def test_a_residual_stream_never_ends_further_away() -> None:
    _, layout, theta_P, groups = known(Residual, (4,))
    theta_KP = torch.randn(20, layout.size, generator=seeded(9))
    aligned_KP = align(theta_P, theta_KP, layout, groups, seeded(10))
    before_K, after_K = (theta_KP - theta_P).norm(dim=1), (aligned_KP - theta_P).norm(dim=1)
    assert bool((after_K <= before_K + 1e-5).all())
    assert float(after_K.mean()) < float(before_K.mean())


def test_buffers_follow_but_do_not_decide() -> None:
    _, layout, theta_P, groups = known(convnet, (1, 6, 6))
    loud_P = theta_P.clone()
    loud_P[layout.num_trainable :] = 1e6 * torch.rand(layout.size - layout.num_trainable)
    state = shuffled(layout.unflatten(loud_P), groups, seed=11)
    aligned_KP = align(theta_P, layout.flatten(state)[None], layout, groups, seeded(12))
    assert torch.equal(aligned_KP[0], loud_P)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    _, layout, theta_P, groups = known(mlp, (8,))
    theta_KP = torch.randn(6, layout.size, generator=seeded(13))
    whole = align(theta_P, theta_KP, layout, groups, seeded(14))
    halves = [align(theta_P, half, layout, groups, seeded(14)) for half in theta_KP.split(3)]
    assert torch.equal(torch.cat(halves), whole)


def test_without_groups_nothing_moves() -> None:
    _, layout, theta_P, groups = known(mlp, (8,))
    theta_KP = torch.randn(3, layout.size, generator=seeded(15))
    assert torch.equal(align(theta_P, theta_KP, layout, (), seeded(0)), theta_KP)
    assert align(theta_P, theta_KP[:0], layout, groups, seeded(0)).shape == (0, layout.size)
