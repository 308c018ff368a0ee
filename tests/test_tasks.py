"""What a task owns: that a bag is the mixture of its members, in the targets' own units."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score
from torch.distributions import Categorical, MixtureSameFamily, Normal

from bend_ray.tasks import Classification, Regression


def targets(count: int = 50, width: int = 2, scale: float = 30.0) -> torch.Tensor:
    rng = np.random.default_rng(3)
    return torch.tensor(scale * rng.normal(size=(count, width)) + 1000)


def outputs(members: int = 4, count: int = 50, width: int = 2) -> torch.Tensor:
    return torch.randn(members, count, 2 * width, generator=torch.Generator().manual_seed(0))


@given(st.integers(1, 5), st.integers(1, 3), st.floats(1e-3, 1e6))
@settings(max_examples=20, deadline=None)
def test_a_regressions_answer_is_the_moments_of_the_members_mixture(
    members: int, width: int, scale: float
) -> None:
    labels, said = targets(6, width, scale), outputs(members, 6, width)
    task = Regression().fitted(labels)
    answers = task.answers(task.ballots(said).mean(dim=0))
    mean, log_variance = said.double().chunk(2, dim=-1)
    std, middle = labels.std(dim=0, correction=0), labels.mean(dim=0)
    parts = Normal(
        (mean * std + middle).movedim(0, -1), (log_variance / 2).exp().movedim(0, -1) * std[:, None]
    )
    mixture = MixtureSameFamily(Categorical(torch.ones(members, dtype=torch.float64)), parts)
    assert answers[:, :width].numpy() == pytest.approx(mixture.mean.numpy(), rel=1e-9)
    assert answers[:, width:].numpy() == pytest.approx(mixture.variance.numpy(), rel=1e-6)


def test_likelihoods_are_of_targets_in_their_units() -> None:
    labels, said = targets(), outputs()
    task = Regression().fitted(labels)
    mean, log_variance = said.double().chunk(2, dim=-1)
    std, middle = labels.std(dim=0, correction=0), labels.mean(dim=0)
    expected = Normal(mean * std + middle, (log_variance / 2).exp() * std).log_prob(labels).sum(-1)
    assert task.log_likelihoods(said, labels).numpy() == pytest.approx(expected.numpy())
    assert task.scores(task.answers(task.ballots(said[:1]).mean(0)), labels)["nll"] == (
        pytest.approx(-expected[0].mean().item())
    )


def test_without_beta_the_loss_is_the_likelihood_but_for_a_constant() -> None:
    labels, said = targets(), outputs(1)[0]
    task = Regression(beta=0.0).fitted(labels)
    loss = task.losses(said, task.targets(labels), 0.0).sum().item() + len(labels) * math.log(
        2 * math.pi
    )
    std = task.log_likelihoods(said[None], labels).sum().item()
    units = len(labels) * sum(map(math.log, task.std))
    assert loss + units == pytest.approx(-std, rel=1e-5)


def test_the_scale_is_where_the_likelihood_is_highest() -> None:
    labels, said = targets(), outputs()
    task = Regression().fitted(labels)
    answers = task.answers(task.ballots(said).mean(dim=0))
    best = task.fit_scale(answers.repeat(200, 1), labels.repeat(200, 1))
    nll = {f: task.scores(task.scaled(answers, f * best), labels)["nll"] for f in (0.9, 1.0, 1.1)}
    assert min(nll, key=nll.__getitem__) == 1.0


def test_a_fitted_variance_is_one_for_all() -> None:
    labels = targets()
    task = Regression(variance="fitted").fitted(labels)
    assert (task.num_outputs("ab"), Regression().num_outputs("ab")) == (2, 4)
    said = task.targets(labels)[None].repeat(3, 1, 1) + 0.5
    answers = task.answers(task.ballots(said).mean(dim=0))
    scaled = task.scaled(answers, task.fit_scale(answers.repeat(200, 1), labels.repeat(200, 1)))
    # Half a deviation off everywhere.
    assert scaled[:, 2:].sqrt().numpy() == pytest.approx(0.5 * np.array([task.std] * 50), rel=1e-3)


def test_scores_are_scikit_learns() -> None:
    labels, said = targets(), outputs(3)
    task = Regression().fitted(labels)
    predicted = task.predictions(said)
    expected = [r2_score(labels, each) for each in predicted]
    assert task.member_scores(said, labels).tolist() == pytest.approx(expected)
    constant = torch.full((5, 1), 7.0, dtype=torch.float64)
    assert Regression().fitted(constant).std == (pytest.approx(7e-3),)
    assert task.fitted(constant) is task
    flat = Regression().fitted(constant)
    assert flat.scores(torch.tensor([[7.0, 1.0]] * 5).double(), constant)["accuracy"] == 1.0


def test_distances_and_overlap_of_members() -> None:
    labels, said = targets(), outputs(3)
    task = Regression().fitted(labels)
    means = task.predictions(said)
    one, two = ((means[i] / torch.tensor(task.std)).numpy() for i in (0, 1))
    assert task.distances(means, means)[0, 1].item() == pytest.approx(
        math.sqrt(((one - two) ** 2).mean())
    )
    same = torch.stack([means[0], means[0]])
    told = task.diversity(same, labels)
    assert told == {"disagreement": 0.0, "error_iou": 1.0, "correlation": pytest.approx(1.0)}


def test_classes_know_chance() -> None:
    labels = torch.tensor([0] * 75 + [1] * 25)
    assert Classification().chance(labels) == (0.75, pytest.approx(0.0433, abs=1e-4))


def test_few_examples_hardly_move_a_scale_from_one() -> None:
    labels, said = targets(1), outputs(3, 1)
    task = Regression(mean=(1000.0, 1000.0), std=(30.0, 30.0))
    answers = task.answers(task.ballots(said).mean(dim=0))
    exact = torch.cat([labels, answers[:, 2:]], dim=1)
    assert task.fit_scale(exact, labels) > 0.5
    assert task.fit_scale(exact.repeat(1000, 1), labels.repeat(1000, 1)) < 0.01


def test_figures_of_a_regression_are_shares_and_means() -> None:
    labels, said = targets(), outputs(3)
    task = Regression().fitted(labels)
    answers = task.answers(task.ballots(said).mean(dim=0))
    score_N, nats_N = task.each(answers, labels)
    scores = task.scores(answers, labels)
    assert score_N.mean().item() == pytest.approx(scores["accuracy"])
    assert nats_N.mean().item() == pytest.approx(scores["nll"])
    # Halves of a part add up to it, though each alone has another spread of targets.
    halves = [
        task.member_scores(said[:, own], labels[own], labels) for own in (slice(25), slice(25, 50))
    ]
    assert torch.stack(halves).mean(dim=0).tolist() == pytest.approx(
        task.member_scores(said, labels).tolist()
    )
    told = task.reliability(answers, labels)
    assert told["confidence"][9] == 0.5
    assert told["accuracy"] == sorted(told["accuracy"])
    assert len(task.rejection(answers, labels)["coverage"]) == 50
