"""The evidence of the comparison on classifiers whose parameters are their answers."""

import json
from typing import Any

import pytest
import torch
from answers import LABELS, PRICES, N, Population, comparison_of, members
from scored import disagreement, nll

from bend_ray.artifacts.directory import to_json
from bend_ray.comparison.comparison import Comparison
from bend_ray.comparison.evidence import compared
from bend_ray.config.schema import EvaluationSection
from bend_ray.ensemble.bagging import TopK
from bend_ray.ensemble.metrics import rejection
from bend_ray.ensemble.votes import apply_temperature, fit_temperature
from bend_ray.generation.rivals import BestOriginal, DeepEnsemble, Gaussian, OriginalsBag

RIVALS = (OriginalsBag(), BestOriginal(), DeepEnsemble(), Gaussian())


def comparison(
    section: EvaluationSection | None = None, **changes: Population | None
) -> Comparison:
    populations: dict[str, Population | None] = {
        "originals": members(6, 1),
        "held_out": members(2, 2),
        "generated": members(4, 3),
        "ordinary": members(5, 4),
    }
    section = section or EvaluationSection(rivals=RIVALS, temperature_scaling=False)
    return comparison_of(section, populations | changes)


def evidence(of: Comparison) -> dict[str, Any]:
    return compared(of)[1]


def test_evidence_is_json_and_names_what_the_comparison_names() -> None:
    said = evidence(comparison())
    assert json.loads(to_json(said)) == said
    assert set(said["populations"]) == {"generated", "originals", "held_out", "ordinary"}
    assert set(said["bags"]) == {"bag", "member", *(rival.kind for rival in RIVALS)}
    assert len(said["populations"]["generated"]["plane"]) == 4


def test_a_curve_ends_at_the_scores_and_at_the_cost_of_the_whole() -> None:
    found, shown = compared(comparison())
    said, metrics = shown["bags"], found.model_dump()
    for name, scores in {"bag": metrics["bag"], **metrics["rivals"]}.items():
        curve, cost = said[name]["curve"], said[name]["cost"]
        seconds = cost["fixed"] + scores["size"] * cost["member"]
        assert seconds == pytest.approx(scores["cost_seconds"], rel=1e-4)
        if name not in ("best_original", "deep_ensemble"):
            assert curve["sizes"][-1] == scores["size"]
            assert curve["nll"]["mean"][-1] == pytest.approx(scores["nll"], rel=1e-4)
    # The deep ensemble is the measure of the others: all that were trained.
    assert said["deep_ensemble"]["curve"]["sizes"][-1] == 5
    assert said["best_original"]["curve"] is None


def test_a_bag_chosen_among_all_pays_for_all() -> None:
    chosen = comparison(
        section=EvaluationSection(rivals=(), bagging=TopK(size=2), temperature_scaling=False)
    )
    assert evidence(chosen)["bags"]["bag"]["cost"] == {"fixed": PRICES.bag, "member": 0.0}


@pytest.mark.slow
def test_temperature_is_fitted_on_validation_images() -> None:
    generated = members(4, 3)
    val, test = (
        said.logits_ENC.double().softmax(-1).mean(0)
        for said in (generated.validation, generated.test)
    )
    temperature = fit_temperature(val, LABELS[:N])
    bags = evidence(comparison())["bags"]
    said = bags["bag"]
    assert said["temperature"] == pytest.approx(temperature, rel=1e-4)
    expected = nll(apply_temperature(test, temperature), LABELS[N:])
    assert said["scaled"]["nll"] == pytest.approx(expected, rel=1e-4)
    curve = bags["deep_ensemble"]["curve"]
    assert len(curve["scaled_nll"]) == len(curve["sizes"])


@pytest.mark.slow
def test_where_bags_are_scored_at_temperatures_so_are_their_curves_and_differences() -> None:
    of = comparison(section=EvaluationSection(rivals=RIVALS, temperature_scaling=True))
    found, shown = compared(of)
    said, metrics = shown["bags"], found.model_dump()
    bag, ensemble = said["bag"], said["deep_ensemble"]
    assert bag["curve"]["nll"]["mean"][-1] == pytest.approx(metrics["bag"]["nll"], rel=1e-4)
    assert bag["scaled"]["nll"] == pytest.approx(metrics["bag"]["nll"], rel=1e-4)
    assert ensemble["curve"]["scaled_nll"] == ensemble["curve"]["nll"]["mean"]
    refused = rejection(of.voted(of.bags["bag"]).scaled_NC, LABELS[N:])
    assert bag["rejection"]["accuracy"] == pytest.approx(refused["accuracy"], rel=1e-4)
    minus = metrics["bag"]["nll"] - metrics["rivals"]["deep_ensemble"]["nll"]
    assert ensemble["bag_minus_it"]["nll"]["mean"] == pytest.approx(minus, rel=1e-4)


@pytest.mark.slow
def test_each_models_disagreement_averages_to_that_of_the_population() -> None:
    of = comparison()
    said = evidence(of)["populations"]["originals"]
    mean = torch.tensor(said["disagreement"]).mean().item()
    assert mean == pytest.approx(disagreement(of.members["originals"].predictions_EN), rel=1e-4)


@pytest.mark.slow
def test_distances_are_those_of_the_novelty_block() -> None:
    found, said = compared(comparison())
    nearest = torch.tensor(said["populations"]["generated"]["nearest"])
    ratio = nearest.double().quantile(0.5).item() / said["usual_distance"]
    assert ratio == pytest.approx(found.populations["generated"].novelty.nearest_ratio, rel=1e-4)
    originals, generated = members(6, 1).theta_EP, members(4, 3).theta_EP
    expected = torch.cdist(generated.double(), originals.double()).amin(dim=1)
    assert nearest.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_without_held_out_members_or_deep_ensemble_their_rows_are_empty() -> None:
    section = EvaluationSection(rivals=(OriginalsBag(),), temperature_scaling=False)
    said = evidence(comparison(section=section, held_out=members(0, 2), ordinary=None))
    assert said["populations"]["held_out"]["accuracy"] == []
    assert said["populations"]["held_out"]["plane"] == []
    assert "ordinary" not in said["populations"]
