import statistics

import numpy as np
import pytest

from bend_ray.report.results import EQUAL_COST, scored_bags
from bend_ray.report.runs import Run
from bend_ray.report.statistics import differences
from bend_ray.report.verdicts import equivalent, equivalents, headline, highlights, minus


@pytest.mark.parametrize(
    ("nll", "expected"),
    [
        (0.5, "< 1"),
        (0.4, "1.0"),
        (0.35, "1.5"),
        (0.3, "2.0"),
        (0.25, "3.0"),
        (0.2, "4.0"),
        (0.19, "> 4"),
    ],
)
def test_the_equivalent_is_read_off_the_curve(nll: float, expected: str) -> None:
    assert str(equivalent(nll, [1, 2, 4], [0.4, 0.3, 0.2])) == expected


def test_it_is_the_inverse_of_a_falling_curve() -> None:
    sizes, nlls = [1, 2, 4, 8], [0.4, 0.3, 0.28, 0.2]
    for nll in np.linspace(0.2, 0.4, 17):
        members = equivalent(float(nll), sizes, nlls).members
        assert np.interp(members, sizes, nlls) == pytest.approx(nll)


def test_a_curve_that_rises_again_counts_with_its_best() -> None:
    sizes, nlls = [1, 2, 4, 8], [0.4, 0.3, 0.35, 0.2]
    assert equivalent(0.32, sizes, nlls).members == pytest.approx(1.8)
    assert equivalent(0.25, sizes, nlls).members == pytest.approx(6.0)
    assert str(equivalent(0.25, [1, 2], [0.4, 0.4])) == "> 2"


def test_bags_are_ranked_by_nll_and_measured_by_the_deep_ensemble(repeats: list[Run]) -> None:
    told = scored_bags([run.result for run in repeats])
    means = [statistics.fmean(each.nll for each in scores) for scores in told.values()]
    assert means == sorted(means)
    assert told["bag"] == [run.result.bag for run in repeats]
    measured = {name for name in told if equivalents(repeats, name)}
    assert measured == told.keys() - {"deep_ensemble", EQUAL_COST}


def test_differences_are_over_repeats_or_over_images(repeats: list[Run]) -> None:
    evaluations = [run.result for run in repeats]
    pairs = [e.bag for e in evaluations], [e.rivals["gaussian"] for e in evaluations]
    assert minus(repeats, "gaussian") == differences(*pairs)
    told = repeats[0].evidence["bags"]["gaussian"]["bag_minus_it"]["nll"]
    alone = minus(repeats[:1], "gaussian")["nll"]
    assert (alone.mean, alone.standard_error) == (told["mean"], told["standard_error"])
    expected = evaluations[0].bag.nll - evaluations[0].rivals["gaussian"].nll
    assert alone.mean == pytest.approx(expected, rel=1e-4)


def test_the_headline_names_the_loss_as_plainly_as_the_win(repeats: list[Run]) -> None:
    run = repeats[0]
    for better, verb in (("bag", "wins in NLL (-"), ("it", "loses in NLL (+")):
        sign = -1 if better == "bag" else 1
        evidence = {**run.evidence, "bags": dict(run.evidence["bags"])}
        told = {"mean": sign * 0.5, "standard_error": 0.1}
        evidence["bags"]["deep_ensemble"] = {
            **run.evidence["bags"]["deep_ensemble"],
            "bag_minus_it": {"accuracy": {"mean": 0.0, "standard_error": 0.1}, "nll": told},
        }
        spoken = Run(run.result, run.config, evidence, run.versions, run.created)
        assert verb in headline([spoken])
        assert "ties in accuracy" in headline([spoken])


def test_three_cards_say_gain_rival_and_cost(repeats: list[Run]) -> None:
    gain, against, cost = highlights(repeats)
    assert "points" in gain.value
    assert "deep ensemble of 4" in against.label
    assert cost.value == "0.25 s against 1.5 s"
    assert "6.0 times cheaper" in cost.note
    assert "3.3 times dearer" in cost.note
