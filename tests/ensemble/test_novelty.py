from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bend_ray.ensemble import novelty as module
from bend_ray.ensemble.metrics import pairwise_disagreement
from bend_ray.ensemble.novelty import Models, places_among
from bend_ray.process import matrix
from bend_ray.tasks import Classification

CLASSES = Classification()

NUM_TRUNKS, PER_TRUNK, NUM_PARAMETERS, NUM_EXAMPLES = 3, 20, 200, 40


def population(seed: int, noise: float = 1.0, per_trunk: int = PER_TRUNK) -> tuple:
    """Parameters, trunks and predictions drawn around far-apart trunks."""
    centres = 30 * torch.randn(
        NUM_TRUNKS, NUM_PARAMETERS, generator=torch.Generator().manual_seed(99)
    )
    generator = torch.Generator().manual_seed(seed)
    trunks = torch.arange(NUM_TRUNKS).repeat_interleave(per_trunk)
    theta = centres[trunks] + noise * torch.randn(len(trunks), NUM_PARAMETERS, generator=generator)
    predictions = torch.randint(4, (len(trunks), NUM_EXAMPLES), generator=generator)
    return theta, trunks, predictions


@pytest.fixture
def training() -> tuple:
    return population(seed=0)


@pytest.fixture(params=[64 * 2**20, 8 * 80 * 7], ids=["one chunk", "many chunks"])
def chunk(request, monkeypatch) -> None:
    monkeypatch.setattr(matrix, "BLOCK_BYTES", request.param)


def novelty(
    theta: torch.Tensor, trunks: torch.Tensor, predictions: torch.Tensor, *training: torch.Tensor
) -> SimpleNamespace:
    places = places_among(training[:2], (theta, trunks)), places_among(training[:2])
    models = Models(places[0], trunks, predictions, CLASSES)
    return SimpleNamespace(**module.novelty(models, Models(places[1], *training[1:], CLASSES)))


def nearest(train: torch.Tensor, theta: torch.Tensor | None = None) -> torch.Tensor:
    """Of models, None: of the training models themselves; all of one trunk."""
    populations = [(each, torch.zeros(len(each))) for each in (train, theta) if each is not None]
    return places_among(*populations).nearest_M


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.double() - b.double()).norm().item()


def differing(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a != b).double().mean().item()


def slow_spread(theta, trunks, train_theta, train_trunks) -> float:
    means = {t: train_theta[train_trunks == t].double().mean(dim=0) for t in train_trunks.tolist()}
    shared = set(means) & set(trunks.tolist())

    def mean_distance(rows: torch.Tensor, ids: torch.Tensor) -> float:
        pairs = zip(rows, ids.tolist(), strict=True)
        return float(np.mean([distance(row, means[t]) for row, t in pairs if t in shared]))

    return mean_distance(theta, trunks) / mean_distance(train_theta, train_trunks)


def slow_novelty(theta, trunks, predictions, train_theta, train_trunks, train_predictions) -> dict:
    nearest = [min(distance(row, other) for other in train_theta) for row in theta]
    own = [
        min(distance(row, other) for j, other in enumerate(train_theta) if j != i)
        for i, row in enumerate(train_theta)
    ]
    pairs = [(i, j) for i in range(len(theta)) for j in range(i) if trunks[i] == trunks[j]]
    functional = [min(differing(p, other) for other in train_predictions) for p in predictions]
    return {
        "nearest_ratio": np.median(nearest) / np.median(own),
        "spread": slow_spread(theta, trunks, train_theta, train_trunks),
        "within_trunk_disagreement": np.mean(
            [differing(predictions[i], predictions[j]) for i, j in pairs]
        ),
        "functional_distance": np.mean(functional),
        "copies": np.mean(np.array(nearest) < 0.1 * np.median(own)),
    }


@pytest.mark.usefixtures("chunk")
def test_every_measure_agrees_with_loops(training) -> None:
    theta, trunks, predictions = population(seed=1, per_trunk=6)
    # Uneven trunks, one unknown to the training models and one the models lack; near-copies.
    trunks[trunks == 1] = 2
    trunks[0] = 17
    theta[3:6] = training[0][3:6] + 0.02

    measured = novelty(theta, trunks, predictions, *training)

    assert vars(measured) == pytest.approx(slow_novelty(theta, trunks, predictions, *training))
    assert measured.copies == 3 / 18


@pytest.mark.usefixtures("chunk")
def test_copies_are_counted_as_copies(training) -> None:
    theta, trunks, predictions = population(seed=1)
    theta[:15] = training[0][:15]

    measured = novelty(theta, trunks, predictions, *training)

    assert measured.copies == 15 / 60
    assert (nearest(training[0], theta)[:15] == 0).all()


def test_a_copy_of_large_parameters_is_found_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    train = 1e4 + 1e-2 * torch.randn(10, 50, generator=generator)

    distances = nearest(train, train.flip(0))

    assert distances.tolist() == [0.0] * 10
    expected = torch.cdist(
        train.double(), train.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).fill_diagonal_(math.inf)
    np.testing.assert_allclose(nearest(train), expected.amin(dim=1))


def test_the_training_set_itself_is_nothing_but_copies(training) -> None:
    measured = novelty(*training, *training)

    assert (measured.nearest_ratio, measured.copies, measured.spread) == (0, 1, 1)
    assert measured.functional_distance == 0


def test_held_out_models_are_the_reference_row(training) -> None:
    measured = novelty(*population(seed=1), *training)

    assert measured.copies == 0
    assert measured.nearest_ratio == pytest.approx(1, abs=0.03)
    assert measured.spread == pytest.approx(math.sqrt((PER_TRUNK + 1) / (PER_TRUNK - 1)), rel=0.02)
    assert measured.functional_distance > 0.4
    assert measured.within_trunk_disagreement == pytest.approx(0.75, abs=0.03)


def test_a_gaussian_around_the_trunk_means_has_their_spread_and_the_means_none(training) -> None:
    theta, trunks, predictions = training
    means = torch.stack([theta[trunks == t].mean(dim=0) for t in range(NUM_TRUNKS)])[trunks]
    spread = (theta - means).std(correction=0)
    noise = torch.randn(theta.shape, generator=torch.Generator().manual_seed(3))

    gaussian = novelty(means + spread * noise, trunks, predictions, *training)
    collapsed = novelty(means, trunks, predictions, *training)

    assert gaussian.spread == pytest.approx(1, abs=0.02)
    # The mean looks novel by its nearest distance alone; its spread gives it away.
    assert collapsed.nearest_ratio > 0.6
    assert collapsed.spread == pytest.approx(0, abs=1e-5)


def test_trunks_decide_what_is_compared_with_what(training) -> None:
    theta, _, predictions = training
    one_trunk = torch.full((len(theta),), -1)

    measured = novelty(theta, one_trunk, predictions, theta, one_trunk, predictions)
    strangers = novelty(theta, one_trunk, predictions, *training)

    assert measured.spread == 1
    everybody = pairwise_disagreement(predictions, predictions).sum().item() / (60 * 59)
    assert measured.within_trunk_disagreement == pytest.approx(everybody)
    assert math.isnan(strangers.spread)


def test_one_training_model_leaves_no_ratio_but_still_shows_copies() -> None:
    theta, trunks, predictions = population(seed=1, per_trunk=2)
    train = theta[:1], trunks[:1], predictions[:1]

    measured = novelty(theta, trunks, predictions, *train)

    assert math.isnan(measured.nearest_ratio)
    assert math.isnan(measured.spread)
    assert measured.copies == 1 / 6
    assert nearest(train[0]).isnan().all()


def test_training_models_with_twins_leave_no_ratio() -> None:
    theta, trunks, predictions = population(seed=1, per_trunk=2)
    twins = theta.repeat(2, 1), trunks.repeat(2), predictions.repeat(2, 1)

    measured = novelty(theta + 1, trunks, predictions, *twins)

    assert math.isnan(measured.nearest_ratio)
    assert measured.copies == 0


def test_models_alone_in_their_trunks_have_no_pair(training) -> None:
    theta, trunks, predictions = population(seed=1, per_trunk=1)

    measured = novelty(theta, trunks, predictions, *training)

    assert math.isnan(measured.within_trunk_disagreement)
    assert measured.functional_distance > 0
