from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.optimize import minimize_scalar
from scipy.stats import gamma
from scored import combine, nll

from bend_ray.ensemble.votes import (
    PRIOR_EXAMPLES,
    ImportedVote,
    MajorityVote,
    SoftVote,
    Vote,
    WeightedVote,
    apply_temperature,
    fit_temperature,
)
from bend_ray.errors import TrainingError
from bend_ray.spec import variants

ALL_VOTES = [SoftVote(), MajorityVote(), WeightedVote()]


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(name="logits_ENC")
def make_logits() -> torch.Tensor:
    return random_logits(5, 12, 3)


@pytest.fixture(name="val_nll_E")
def make_val_nll() -> torch.Tensor:
    return torch.tensor([0.1, 0.5, 0.3, 0.2, 0.9])


def softmax(logits: torch.Tensor) -> list[float]:
    exponentials = [math.exp(value) for value in logits.tolist()]
    return [value / sum(exponentials) for value in exponentials]


def weighted_loop(logits_ENC: torch.Tensor, weights: list[float]) -> list[list[float]]:
    num_classes = logits_ENC.shape[2]
    answer = []
    for n in range(logits_ENC.shape[1]):
        members = [softmax(logits_ENC[e, n]) for e in range(len(weights))]
        answer.append(
            [
                sum(w * member[c] for w, member in zip(weights, members, strict=True))
                / sum(weights)
                for c in range(num_classes)
            ]
        )
    return answer


def test_soft_vote_is_the_mean_of_the_probabilities(logits_ENC, val_nll_E) -> None:
    probs = combine(SoftVote(), logits_ENC, val_nll_E)

    expected = torch.tensor(weighted_loop(logits_ENC, [1, 1, 1, 1, 1]), dtype=torch.float64)
    np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-12)


def test_weighted_vote_weighs_by_the_likelihood(logits_ENC, val_nll_E) -> None:
    probs = combine(WeightedVote(sharpness=3), logits_ENC, val_nll_E)

    weights = [math.exp(-3 * value) for value in val_nll_E.tolist()]
    expected = torch.tensor(weighted_loop(logits_ENC, weights), dtype=torch.float64)
    np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-12)


def test_majority_vote_counts_heads(logits_ENC, val_nll_E) -> None:
    probs = combine(MajorityVote(), logits_ENC, val_nll_E)

    for n, shares in enumerate(probs.tolist()):
        ballots = [max(range(3), key=lambda c, e=e, n=n: logits_ENC[e, n, c]) for e in range(5)]
        assert shares == [ballots.count(c) / 5 for c in range(3)]


def test_a_tied_majority_vote_goes_to_the_lowest_class() -> None:
    logits = torch.tensor([[[0.0, 0.0, 9.0]], [[0.0, 5.0, 5.0]]])

    probs = combine(MajorityVote(), logits, torch.zeros(2))

    assert probs.tolist() == [[0, 0.5, 0.5]]
    assert probs.argmax(dim=1).tolist() == [1]


@pytest.mark.parametrize("vote", ALL_VOTES)
def test_every_vote_gives_a_distribution_in_double_precision(vote, logits_ENC, val_nll_E) -> None:
    probs = combine(vote, logits_ENC.bfloat16(), val_nll_E)

    assert probs.shape == (12, 3)
    assert probs.dtype == torch.float64
    np.testing.assert_allclose(probs.sum(dim=1), torch.ones(12, dtype=torch.float64))


def test_a_blunt_weighted_vote_is_soft_and_a_sharp_one_picks_the_best(
    logits_ENC, val_nll_E
) -> None:
    soft = combine(SoftVote(), logits_ENC, val_nll_E)
    best = logits_ENC[0].double().softmax(dim=1)

    np.testing.assert_allclose(combine(WeightedVote(sharpness=0), logits_ENC, val_nll_E), soft)
    np.testing.assert_allclose(combine(WeightedVote(sharpness=1e6), logits_ENC, val_nll_E), best)


@pytest.mark.parametrize("sharpness", [0.0, 10.0])
def test_a_member_that_diverged_on_validation_has_no_weighted_vote(
    sharpness, logits_ENC, val_nll_E
) -> None:
    vote = WeightedVote(sharpness=sharpness)
    healthy = combine(vote, logits_ENC[1:], val_nll_E[1:])
    logits_ENC[0], val_nll_E[0] = math.nan, math.nan

    np.testing.assert_allclose(combine(vote, logits_ENC, val_nll_E), healthy)


@pytest.mark.parametrize("vote", ALL_VOTES)
def test_a_diverged_voter_is_named_instead_of_spoiling_the_bag(vote, logits_ENC, val_nll_E) -> None:
    logits_ENC[2, 5, 1] = math.nan

    with pytest.raises(TrainingError, match="1 of 5, the first at index 2"):
        combine(vote, logits_ENC, val_nll_E)


def test_a_bag_in_which_all_diverged_is_refused(logits_ENC) -> None:
    with pytest.raises(TrainingError, match="at least one of 5 members"):
        combine(WeightedVote(), logits_ENC, torch.full((5,), math.nan))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.3, 20))
def test_temperature_agrees_with_a_numerical_minimiser(seed: int, scale: float) -> None:
    logits = random_logits(80, 4, seed=seed).double()
    sampled = torch.multinomial(
        logits.softmax(dim=1), 1, generator=torch.Generator().manual_seed(seed)
    )
    probs, labels = (scale * logits).softmax(dim=1), sampled.squeeze(1)

    def loss(log_sharpness: float) -> float:
        likelihood = 80 * nll(apply_temperature(probs, math.exp(-log_sharpness)), labels)
        # Of 1/T: where the mode of a gamma density of shape a and rate b, (a - 1) / b, is 1.
        shape = 1 + PRIOR_EXAMPLES
        return likelihood - gamma.logpdf(math.exp(log_sharpness), shape, scale=1 / (shape - 1))

    reference = minimize_scalar(loss, bounds=(-5, 3), method="bounded", options={"xatol": 1e-9})
    found = -math.log(fit_temperature(probs, labels))
    assert loss(found) <= reference.fun + 1e-9
    assert found == pytest.approx(reference.x, abs=1e-5)


def test_temperature_undoes_a_known_miscalibration_given_examples_enough() -> None:
    # 7 of 10 right at log odds of 3 log(7/3): three times as sure as the truth allows.
    logits = torch.tensor([[3 * math.log(7 / 3), 0.0]])
    off = []
    for tens in (10, 1000, 100_000):
        labels = (torch.arange(10) < 3).long().repeat(tens)
        probs = logits.softmax(dim=1).expand(len(labels), 2)
        temperature = fit_temperature(probs, labels)
        off.append(3 - temperature)
    assert off[0] > off[1] > off[2] > 0  # towards 1
    assert temperature == pytest.approx(3, rel=1e-3)
    assert apply_temperature(probs[:1], temperature)[0].tolist() == pytest.approx(
        [0.7, 0.3], rel=1e-3
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), copies=st.integers(1, 3))
def test_temperature_of_a_bag_that_never_or_always_errs_is_finite(seed: int, copies: int) -> None:
    probs = random_logits(20, 4, seed=seed).double().softmax(dim=1).repeat(copies, 1)
    surest, least = (
        fit_temperature(probs, probs.argmax(dim=1)),
        fit_temperature(probs, probs.argmin(dim=1)),
    )
    assert 0.101 < surest < 1 < least < 99


def test_a_bag_that_says_nothing_keeps_a_temperature_of_one() -> None:
    assert fit_temperature(torch.full((5, 4), 0.25), torch.arange(5) % 4) == pytest.approx(1)


def test_several_bags_share_a_temperature_with_a_prior_that_weighs_as_for_one() -> None:
    probs, labels = random_logits(40, 4, seed=3).double().softmax(dim=1), torch.arange(40) % 4
    three, again = probs.repeat(3, 1), labels.repeat(3)
    alone = fit_temperature(probs, labels)
    assert fit_temperature(three, again, bags=3) == pytest.approx(alone, rel=1e-9)
    assert fit_temperature(three, again) != pytest.approx(alone, rel=1e-3)


def test_temperature_one_changes_nothing_and_any_keeps_the_most_probable() -> None:
    probs = random_logits(30, 5).double().softmax(dim=1)

    np.testing.assert_allclose(apply_temperature(probs, 1.0), probs)
    for temperature in (0.1, 3.0, 100.0):
        changed = apply_temperature(probs, temperature)
        assert torch.equal(changed.argmax(dim=1), probs.argmax(dim=1))


def test_temperature_of_vote_shares_with_zeros_is_finite() -> None:
    probs = combine(MajorityVote(), random_logits(3, 40, 4), torch.zeros(3))
    labels = torch.arange(40) % 4

    temperature = fit_temperature(probs, labels)

    assert nll(apply_temperature(probs, temperature), labels) < nll(probs, labels)


def test_a_vote_is_read_by_its_kind() -> None:
    read = TypeAdapter(Vote).validate_python

    assert read({"kind": "weighted", "sharpness": 2}) == WeightedVote(sharpness=2)
    assert [read({"kind": vote.kind}) for vote in ALL_VOTES] == ALL_VOTES
    assert {*map(type, ALL_VOTES), ImportedVote} == {*variants(Vote)}
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        read({"kind": "weighted", "sharpness": -1})
