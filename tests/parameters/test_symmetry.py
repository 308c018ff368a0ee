from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bend_ray.errors import ConfigError
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.parameters.symmetry import Groups, align, match, permute


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


MLP: Groups = (
    (("0.weight", 0), ("0.bias", 0), ("2.weight", 1)),
    (("2.weight", 0), ("2.bias", 0), ("4.weight", 1)),
)
CONVNET: Groups = (
    (
        *(("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0)),
        *(("1.running_mean", 0), ("1.running_var", 0), ("3.weight", 1)),
    ),
    (("3.weight", 0), ("3.bias", 0), ("5.weight", 1)),
)
RESIDUAL: Groups = (
    (
        *(("embed.weight", 0), ("embed.bias", 0), ("head.weight", 1)),
        *(("block.weight", 0), ("block.weight", 1), ("block.bias", 0)),
    ),
)
CASES = [
    pytest.param(mlp, MLP, (12, 10), (8,), id="mlp"),
    pytest.param(convnet, CONVNET, (6, 5), (1, 6, 6), id="convnet"),
    pytest.param(Residual, RESIDUAL, (5,), (4,), id="residual"),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shuffled(sizes: tuple[int, ...], seed: int) -> tuple[Tensor, ...]:
    generator = seeded(seed)
    return tuple(torch.randperm(size, generator=generator) for size in sizes)


def build(make: type[nn.Module]) -> tuple[nn.Module, ParameterLayout, Tensor]:
    torch.manual_seed(1)
    module = make()
    layout = ParameterLayout.of(module)
    return module, layout, layout.flatten(module.state_dict()).detach()


def trainable(state: dict[str, Tensor], layout: ParameterLayout) -> dict[str, Tensor]:
    return {entry.name: state[entry.name] for entry in layout.entries if entry.trainable}


@pytest.mark.parametrize(("make", "groups", "sizes", "shape"), CASES)
def test_permuting_units_keeps_the_function(
    make: type[nn.Module], groups: Groups, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    module, layout, theta_P = build(make)
    state = permute(layout.unflatten(theta_P), groups, shuffled(sizes, seed=2))
    assert not torch.equal(layout.flatten(state), theta_P)
    images = torch.randn(16, *shape, generator=seeded(3))
    torch.testing.assert_close(
        functional_call(module, state, (images,)), module(images), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("make", "groups", "sizes", "shape"), CASES)
def test_shuffled_units_are_found_again(
    make: type[nn.Module], groups: Groups, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    _, layout, theta_P = build(make)
    reference = layout.unflatten(theta_P)
    for seed in range(5):
        permutations = shuffled(sizes, seed)
        state = permute(reference, groups, permutations)
        found = match(trainable(reference, layout), state, groups, seeded(seed))
        assert all(
            torch.equal(permutation[back], torch.arange(len(back)))
            for permutation, back in zip(permutations, found, strict=True)
        )
        restored = align(theta_P, layout.flatten(state)[None], layout, groups, seeded(seed))
        assert torch.equal(restored[0], theta_P)


@pytest.mark.parametrize(("make", "groups", "sizes", "shape"), CASES)
def test_aligned_copies_are_closer_and_answer_the_same(
    make: type[nn.Module], groups: Groups, sizes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    module, layout, theta_P = build(make)
    noise_KP = 0.2 * theta_P.abs() * torch.randn(2, layout.size, generator=seeded(4))
    copies = [layout.unflatten(row) for row in theta_P + noise_KP]
    theta_KP = torch.stack(
        [layout.flatten(permute(c, groups, shuffled(sizes, s))) for s, c in enumerate(copies)]
    )
    aligned_KP = align(theta_P, theta_KP, layout, groups, seeded(5))
    assert float((aligned_KP - theta_P).norm()) < 0.5 * float((theta_KP - theta_P).norm())
    images = torch.randn(16, *shape, generator=seeded(6))
    for before, after in zip(theta_KP, aligned_KP, strict=True):
        expected = functional_call(module, layout.unflatten(before), (images,))
        actual = functional_call(module, layout.unflatten(after), (images,))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_no_single_swap_of_units_brings_a_matched_network_closer() -> None:
    _, layout, theta_P = build(mlp)
    other_P = torch.randn(layout.size, generator=seeded(7))
    aligned = layout.unflatten(align(theta_P, other_P[None], layout, MLP, seeded(8))[0])
    distance = float((layout.flatten(aligned) - theta_P).norm())
    for group, (units, size) in enumerate(zip(MLP, (12, 10), strict=True)):
        for i, j in torch.combinations(torch.arange(size)).tolist():
            swap = torch.arange(size)
            swap[[i, j]] = swap[[j, i]]
            swapped_P = layout.flatten(permute(aligned, (units,), (swap,)))
            assert float((swapped_P - theta_P).norm()) >= distance - 1e-5, (group, i, j)


def test_a_residual_stream_never_ends_further_away() -> None:
    _, layout, theta_P = build(Residual)
    theta_KP = torch.randn(20, layout.size, generator=seeded(9))
    aligned_KP = align(theta_P, theta_KP, layout, RESIDUAL, seeded(10))
    before_K, after_K = (theta_KP - theta_P).norm(dim=1), (aligned_KP - theta_P).norm(dim=1)
    assert bool((after_K <= before_K + 1e-5).all())
    assert float(after_K.mean()) < float(before_K.mean())


def test_buffers_follow_but_do_not_decide() -> None:
    _, layout, theta_P = build(convnet)
    loud_P = theta_P.clone()
    loud_P[layout.num_trainable :] = 1e6 * torch.rand(layout.size - layout.num_trainable)
    state = permute(layout.unflatten(loud_P), CONVNET, shuffled((6, 5), seed=11))
    aligned_KP = align(theta_P, layout.flatten(state)[None], layout, CONVNET, seeded(12))
    assert torch.equal(aligned_KP[0], loud_P)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    _, layout, theta_P = build(mlp)
    theta_KP = torch.randn(6, layout.size, generator=seeded(13))
    whole = align(theta_P, theta_KP, layout, MLP, seeded(14))
    halves = [align(theta_P, half, layout, MLP, seeded(14)) for half in theta_KP.split(3)]
    assert torch.equal(torch.cat(halves), whole)


def test_without_groups_nothing_moves() -> None:
    _, layout, theta_P = build(mlp)
    theta_KP = torch.randn(3, layout.size, generator=seeded(15))
    assert torch.equal(align(theta_P, theta_KP, layout, (), seeded(0)), theta_KP)
    assert match(layout.unflatten(theta_P), layout.unflatten(theta_P), (), seeded(0)) == ()
    assert align(theta_P, theta_KP[:0], layout, MLP, seeded(0)).shape == (0, layout.size)


def test_a_partial_layout_cannot_be_aligned() -> None:
    layout = ParameterLayout.of(mlp(), include=("0.*", "2.bias"))
    theta_P = torch.zeros(layout.size)
    with pytest.raises(ConfigError, match=r"got none for 2\.weight, 4\.weight"):
        align(theta_P, theta_P[None], layout, MLP, seeded(0))


def test_axes_that_do_not_fit_are_refused() -> None:
    state = {"a": torch.zeros(4, 3), "b": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"got \[4, 3\]"):
        match(state, state, ((("a", 0), ("b", 0)),), seeded(0))
