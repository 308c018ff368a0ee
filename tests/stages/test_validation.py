"""What a search is told of a bag: nothing that choosing by the same images could make better."""

import pytest
import torch
from scored import combine, member_nll, nll

from bend_ray.config.schema import EvaluationSection
from bend_ray.ensemble.bagging import All, TopK
from bend_ray.ensemble.predictions import Predictions
from bend_ray.ensemble.votes import SoftVote, WeightedVote, apply_temperature, fit_temperature
from bend_ray.stages.scoring import cross_fitted_curve
from bend_ray.tasks import Classification

CLASSES = Classification()

E, N, C = 24, 200, 5


@pytest.fixture
def guesses() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Members that know nothing, differ by chance alone, and come of four trunks."""
    generator = torch.Generator().manual_seed(0)
    logits_ENC = torch.randn(E, N, C, generator=generator)
    return logits_ENC, torch.randint(C, (N,), generator=generator), torch.arange(E) % 4


def test_the_whole_bag_is_scored_as_it_votes(
    guesses: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    logits, labels, trunks = guesses
    _, by_size = cross_fitted_curve(
        EvaluationSection(rivals=(), temperature_scaling=False),
        Predictions(logits, labels, CLASSES),
        trunks,
        [1, E],
    )
    whole = combine(SoftVote(), logits, member_nll(logits, labels))
    assert by_size[-1] == pytest.approx(nll(whole, labels))
    # One member is any of them: a mean over orders that put different ones first.
    alone = member_nll(logits, labels)
    assert alone.min() < by_size[0] < alone.max()
    assert by_size[0] == pytest.approx(alone.mean().item(), abs=0.05)


@pytest.mark.parametrize("vote", [SoftVote(), WeightedVote(sharpness=50)])
def test_choosing_the_luckiest_is_not_rewarded(
    guesses: tuple[torch.Tensor, torch.Tensor, torch.Tensor], vote: SoftVote | WeightedVote
) -> None:
    logits, labels, trunks = guesses
    section = EvaluationSection(bagging=TopK(), vote=vote, rivals=(), temperature_scaling=False)
    _, by_size = cross_fitted_curve(section, Predictions(logits, labels, CLASSES), trunks, [1])
    alone = member_nll(logits, labels)
    naive = alone.min().item()
    assert by_size[0] > (naive + alone.mean().item()) / 2


def test_a_temperature_is_fitted_on_the_half_that_is_not_scored(
    guesses: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    logits, labels, trunks = guesses
    section = EvaluationSection(temperature_scaling=True, rivals=())
    _, by_size = cross_fitted_curve(section, Predictions(logits, labels, CLASSES), trunks, [E])
    whole = combine(SoftVote(), logits, member_nll(logits, labels))
    half = torch.arange(N) % 2 == 0
    scaled = whole.clone()
    for scored in (half, ~half):
        temperature = fit_temperature(whole[~scored], labels[~scored])
        scaled[scored] = apply_temperature(whole[scored], temperature)
    assert by_size[0] == pytest.approx(nll(scaled, labels))


def test_a_size_depends_on_no_larger_one(
    guesses: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    for bagging in (All(), TopK(), All(size=3)):
        section = EvaluationSection(bagging=bagging, rivals=(), temperature_scaling=False)
        predictions, trunks = Predictions(*guesses[:2], CLASSES), guesses[2]
        few = cross_fitted_curve(section, predictions, trunks, [2, 4])
        more = cross_fitted_curve(section, predictions, trunks, [2, 4, 16])
        assert few[1] == pytest.approx(more[1][:2])
