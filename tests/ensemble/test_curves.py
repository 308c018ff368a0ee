import pytest
import torch
from scored import accuracy, combine, member_nll, nll

from bend_ray.ensemble.curves import Growth, sizes_up_to
from bend_ray.ensemble.predictions import Predictions
from bend_ray.ensemble.votes import (
    MajorityVote,
    SoftVote,
    Vote,
    WeightedVote,
    apply_temperature,
    fit_temperature,
)
from bend_ray.process import matrix
from bend_ray.tasks import Classification

CLASSES = Classification()

E, N, C = 7, 30, 4


def answers(seed: int = 0) -> tuple[Predictions, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(E, N, C, generator=generator)
    labels = torch.randint(C, (N,), generator=generator)
    val_nll = member_nll(torch.randn(E, N, C, generator=generator), labels)
    return Predictions(logits, labels, CLASSES), val_nll


@pytest.mark.parametrize("vote", [SoftVote(), MajorityVote(), WeightedVote()])
def test_each_size_is_the_vote_of_that_many_random_members(vote: Vote) -> None:
    said, val_nll = answers()
    logits, labels = said.logits_ENC, said.labels_N
    curve = Growth.by_chance(vote, val_nll, torch.Generator().manual_seed(1), 5).curve(said)
    generator = torch.Generator().manual_seed(1)
    orders = [torch.randperm(E, generator=generator) for _ in range(5)]
    assert curve["sizes"] == [1, 2, 3, 4, 6, 7]
    for place, size in enumerate(curve["sizes"]):
        bags = [combine(vote, logits[o[:size]], val_nll[o[:size]]) for o in orders]
        right = torch.tensor([accuracy(bag, labels) for bag in bags], dtype=torch.float64)
        nats = torch.tensor([nll(bag, labels) for bag in bags], dtype=torch.float64)
        assert curve["accuracy"]["mean"][place] == pytest.approx(right.mean().item())
        assert curve["nll"]["mean"][place] == pytest.approx(nats.mean().item())
        assert curve["nll"]["low"][place] == pytest.approx(nats.quantile(0.1).item())
        assert curve["nll"]["high"][place] == pytest.approx(nats.quantile(0.9).item())


@pytest.mark.parametrize("vote", [SoftVote(), MajorityVote(), WeightedVote()])
def test_a_prefix_is_the_vote_of_the_first_members_of_each_order(vote: Vote) -> None:
    said, val_nll = answers()
    logits, labels = said.logits_ENC, said.labels_N
    orders, sizes = [[3, 1, 4, 0], [6, 5, 0, 2]], [1, 3, 4]
    curve = Growth(vote, val_nll, sizes, orders).curve(said)
    for place, size in enumerate(sizes):
        bags = [combine(vote, logits[o[:size]], val_nll[o[:size]]) for o in orders]
        assert curve["accuracy"]["mean"][place] == pytest.approx(
            sum(accuracy(b, labels) for b in bags) / 2
        )
        assert curve["nll"]["mean"][place] == pytest.approx(sum(nll(b, labels) for b in bags) / 2)


def test_a_size_is_scored_at_the_temperature_that_fits_its_bags_on_other_images() -> None:
    said, val_nll = answers()
    logits, labels = said.logits_ENC, said.labels_N
    seen, _ = answers(seed=2)
    sizes, orders = [2, E], [[3, 1, 4, 0, 2, 6, 5], [6, 5, 0, 2, 1, 3, 4]]
    curve = Growth(SoftVote(), val_nll, sizes, orders).curve(said, calibrated_on=seen)
    for place, size in enumerate(sizes):
        pairs, others = (
            [combine(SoftVote(), each[o[:size]], val_nll[o[:size]]) for o in orders]
            for each in (logits, seen.logits_ENC)
        )
        temperature = fit_temperature(torch.cat(others), seen.labels_N.repeat(2), 2)
        expected = [nll(apply_temperature(bag, temperature), labels) for bag in pairs]
        assert curve["nll"]["mean"][place] == pytest.approx(sum(expected) / 2)


def test_chunks_of_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said, val_nll = answers()
    whole = Growth.by_chance(SoftVote(), val_nll, torch.Generator().manual_seed(1)).curve(said)
    monkeypatch.setattr(matrix, "BLOCK_BYTES", 8 * E * C * 7)
    cut = Growth.by_chance(SoftVote(), val_nll, torch.Generator().manual_seed(1)).curve(said)
    assert cut["accuracy"] == whole["accuracy"]
    assert cut["nll"]["mean"] == pytest.approx(whole["nll"]["mean"])


def test_a_diverged_member_without_a_vote_is_not_a_size() -> None:
    said, val_nll = answers()
    logits, labels = said.logits_ENC, said.labels_N
    logits[2], val_nll[2] = torch.nan, torch.nan
    curve = Growth.by_chance(WeightedVote(), val_nll, torch.Generator().manual_seed(1)).curve(said)
    assert curve["sizes"][-1] == E - 1
    expected = nll(combine(WeightedVote(), logits, val_nll), labels)
    assert curve["nll"]["mean"][-1] == pytest.approx(expected)


def test_sizes_end_with_the_whole() -> None:
    assert sizes_up_to(1) == [1]
    assert sizes_up_to(5) == [1, 2, 3, 4, 5]
    assert sizes_up_to(48)[-2:] == [32, 48]
