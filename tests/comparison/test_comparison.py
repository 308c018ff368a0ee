"""The comparison on classifiers whose parameters are their answers; needs no Ray."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from answers import LABELS, PRICES, C, N, Population, comparison_of, members
from scored import nll

from bend_ray.comparison.comparison import StageCosts
from bend_ray.comparison.evidence import compared
from bend_ray.config.schema import EvaluationSection
from bend_ray.ensemble.bagging import All, TopK
from bend_ray.ensemble.votes import SoftVote, apply_temperature, fit_temperature
from bend_ray.generation.rivals import (
    BestOriginal,
    DeepEnsemble,
    Gaussian,
    OriginalsBag,
    TrunkBag,
    WeightAverage,
)


def compare(
    section: EvaluationSection, prices: StageCosts = PRICES, **changes: Population | None
) -> dict[str, Any]:
    populations: dict[str, Population | None] = {
        "originals": members(6, 1),
        "held_out": members(2, 2),
        "generated": members(4, 3),
        "ordinary": members(4, 4),
    }
    found, _ = compared(comparison_of(section, populations | changes, prices))
    return found.model_dump(mode="json")


def section(*rivals: Any, **changes: Any) -> EvaluationSection:
    return EvaluationSection(**{"rivals": rivals, "temperature_scaling": False, **changes})


def test_the_bag_is_the_mean_of_its_members_probabilities() -> None:
    said = compare(section())
    probs = members(4, 3).test.logits_ENC.softmax(-1).mean(0)
    labels = torch.arange(N, 2 * N) % C
    assert said["bag"]["accuracy"] == pytest.approx(
        (probs.argmax(-1) == labels).double().mean().item()
    )
    assert said["bag"]["nll"] == pytest.approx(
        -probs[torch.arange(N), labels].log().mean().item(), rel=1e-5
    )
    assert said["bag"]["size"] == 4
    assert said["bag"]["cost_seconds"] == 20.0


def test_members_are_chosen_on_validation_images_alone() -> None:
    generated = members(4, 3)
    _, nll = generated.validation.scores()
    said = compare(section(bagging=TopK(size=2)))
    assert said["bag"]["members"] == nll.argsort()[:2].tolist()
    other = generated.theta_EP.clone().view(4, 2, -1)
    other[:, 1] *= -1
    spoilt = replace(generated, theta_EP=other.flatten(1))
    blind = compare(section(bagging=TopK(size=2)), generated=spoilt)
    assert blind["bag"]["members"] == said["bag"]["members"]
    assert blind["bag"]["nll"] != said["bag"]["nll"]


def test_every_bag_is_scored_at_a_temperature_of_its_own_fitted_on_validation_images() -> None:
    # Else who only guesses is best at the highest temperature there is.
    right = torch.nn.functional.one_hot(LABELS).flatten()

    def knowing(count: int, seed: int) -> Population:
        guessing = members(count, seed)
        return replace(guessing, theta_EP=guessing.theta_EP + right)

    rivals, drawn = (OriginalsBag(), DeepEnsemble(), WeightAverage()), knowing(4, 3)
    all_know = {"originals": knowing(6, 1), "generated": drawn, "ordinary": knowing(4, 4)}
    as_voted = compare(section(*rivals), **all_know)
    said = compare(section(*rivals, temperature_scaling=True), **all_know)
    val_NC, test_NC = (
        said.logits_ENC.double().softmax(-1).mean(0) for said in (drawn.validation, drawn.test)
    )
    temperature = fit_temperature(val_NC, LABELS[:N])
    assert said["bag"]["temperature"] == pytest.approx(temperature)
    expected = nll(apply_temperature(test_NC, temperature), LABELS[N:])
    assert said["bag"]["nll"] == pytest.approx(expected)
    assert said["bag"]["accuracy"] == as_voted["bag"]["accuracy"]
    told = {each["temperature"] for each in (said["bag"], *said["rivals"].values())}
    assert len(told) == 1 + len(rivals)
    assert said["prices"]["equal_cost_deep_ensemble"]["temperature"] in told
    assert "temperature" not in as_voted["bag"]


def test_every_rival_has_its_size_and_pays_for_what_it_needs() -> None:
    rivals = (OriginalsBag(), TrunkBag(), BestOriginal(), DeepEnsemble(), WeightAverage())
    said = compare(section(*rivals))["rivals"]
    assert {name: rival["size"] for name, rival in said.items()} == {
        "originals_bag": 4,
        "trunk_bag": 2,
        "best_original": 1,
        "deep_ensemble": 4,
        "weight_average": 1,
    }
    # Members cost a share of seeds without roots; the roots are always paid for.
    assert said["originals_bag"]["cost_seconds"] == pytest.approx(8 * 4 / 8 + 2)
    assert said["trunk_bag"]["cost_seconds"] == pytest.approx(8 * 2 / 8 + 2)
    assert said["best_original"]["cost_seconds"] == pytest.approx(8 * 6 / 8 + 2)
    assert said["deep_ensemble"]["cost_seconds"] == pytest.approx(4 * 1.5)
    assert said["weight_average"]["cost_seconds"] == pytest.approx(8 * 6 / 8 + 2 + 0.5)


def test_the_deep_ensemble_at_equal_cost_has_the_members_our_cost_pays_for() -> None:
    cheap = replace(PRICES, bag=4.6)
    equal = compare(section(DeepEnsemble()), prices=cheap)["prices"]["equal_cost_deep_ensemble"]
    assert (equal["affordable"], equal["size"]) == (3, 3)
    assert equal["cost_seconds"] == pytest.approx(4.5)
    capped = compare(section(DeepEnsemble()))["prices"]["equal_cost_deep_ensemble"]
    assert (capped["affordable"], capped["size"]) == (13, 4)


def test_a_smaller_bag_has_the_first_of_what_a_rival_draws() -> None:
    smaller = compare(section(Gaussian(), bagging=All(size=3)))["rivals"]["gaussian"]
    assert smaller["size"] == 3
    assert smaller["cost_seconds"] == pytest.approx(8 * 6 / 8 + 2 + 3 * 0.5)


def test_without_held_out_members_their_rows_are_empty() -> None:
    said = compare(section(), held_out=members(0, 2), ordinary=None)
    assert set(said["populations"]["held_out"].values()) == {None}
    assert "equal_cost_deep_ensemble" not in said["prices"]


def test_one_more_model_costs_its_drawing_and_all_cost_what_led_to_them() -> None:
    told = compare(section())["prices"]
    assert told.pop("equal_cost_deep_ensemble")["size"] == 4
    assert told == {"marginal_seconds": 0.25, "amortised_seconds": 5.0, "ordinary_seconds": 1.5}


def test_the_soft_vote_of_one_member_is_that_member() -> None:
    alone = members(1, 5)
    said = compare(section(vote=SoftVote()), generated=alone)
    assert said["bag"]["accuracy"] == said["populations"]["generated"]["accuracy"]["mean"]
    assert said["populations"]["generated"]["diversity"] is None
