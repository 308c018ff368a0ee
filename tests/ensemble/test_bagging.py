from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scored import nll

from bend_ray.ensemble.bagging import All, Bagging, GreedyForward, Stratified, TopK
from bend_ray.ensemble.predictions import Predictions
from bend_ray.errors import ConfigError
from bend_ray.spec import variants
from bend_ray.tasks import Classification

CLASSES = Classification()

ALL_BAGGINGS = [All, TopK, GreedyForward, Stratified]


def members_of_quality(*nlls: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Members on one example of two classes whose validation NLL is as given."""
    probs = torch.tensor(nlls).neg().exp()
    return torch.stack([probs, 1 - probs], dim=1).log()[:, None], torch.tensor([0])


def random_members(num_members: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_members, 15, 3, generator=generator)
    return logits, torch.randint(3, (15,), generator=generator)


def slow_greedy(
    logits: torch.Tensor, labels: torch.Tensor, size: int, with_replacement: bool
) -> list[int]:
    probs = logits.double().softmax(dim=2)
    chosen: list[int] = []
    for _ in range(size):
        candidates = [e for e in range(len(probs)) if with_replacement or e not in chosen]
        chosen.append(min(candidates, key=lambda e: nll(probs[[*chosen, e]].mean(dim=0), labels)))
    return chosen


def test_all_deals_members_out_over_the_trunks() -> None:
    logits, labels = random_members(6)
    trunks = torch.tensor([4, 4, 4, 7, 7, 9])

    assert All().choose(Predictions(logits, labels, CLASSES), trunks) == [0, 3, 5, 1, 4, 2]
    assert All(size=4).choose(Predictions(logits, labels, CLASSES), trunks) == [0, 3, 5, 1]


def test_all_keeps_the_order_of_a_population_without_trunks() -> None:
    logits, labels = random_members(4)

    assert All().choose(Predictions(logits, labels, CLASSES), torch.full((4,), -1)) == [
        0,
        1,
        2,
        3,
    ]


def test_top_k_is_best_first() -> None:
    logits, labels = members_of_quality(0.4, 0.1, 0.3, 0.2)

    assert TopK(size=3).choose(Predictions(logits, labels, CLASSES), torch.zeros(4)) == [
        1,
        3,
        2,
    ]
    assert TopK().choose(Predictions(logits, labels, CLASSES), torch.zeros(4)) == [
        1,
        3,
        2,
        0,
    ]


def test_stratified_takes_the_best_of_each_trunk_in_turn() -> None:
    logits, labels = members_of_quality(0.1, 0.2, 0.3, 0.9, 0.8, 0.5)
    trunks = torch.tensor([0, 0, 0, 1, 1, 2])

    assert Stratified(size=2).choose(Predictions(logits, labels, CLASSES), trunks) == [
        0,
        5,
    ]
    assert Stratified(size=4).choose(Predictions(logits, labels, CLASSES), trunks) == [
        0,
        5,
        4,
        1,
    ]
    assert Stratified().choose(Predictions(logits, labels, CLASSES), trunks) == [
        0,
        5,
        4,
        1,
        3,
        2,
    ]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), with_replacement=st.booleans(), size=st.integers(1, 6))
def test_greedy_forward_agrees_with_trying_everything(
    seed: int, with_replacement: bool, size: int
) -> None:
    logits, labels = random_members(6, seed)

    chosen = GreedyForward(size=size, with_replacement=with_replacement).choose(
        Predictions(logits, labels, CLASSES), torch.zeros(6)
    )

    assert chosen == slow_greedy(logits, labels, size, with_replacement)


def test_greedy_forward_prefers_a_weaker_complement_to_a_twin_of_the_best() -> None:
    true_probs = torch.tensor([[0.9, 0.4], [0.9, 0.4], [0.3, 0.95]])
    logits, labels = torch.stack([true_probs, 1 - true_probs], dim=2).log(), torch.tensor([0, 0])

    assert TopK(size=2).choose(Predictions(logits, labels, CLASSES), torch.zeros(3)) == [
        0,
        1,
    ]
    assert GreedyForward(size=2).choose(Predictions(logits, labels, CLASSES), torch.zeros(3)) == [
        0,
        2,
    ]


@pytest.mark.parametrize("bagging", [TopK, GreedyForward, Stratified])
def test_a_diverged_member_is_chosen_last(bagging) -> None:
    logits, labels = random_members(5)
    logits[1, 3, 0] = math.nan

    assert bagging().choose(Predictions(logits, labels, CLASSES), torch.zeros(5))[-1] == 1


@pytest.mark.parametrize("bagging", ALL_BAGGINGS)
def test_every_bag_has_its_size_and_distinct_members(bagging) -> None:
    logits, labels = random_members(7)
    trunks = torch.arange(7) % 3

    for size in range(1, 8):
        chosen = bagging(size=size).choose(Predictions(logits, labels, CLASSES), trunks)
        assert len(set(chosen)) == len(chosen) == size
        assert set(chosen) <= set(range(7))
    assert sorted(bagging().choose(Predictions(logits, labels, CLASSES), trunks)) == list(range(7))


@pytest.mark.parametrize("bagging", ALL_BAGGINGS)
def test_a_smaller_bag_is_the_beginning_of_a_larger(bagging) -> None:
    logits, labels = random_members(7)
    trunks = torch.arange(7) % 3

    everybody = bagging().choose(Predictions(logits, labels, CLASSES), trunks)

    assert bagging(size=3).choose(Predictions(logits, labels, CLASSES), trunks) == everybody[:3]


@pytest.mark.parametrize("bagging", ALL_BAGGINGS)
def test_a_bag_larger_than_the_members_is_refused(bagging) -> None:
    logits, labels = random_members(4)

    with pytest.raises(ConfigError, match=r"at most 4 members.*size 5.*lower the size"):
        bagging(size=5).choose(Predictions(logits, labels, CLASSES), torch.zeros(4))


def test_a_bagging_is_read_by_its_kind() -> None:
    read = TypeAdapter(Bagging).validate_python

    assert read({"kind": "top_k", "size": 3}) == TopK(size=3)
    assert {type(read({"kind": cls().kind})) for cls in variants(Bagging)} == set(ALL_BAGGINGS)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        read({"kind": "all", "size": 0})


def test_reading_the_axes_does_not_import_torch() -> None:
    program = (
        "import sys, bend_ray.ensemble.bagging, bend_ray.ensemble.votes;"
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
