"""Counting and stopping, against the pipeline's votes and against every possible rest."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bend_ray.ensemble.rule import Rule
from bend_ray.ensemble.votes import MajorityVote, SoftVote, Vote, WeightedVote, apply_temperature
from bend_ray.export.card import Card, Input
from bend_ray.networks.architectures import Mlp
from bend_ray.serve.voting import Ballots, Stop, Tally


def card(vote: Vote, weights: list[float], classes: int, temperature: float = 1.0) -> Card:
    return Card(
        model_version="v",
        created="now",
        bend_ray="0",
        architecture=Mlp(),
        inputs={"inputs": Input(shape=(4,), dtype="float32")},
        class_names=tuple(str(c) for c in range(classes)),
        vote=vote,
        members=tuple(range(len(weights))),
        weights=tuple(weights),
        temperature=temperature,
    )


def equal(members: int) -> list[float]:
    return [1 / members] * members


def random_logits(seed: int, members: int, images: int, classes: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scale = generator.choice([0.5, 3.0, 30.0])
    return (scale * generator.standard_normal((members, images, classes))).astype(np.float32)


def ballots(rule: Rule, first: int, logits_EBC: np.ndarray) -> Ballots:
    """What members from ``first`` on say, in float64."""
    probs_EBC = torch.from_numpy(logits_EBC).double().softmax(dim=-1)
    weights_E = torch.tensor(
        rule.sums_exactly[first : first + len(logits_EBC)], dtype=torch.float64
    )
    entropy_EB = torch.special.entr(probs_EBC).sum(dim=-1)
    return Ballots(
        torch.einsum("e,ebc->bc", weights_E, probs_EBC).numpy(),
        (weights_E @ entropy_EB).numpy(),
        logits_EBC.argmax(axis=-1),
        probs_EBC.numpy(),
    )


def counted(rule: Rule, logits_EBC: np.ndarray, **options: Any) -> Tally:
    tally = Tally(rule, logits_EBC.shape[1], logits_EBC.shape[2], **options)
    rows = np.arange(logits_EBC.shape[1])
    half = len(logits_EBC) // 2
    for part in (slice(0, half), slice(half, None)):
        if len(logits_EBC[part]):
            tally.add(part.start, ballots(rule, part.start, logits_EBC[part]), rows)
    return tally


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
@pytest.mark.parametrize("vote", [SoftVote(), MajorityVote(), WeightedVote()])
def test_the_whole_bag_answers_as_the_pipeline_votes(vote: Vote, temperature: float) -> None:
    logits = random_logits(1, 6, 40, 5)
    nll = torch.linspace(0.1, 0.5, 6).double()
    weights = (vote.weights(nll) / vote.weights(nll).sum()).tolist()
    answers = counted(card(vote, weights, 5, temperature).rule, logits).answers()
    expected = vote.combine(torch.from_numpy(logits), nll)
    if temperature != 1.0:
        expected = apply_temperature(expected, temperature)
    np.testing.assert_allclose(answers.probs_BC, expected, atol=1e-12)
    np.testing.assert_array_equal(answers.labels_B, expected.argmax(dim=1))
    np.testing.assert_array_equal(answers.used_B, 6)
    np.testing.assert_array_equal(answers.votes_BC.sum(axis=1), 6)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_uncertainty_is_of_the_bag_and_disagreement_of_its_members(temperature: float) -> None:
    logits = random_logits(2, 4, 10, 3)
    rule = card(SoftVote(), equal(4), 3, temperature).rule
    answers = counted(rule, logits, keep_members=True).answers()
    probs = torch.from_numpy(logits).double().softmax(-1)
    tempered = apply_temperature(probs.mean(dim=0), temperature)
    bag = torch.special.entr(tempered).sum(dim=1)
    whole = torch.special.entr(probs.mean(dim=0)).sum(dim=1)
    own = torch.special.entr(probs).sum(dim=2).mean(dim=0)
    np.testing.assert_allclose(answers.entropy_B, bag, atol=1e-12)
    np.testing.assert_allclose(answers.information_B, whole - own, atol=1e-12)
    np.testing.assert_allclose(answers.member_probs_BEC, probs.transpose(0, 1), atol=1e-6)
    same = np.repeat(logits[:1], 4, axis=0)
    agreed = counted(card(SoftVote(), equal(4), 3).rule, same).answers()
    np.testing.assert_allclose(agreed.information_B, 0.0, atol=1e-12)


def _label(rule: Rule, logits_EBC: np.ndarray) -> int:
    return int(counted(rule, logits_EBC).answers().labels_B[0])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_counted_votes_are_decided_exactly_when_no_rest_changes_the_label(
    data: st.DataObject,
) -> None:
    classes = data.draw(st.integers(2, 3))
    copies = data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=6))
    asked = data.draw(st.integers(1, len(copies)))
    votes = data.draw(st.lists(st.integers(0, classes - 1), min_size=asked, max_size=asked))
    weights = [count / sum(copies) for count in copies]
    rule = card(MajorityVote(), weights, classes).rule
    tally = Tally(rule, 1, classes)
    one_hot = np.eye(classes, dtype=np.float32)
    tally.add(0, ballots(rule, 0, one_hot[votes][:, None]), np.arange(1))
    now = int(tally.answers().labels_B[0])
    rests = itertools.product(range(classes), repeat=len(copies) - asked)
    outcomes = {_label(rule, one_hot[[*votes, *rest]][:, None]) for rest in rests}
    assert bool(tally.decided()[0]) == (outcomes == {now})


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 4), st.booleans())
def test_averaged_votes_are_decided_exactly_when_the_worst_rest_keeps_the_label(
    seed: int, members: int, classes: int, weighted: bool
) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.ones(members)).tolist() if weighted else equal(members)
    vote: Vote = WeightedVote() if weighted else SoftVote()
    rule = card(vote, weights, classes).rule
    logits = random_logits(seed, members, 1, classes)
    asked = int(generator.integers(1, members + 1))
    tally = Tally(rule, 1, classes)
    tally.add(0, ballots(rule, 0, logits[:asked]), np.arange(1))
    now = int(tally.answers().labels_B[0])
    leads = []
    for favourite in set(range(classes)) - {now}:
        worst = logits.copy()
        worst[asked:] = 1e4 * np.eye(classes, dtype=np.float32)[favourite]
        probs_C = counted(rule, worst).answers().probs_BC[0]
        leads.append(probs_C[now] - probs_C[favourite])
    decided = bool(tally.decided()[0])
    if asked == members:
        assert decided
    elif abs(min(leads)) > 1e-4:  # nearer than that, rounding may ask one group more
        assert decided == (min(leads) > 0)
    else:
        assert not decided or min(leads) >= 0


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([SoftVote(), MajorityVote()]))
def test_what_is_decided_is_the_whole_bags_label(seed: int, vote: Vote) -> None:
    members, images = 12, 30
    rule = card(vote, equal(members), 4).rule
    logits = random_logits(seed, members, images, 4)
    labels = counted(rule, logits).answers().labels_B
    tally = Tally(rule, images, 4)
    rows = np.arange(images)
    for first in range(0, members, 3):
        tally.add(first, ballots(rule, first, logits[first : first + 3, rows]), rows)
        rows = rows[~tally.finished([Stop(decided=True)] * images)[rows]]
    np.testing.assert_array_equal(tally.answers().labels_B, labels)


def test_a_confidence_stops_only_those_who_asked_for_it() -> None:
    rule = card(SoftVote(), equal(4), 2).rule
    tally = Tally(rule, 3, 2)
    logits = np.array([[[2.0, 0.0]] * 3], dtype=np.float32)  # 0.88
    tally.add(0, ballots(rule, 0, logits), np.arange(3))
    stops = [Stop(confidence=0.8), Stop(confidence=0.9), Stop()]
    assert tally.finished(stops).tolist() == [True, False, False]
