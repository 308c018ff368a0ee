"""Counting and stopping, against the pipeline's votes and against every possible rest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored import combine

from bend_ray.ensemble.programs import Outputs
from bend_ray.ensemble.votes import MajorityVote, SoftVote, Vote, WeightedVote, apply_temperature
from bend_ray.export.card import Card, Input
from bend_ray.export.graphs import Way, count_program
from bend_ray.networks.architectures import Mlp
from bend_ray.serve.bag import decided, finished
from bend_ray.serve.settings import Stop


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


def counted(card: Card, probs_BEC: np.ndarray, asked_BE: np.ndarray) -> Outputs:
    """What those members say together who were asked; of the others there are zeros."""
    choices_BE = np.where(asked_BE, probs_BEC.argmax(axis=2), -1)
    said = {"member_probabilities": probs_BEC.astype(np.float32), "member_labels": choices_BE}
    weights_B1E = np.where(asked_BE, card.rule.sums_exactly, 0.0)[:, None]
    ask = Way("unrolled", 1).ready(count_program(card, of_logits=False))
    return {**said, **ask({**said, "weights": weights_B1E})}


def equal(members: int) -> list[float]:
    return [1 / members] * members


def random_logits(seed: int, members: int, images: int, classes: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    scale = generator.choice([0.5, 3.0, 30.0])
    return (scale * generator.standard_normal((members, images, classes))).astype(np.float32)


def asked(logits_EBC: np.ndarray, first: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Softmaxes of members of whom the ``first`` were asked, and who was."""
    probs_EBC = torch.from_numpy(logits_EBC).double().softmax(dim=-1).numpy()
    asked_BE = np.zeros(logits_EBC.shape[1::-1], np.bool_)
    asked_BE[:, :first] = True
    return probs_EBC.transpose(1, 0, 2) * asked_BE[:, :, None], asked_BE


def is_decided(card: Card, logits_EBC: np.ndarray, first: int) -> bool:
    probs_BEC, asked_BE = asked(logits_EBC, first)
    return bool(decided(card.rule, counted(card, probs_BEC, asked_BE), asked_BE)[0])


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
@pytest.mark.parametrize("vote", [SoftVote(), MajorityVote(), WeightedVote()])
def test_the_whole_bag_answers_as_the_pipeline_votes(vote: Vote, temperature: float) -> None:
    logits = random_logits(1, 6, 40, 5)
    nll = torch.linspace(0.1, 0.5, 6).double()
    weights = (vote.weights(nll) / vote.weights(nll).sum()).tolist()
    answers = counted(card(vote, weights, 5, temperature), *asked(logits))
    expected = combine(vote, torch.from_numpy(logits), nll)
    if temperature != 1.0:
        expected = apply_temperature(expected, temperature)
    np.testing.assert_allclose(answers["probabilities"], expected, atol=1e-7)
    np.testing.assert_array_equal(answers["label"], expected.argmax(dim=1))
    np.testing.assert_array_equal(answers["votes"].sum(axis=1), 6)


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_uncertainty_is_of_the_bag_and_disagreement_of_its_members(temperature: float) -> None:
    logits = random_logits(2, 4, 10, 3)
    rule = card(SoftVote(), equal(4), 3, temperature)
    answers = counted(rule, *asked(logits))
    probs = torch.from_numpy(logits).double().softmax(-1)
    tempered = apply_temperature(probs.mean(dim=0), temperature)
    bag = torch.special.entr(tempered).sum(dim=1)
    whole = torch.special.entr(probs.mean(dim=0)).sum(dim=1)
    own = torch.special.entr(probs).sum(dim=2).mean(dim=0)
    np.testing.assert_allclose(answers["entropy"], bag, atol=1e-7)
    np.testing.assert_allclose(answers["mutual_information"], whole - own, atol=1e-7)
    np.testing.assert_allclose(answers["member_probabilities"], probs.transpose(0, 1), atol=1e-6)
    same = np.repeat(logits[:1], 4, axis=0)
    agreed = counted(card(SoftVote(), equal(4), 3), *asked(same))
    np.testing.assert_allclose(agreed["mutual_information"], 0.0, atol=1e-7)


def _label(rule: Card, logits_EBC: np.ndarray, first: int | None = None) -> int:
    return int(counted(rule, *asked(logits_EBC, first))["label"][0])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_counted_votes_are_decided_exactly_when_no_rest_changes_the_label(
    data: st.DataObject,
) -> None:
    classes = data.draw(st.integers(2, 3))
    copies = data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=6))
    first = data.draw(st.integers(1, len(copies)))
    votes = data.draw(st.lists(st.integers(0, classes - 1), min_size=first, max_size=first))
    weights = [count / sum(copies) for count in copies]
    rule = card(MajorityVote(), weights, classes)
    one_hot = 1e4 * np.eye(classes, dtype=np.float32)
    rests = [list(rest) for rest in itertools.product(range(classes), repeat=len(copies) - first)]
    outcomes = {_label(rule, one_hot[votes + rest][:, None]) for rest in rests}
    now = one_hot[votes + rests[0]][:, None]
    assert is_decided(rule, now, first) == (outcomes == {_label(rule, now, first)})


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 4), st.booleans())
def test_averaged_votes_are_decided_exactly_when_the_worst_rest_keeps_the_label(
    seed: int, members: int, classes: int, weighted: bool
) -> None:
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.ones(members)).tolist() if weighted else equal(members)
    vote: Vote = WeightedVote() if weighted else SoftVote()
    rule = card(vote, weights, classes)
    logits = random_logits(seed, members, 1, classes)
    first = int(generator.integers(1, members + 1))
    now = _label(rule, logits, first)
    leads = []
    for favourite in set(range(classes)) - {now}:
        worst = logits.copy()
        worst[first:] = 1e4 * np.eye(classes, dtype=np.float32)[favourite]
        probs_C = counted(rule, *asked(worst))["probabilities"][0]
        leads.append(probs_C[now] - probs_C[favourite])
    settled = is_decided(rule, logits, first)
    if first == members:
        assert settled
    elif abs(min(leads)) > 1e-4:  # nearer than that, rounding may ask one group more
        assert settled == (min(leads) > 0)
    else:
        assert not settled or min(leads) >= 0


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([SoftVote(), MajorityVote()]))
def test_what_is_decided_is_the_whole_bags_label(seed: int, vote: Vote) -> None:
    members, images = 12, 30
    rule = card(vote, equal(members), 4)
    logits = random_logits(seed, members, images, 4)
    labels_B = counted(rule, *asked(logits))["label"]
    stops, done_B = [Stop(decided=True)] * images, np.zeros(images, np.bool_)
    for first in range(3, members + 3, 3):
        probs_BEC, asked_BE = asked(logits, first)
        said = counted(rule, probs_BEC, asked_BE)
        done_B |= finished(rule.rule, said, asked_BE, stops)
        np.testing.assert_array_equal(said["label"][done_B], labels_B[done_B])
    assert done_B.all()


def test_a_confidence_stops_only_those_who_asked_for_it() -> None:
    rule = card(SoftVote(), equal(4), 2)
    probs_BEC, asked_BE = asked(np.array([[[2.0, 0.0]] * 3] * 4, dtype=np.float32), 1)  # 0.88
    said = counted(rule, probs_BEC, asked_BE)
    stops = [Stop(confidence=0.8), Stop(confidence=0.9), Stop()]
    assert finished(rule.rule, said, asked_BE, stops).tolist() == [True, False, False]
