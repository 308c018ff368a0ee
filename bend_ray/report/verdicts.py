"""Verdicts: what the figures of one or several repeats say, in words and rows of a table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bend_ray.report.results import BAG, DEEP_ENSEMBLE, EQUAL_COST, scored_bags, temperatures
from bend_ray.report.runs import Run
from bend_ray.report.statistics import COMPARED, BagDifference, differences

AS_IT_IS, SCALED = "as voted", "after scaling"


@dataclass(frozen=True)
class Equivalent:
    """The deep-ensemble equivalent: how many independent networks reach the same NLL.

    Attributes:
        members: interpolated; at the bound where ``beyond`` is not 0.
        beyond: -1 worse than one network, 1 better than all that were trained, 0 in range.
    """

    members: float
    beyond: int

    def __str__(self) -> str:
        bound = {-1: "< ", 0: "", 1: "> "}[self.beyond]
        return f"{bound}{self.members:.0f}" if self.beyond else f"{self.members:.1f}"


def equivalent(nll: float, sizes: Sequence[int], nlls: Sequence[float]) -> Equivalent:
    """Where a NLL lies on the deep ensemble's curve, linear between its sizes.

    A size counts with the lowest NLL so far, so that the curve does not rise.

    Source: Ashukha et al., "Pitfalls of in-domain uncertainty estimation and ensembling", 2020,
    equation 1.

    >>> str(equivalent(0.25, [1, 2, 4], [0.4, 0.3, 0.2]))
    '3.0'
    >>> str(equivalent(0.1, [1, 2, 4], [0.4, 0.3, 0.2]))
    '> 4'
    """
    lowest = np.minimum.accumulate(nlls)
    if nll > lowest[0]:
        return Equivalent(float(sizes[0]), -1)
    if nll < lowest[-1]:
        return Equivalent(float(sizes[-1]), 1)
    return Equivalent(float(np.interp(-nll, -lowest, sizes)), 0)


def equivalents(runs: Sequence[Run], name: str) -> dict[str, Equivalent]:
    """A bag's deep-ensemble equivalents, as it votes and after temperature scaling.

    Empty where no deep ensemble was trained, and of the deep ensemble itself; of bags that are
    scored after temperature scaling only that one.
    """
    bags = [run.evidence["bags"] for run in runs]
    curves = [each.get(DEEP_ENSEMBLE, {}).get("curve") for each in bags]
    if None in curves or name in (DEEP_ENSEMBLE, EQUAL_COST):
        return {}

    def on_curve(nlls: Iterable[float], theirs: Iterable[Sequence[float]]) -> Equivalent:
        mean_curve = np.mean(list(theirs), axis=0).tolist()
        return equivalent(statistics.fmean(nlls), curves[0]["sizes"], mean_curve)

    found = {}
    as_voted = [nll for run in runs if (nll := run.result.scores(name).nll) is not None]
    if len(as_voted) == len(runs) and not temperatures([run.result for run in runs]):
        found[AS_IT_IS] = on_curve(as_voted, (curve["nll"]["mean"] for curve in curves))
    scaled = (each[name]["scaled"]["nll"] for each in bags)
    return found | {SCALED: on_curve(scaled, (curve["scaled_nll"] for curve in curves))}


def minus(runs: Sequence[Run], rival: str) -> dict[str, BagDifference]:
    """The bag minus a rival: paired by repeat, or by test image where there is one repeat."""
    if len(runs) > 1 or rival == EQUAL_COST:
        bags = scored_bags([run.result for run in runs])
        return differences(bags[BAG], bags[rival])
    recorded = runs[0].evidence["bags"][rival]["bag_minus_it"]
    images = runs[0].evidence["images"]["test"]
    return {
        score: BagDifference(score, told["mean"], told["standard_error"], images)
        for score, told in recorded.items()
        if told["mean"] is not None
    }


@dataclass(frozen=True)
class Highlight:
    """One of the three numbers: how much, of what, and what it means."""

    value: str
    label: str
    note: str


def headline(runs: Sequence[Run]) -> str:
    """The answer in two or three sentences."""
    ours = runs[0].result
    images = runs[0].evidence["images"]["test"]
    accuracy = statistics.fmean(run.result.bag.accuracy or 0.0 for run in runs)
    repeats = f" (mean of {len(runs)} repeats)" if len(runs) > 1 else ""
    told = "are right on" if ours.score == "accuracy" else "explain the variance to"
    gain = _gain(runs)
    level = f"{gain.text.lstrip('+-')} points {'more' if gain.mean > 0 else 'fewer'} than"
    against = "No deep ensemble was trained to compare it with."
    if DEEP_ENSEMBLE in ours.rivals:
        verbs = {"win": "wins", "loss": "loses", "tie": "ties"}
        clauses = [
            f"{verbs[each.verdict]} in {COMPARED[score][0]} ({_in_units(each)})"
            for score, each in minus(runs, DEEP_ENSEMBLE).items()
        ]
        size = ours.rivals[DEEP_ENSEMBLE].size
        against = f"Against a deep ensemble of {size} ordinary networks it {' and '.join(clauses)}."
    return (
        f"{ours.bag.size} networks drawn from noise, voting, {told} "
        f"{100 * accuracy:.2f} % of {images:,} {ours.part} examples{repeats}. "
        f"That is {level if gain.mean else 'level with'} their median member. {against}"
    )


def highlights(runs: Sequence[Run]) -> list[Highlight]:
    """The three numbers of the headline."""
    ours = runs[0].result
    median = statistics.fmean(_median(run) for run in runs)
    found = [
        Highlight(
            f"{100 * _gain(runs).mean:+.2f} points",
            "bag against its median member",
            f"{ours.score} of the median generated model: {100 * median:.2f} %",
        )
    ]
    if DEEP_ENSEMBLE in ours.rivals:
        against = minus(runs, DEEP_ENSEMBLE)
        found.append(
            Highlight(
                " · ".join(_in_units(each) for each in against.values()),
                f"bag against a deep ensemble of {ours.rivals[DEEP_ENSEMBLE].size}",
                " · ".join(f"{d.verdict} in {COMPARED[s][0]}" for s, d in against.items()),
            )
        )
    return [*found, _cost_card(runs)]


def _gain(runs: Sequence[Run]) -> BagDifference:
    gains = [(run.result.bag.accuracy or 0.0) - _median(run) for run in runs]
    return BagDifference.over("accuracy", gains)


def _median(run: Run) -> float:
    """Accuracy of the median generated model."""
    accuracy = run.result.populations["generated"].accuracy
    assert accuracy is not None
    return accuracy.median


def _in_units(difference: BagDifference) -> str:
    return f"{difference.text} {COMPARED[difference.score][1]}"


def _cost_card(runs: Sequence[Run]) -> Highlight:
    prices = [run.result.prices for run in runs]
    marginal = statistics.fmean(each.marginal_seconds for each in prices)
    every = [each.amortised_seconds for each in prices if each.amortised_seconds is not None]
    trained = [each.ordinary_seconds for each in prices if each.ordinary_seconds is not None]
    value, label = seconds(marginal), "one more member"
    if len(every) < len(runs):
        return Highlight(value, label, "what the population had cost is unknown")
    amortised = statistics.fmean(every)
    if len(trained) < len(runs):
        return Highlight(value, label, f"{seconds(amortised)} with everything before it")
    ordinary = statistics.fmean(trained)
    return Highlight(
        f"{value} against {seconds(ordinary)}",
        f"{label} against training one",
        f"{times(marginal, ordinary)}; with everything before it {seconds(amortised)}: "
        f"{times(amortised, ordinary)}",
    )


def times(ours: float, theirs: float) -> str:
    """How our cost stands to theirs.

    >>> times(0.5, 2.0), times(3.0, 1.0)
    ('4.0 times cheaper', '3.0 times dearer')
    """
    if min(ours, theirs) <= 0:
        return "not comparable"
    ratio, word = (theirs / ours, "cheaper") if ours < theirs else (ours / theirs, "dearer")
    return f"{ratio:.1f} times {word}" if ratio < 10 else f"{ratio:.0f} times {word}"


def seconds(value: float) -> str:
    """A duration with two digits that matter.

    >>> seconds(0.00277), seconds(0.532), seconds(75.3)
    ('0.0028 s', '0.53 s', '75 s')
    """
    return f"{value:.0f} s" if value >= 10 else f"{float(f'{value:.2g}'):g} s"
