"""Scores of what is out of distribution, held to scikit-learn and to closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from bend_ray.ensemble.metrics import KEPT, detection
from bend_ray.ensemble.predictions import Predictions
from bend_ray.tasks import Classification

CLASSES = Classification()
SCORES = st.lists(st.integers(0, 12), min_size=2, max_size=40)


@settings(max_examples=150, deadline=None)
@given(SCORES, SCORES)
def test_figures_are_those_of_scikit_learn(inside: list[int], outside: list[int]) -> None:
    values = np.array([*inside, *outside], dtype=float)
    truth = np.repeat([0, 1], [len(inside), len(outside)])
    ours = detection(values[: len(inside)], values[len(inside) :])
    assert ours["auroc"] == pytest.approx(roc_auc_score(truth, values))
    assert ours["aupr"] == pytest.approx(average_precision_score(truth, values))
    wrong, found, _ = roc_curve(truth, values, drop_intermediate=False)
    assert ours["fpr95"] == pytest.approx(wrong[np.argmax(found >= KEPT - 1e-12)])


def test_the_error_is_what_draws_of_examples_show() -> None:
    generator = np.random.default_rng(0)
    drawn = [
        detection(generator.normal(size=80), generator.normal(1.0, size=60)) for _ in range(600)
    ]
    spread = np.std([each["auroc"] for each in drawn])
    assert np.mean([each["standard_error"] for each in drawn]) == pytest.approx(spread, rel=0.12)


def test_scores_are_what_their_closed_forms_say() -> None:
    logits = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    probs = torch.einsum("e,enc->nc", weight / 4, logits.double().softmax(-1))
    found = CLASSES.uncertainties(Predictions(logits, torch.zeros(7), CLASSES), weight, probs)
    entropy = -(probs * probs.log()).sum(1)
    own = -(logits.double().softmax(-1) * logits.double().log_softmax(-1)).sum(-1)
    assert found["probability"] == pytest.approx(1 - probs.amax(1).numpy())
    assert found["entropy"] == pytest.approx(entropy.numpy())
    assert found["information"] == pytest.approx((entropy - weight / 4 @ own).numpy())
    energy = -(weight / 4 @ logits.double().exp().sum(-1).log())
    assert found["energy"] == pytest.approx(energy.numpy())


def test_members_that_agree_share_no_information() -> None:
    logits = torch.randn(1, 5, 3).expand(4, 5, 3)
    probs = logits[0].double().softmax(-1)
    found = CLASSES.uncertainties(
        Predictions(logits, torch.zeros(5), CLASSES), torch.ones(4).double(), probs
    )
    assert np.abs(found["information"]).max() < 1e-12
