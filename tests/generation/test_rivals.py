from __future__ import annotations

import pytest
import torch
from answers import drawn as draw
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from bend_ray.generation.rivals import (
    Drawing,
    Gaussian,
    ImportedRival,
    MultiSwag,
    Noise,
    Rival,
    Trained,
    TrunkAverages,
    WeightAverage,
    round_robin,
    trunk_means,
)
from bend_ray.process import matrix
from bend_ray.randomness import generator_for
from bend_ray.spec import variants

TRUNKS_K = torch.tensor([5, 2, 2, 5, 9, 2, 9, 5, 5])
"""Trunk ids as they come: unordered, with gaps, of unequal size."""

trunk_lists = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(name="theta_KP")
def make_theta() -> Tensor:
    """Members of three parameters around far-apart trunks, their residuals correlated."""
    mixing = torch.tensor([[1.0, 0.8, 0.0], [0.0, 0.5, -0.7], [0.0, 0.0, 0.3]])
    residuals = torch.randn(len(TRUNKS_K), 3, generator=generator()) @ mixing
    return 10.0 * TRUNKS_K[:, None] + residuals


def own_members(theta_KP: Tensor) -> list[Tensor]:
    """The members of each trunk, trunks in the order of their ids."""
    return [theta_KP[trunk == TRUNKS_K] for trunk in sorted(set(TRUNKS_K.tolist()))]


def test_the_mean_of_a_trunk_is_that_of_its_members(theta_KP: Tensor) -> None:
    means_TP, row_K = trunk_means(theta_KP, TRUNKS_K)
    for row, members in enumerate(own_members(theta_KP)):
        torch.testing.assert_close(means_TP[row], members.mean(dim=0))
    assert row_K.tolist() == [1, 0, 0, 1, 2, 0, 2, 1, 1]


def slow_round_robin(trunks: list[int], count: int) -> list[int]:
    """Rounds as one would play them: each takes the next member of every trunk, by index."""
    rounds: list[list[int]] = []
    waiting = list(range(len(trunks)))
    while waiting:
        first = [i for i in waiting if trunks[i] not in {trunks[j] for j in waiting if j < i}]
        rounds.append(first)
        waiting = [i for i in waiting if i not in first]
    order = [i for played in rounds for i in played]
    return [order[n % len(order)] for n in range(count)]


@given(trunks=trunk_lists, count=st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_round_robin_takes_one_of_every_trunk_in_turn(trunks: list[int], count: int) -> None:
    assert round_robin(torch.tensor(trunks), count).tolist() == slow_round_robin(trunks, count)


@given(trunks=trunk_lists)
@settings(max_examples=20, deadline=None)
def test_round_robin_takes_everyone_once_before_anyone_twice(trunks: list[int]) -> None:
    taken = round_robin(torch.tensor(trunks), 2 * len(trunks)).tolist()
    assert sorted(taken[: len(trunks)]) == list(range(len(trunks)))
    assert taken[: len(trunks)] == taken[len(trunks) :]


def test_the_weight_average_is_one_model_whatever_is_asked(theta_KP: Tensor) -> None:
    drawn, trunks = draw(WeightAverage(), theta_KP, TRUNKS_K, 20)
    torch.testing.assert_close(drawn, theta_KP.sum(dim=0, keepdim=True) / len(theta_KP))
    assert trunks.tolist() == [-1]


@pytest.mark.parametrize(("count", "rows"), [(2, 2), (3, 3), (20, 3)])
def test_trunk_averages_are_one_model_a_trunk(theta_KP: Tensor, count: int, rows: int) -> None:
    drawn, trunks = draw(TrunkAverages(), theta_KP, TRUNKS_K, count)
    expected = torch.stack([members.mean(dim=0) for members in own_members(theta_KP)])
    torch.testing.assert_close(drawn, expected[:rows])
    assert torch.equal(trunks, TRUNKS_K.unique()[:rows])


def test_noise_is_in_the_member_s_own_standard_deviation() -> None:
    theta_KP = torch.tensor([[1.0], [10.0]]) * torch.randn(2, 4000, generator=generator())
    trunks_K = torch.tensor([0, 1])
    drawn, trunks = draw(Noise(scale=0.3), theta_KP, trunks_K, 5, 1)
    members = theta_KP[round_robin(trunks_K, 5)]
    ratio = (drawn - members).std(dim=1) / members.std(dim=1)
    torch.testing.assert_close(ratio, torch.full((5,), 0.3), rtol=0.05, atol=0)
    assert len({tuple(row[:3].tolist()) for row in drawn}) == 5
    assert trunks.tolist() == [0, 1, 0, 1, 0]


def test_noise_of_scale_zero_is_the_members(theta_KP: Tensor) -> None:
    drawn, trunks = draw(Noise(scale=0.0), theta_KP, TRUNKS_K, 12)
    assert torch.equal(drawn, theta_KP[round_robin(TRUNKS_K, 12)])
    assert torch.equal(trunks, TRUNKS_K[round_robin(TRUNKS_K, 12)])


def pooled_covariance(theta_KP: Tensor) -> Tensor:
    groups = own_members(theta_KP)
    residuals = torch.cat([members - members.mean(dim=0) for members in groups])
    return residuals.T @ residuals / (len(residuals) - len(groups))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_gaussian_has_the_pooled_covariance_around_each_trunk(
    theta_KP: Tensor, scale: float
) -> None:
    drawn, trunks = draw(Gaussian(scale=scale), theta_KP, TRUNKS_K, 30_000, 1)
    assert torch.equal(trunks[:6], TRUNKS_K.unique().repeat(2))
    means_TP, _ = trunk_means(theta_KP, TRUNKS_K)
    expected = scale**2 * pooled_covariance(theta_KP)
    for trunk, mean_P in enumerate(means_TP):
        own = drawn[trunk::3]
        tolerance = 4 * expected.diagonal().max() ** 0.5 / len(own) ** 0.5
        assert (own.mean(dim=0) - mean_P).abs().max() < tolerance
        scatter = (own - mean_P).T @ (own - mean_P) / len(own)
        assert (scatter - expected).abs().max() < 0.06 * expected.diagonal().max()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_multiswag_has_each_trunk_s_own_mean_and_variance(theta_KP: Tensor, scale: float) -> None:
    drawn, _ = draw(MultiSwag(scale=scale), theta_KP, TRUNKS_K, 3_000, 1)
    for trunk, members in enumerate(own_members(theta_KP)):
        own = drawn[trunk::3]
        variance_P = scale**2 * members.var(dim=0)
        mean_error = (own.mean(dim=0) - members.mean(dim=0)).abs()
        assert (mean_error < 4 * (variance_P / len(own)).sqrt()).all()
        torch.testing.assert_close(own.var(dim=0), variance_P, rtol=0.2, atol=0)


@pytest.mark.slow
def test_multiswag_correlates_by_half_of_what_its_members_do(theta_KP: Tensor) -> None:
    """Half of the covariance is diagonal, half is the members' own (Maddox et al., eq. 1)."""
    drawn, _ = draw(MultiSwag(scale=1.0), theta_KP, TRUNKS_K, 3_000, 2)
    members = own_members(theta_KP)[1]
    covariance = drawn[1::3].T.cov()
    expected = members.T.cov() / 2
    expected.diagonal().mul_(2)
    assert (covariance - expected).abs().max() < 0.15 * expected.diagonal().max()


@pytest.mark.parametrize("rival", [Gaussian(), MultiSwag()])
def test_members_without_a_spread_are_drawn_as_they_are(rival: Drawing) -> None:
    theta_KP = torch.randn(3, 4, generator=generator())
    drawn, trunks = draw(rival, theta_KP, torch.arange(3), 6)
    torch.testing.assert_close(drawn, theta_KP.repeat(2, 1))
    assert trunks.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "rival",
    [cls() for cls in variants(Rival) if issubclass(cls, Drawing) and cls is not ImportedRival],
)
def test_a_rival_is_reproducible_and_touches_nothing(rival: Drawing) -> None:
    theta_KP = torch.randn(len(TRUNKS_K), 4, generator=generator())
    kept, state = theta_KP.clone(), torch.get_rng_state()

    def drawn(seed: int) -> Tensor:
        return draw(rival, theta_KP, TRUNKS_K, 7, seed)[0]

    assert len(drawn(1)) == rival.num_drawn(7, len(TRUNKS_K.unique()))
    assert torch.equal(drawn(1), drawn(1))
    assert torch.equal(theta_KP, kept)
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn(1).dtype == theta_KP.dtype
    assert drawn(1).shape[1] == 4
    if isinstance(rival, Noise | Gaussian | MultiSwag):
        assert len(drawn(1)) == 7
        assert not torch.equal(drawn(1), drawn(2))


@settings(max_examples=20, deadline=None)
@given(
    rival=st.sampled_from([Noise(), Gaussian(), MultiSwag(), TrunkAverages(), WeightAverage()]),
    cut=st.integers(0, 7),
    count=st.integers(7, 12),
    block=st.sampled_from([4, 300, 2**26]),
)
def test_a_model_depends_on_its_place_alone(
    rival: Drawing, cut: int, count: int, block: int
) -> None:
    """Neither on how many are drawn, or together, nor on the columns that are read at once."""
    theta_KP = torch.randn(len(TRUNKS_K), 37, generator=generator())
    whole_NP, trunks_N = draw(rival, theta_KP, TRUNKS_K, 7)

    def stream(index: int) -> torch.Generator:
        return generator_for(0, "rival", index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "BLOCK_BYTES", block)
        trained = Trained(theta_KP, TRUNKS_K, count, stream)
        places = range(cut, len(whole_NP))
        if len(places):
            part_NP, part_N = rival.draw(trained, places)
            torch.testing.assert_close(part_NP, whole_NP[cut:])
            assert torch.equal(part_N, trunks_N[cut:])


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "gaussian", "scale": 0},
        {"kind": "noise", "scale": -1},
        {"kind": "weight_average", "scale": 1},
    ],
)
def test_scales_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="scale"):
        TypeAdapter(Rival).validate_python(wrong)
