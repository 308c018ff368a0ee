from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bend_ray.randomness import generator_for, seed_for


def test_a_purpose_has_the_same_seed_for_ever() -> None:
    # The first eight bytes of sha256("0/fork/17"), halved. Stores hold models drawn under it.
    assert seed_for(0, "fork", 17) == 6878446751825495444
    drawn = torch.rand(2, generator=generator_for(0, "fork", 17))
    assert drawn.tolist() == pytest.approx([0.796225905, 0.057486951])


def test_purposes_and_base_seeds_have_streams_of_their_own() -> None:
    purposes = [(seed, name, i) for seed in range(5) for name in ("root", "run") for i in range(50)]
    assert len({seed_for(*purpose) for purpose in purposes}) == len(purposes)
    firsts = {float(torch.rand(1, generator=generator_for(*purpose))) for purpose in purposes[:100]}
    assert len(firsts) == 100


@pytest.mark.parametrize(
    ("one", "other"),
    [((1, 23), (12, 3)), ((0, "run", 1, 11), (0, "run", 11, 1)), ((0,), (0, 0))],
)
def test_numbers_do_not_run_into_each_other(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert seed_for(*one) != seed_for(*other)


@given(seed=st.integers(0, 2**64), purpose=st.lists(st.integers() | st.text(), max_size=3))
def test_every_seed_is_one_that_torch_takes(seed: int, purpose: list[int | str]) -> None:
    assert 0 <= seed_for(seed, *purpose) < 2**63
    assert generator_for(seed, *purpose).initial_seed() == seed_for(seed, *purpose)


def test_generators_share_no_state() -> None:
    one, other = generator_for(0, "fork", 1), generator_for(0, "fork", 1)
    torch.randn(100, generator=one)
    before = torch.random.get_rng_state()
    assert torch.equal(
        torch.randn(4, generator=other), torch.randn(4, generator=generator_for(0, "fork", 1))
    )
    assert torch.equal(torch.random.get_rng_state(), before)
