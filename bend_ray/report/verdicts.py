"""Verdicts: what the figures of one or several repeats say, in words and rows of a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bend_ray.report.evaluation import BagScores
from bend_ray.report.results import spaced, span, temperatures, unaffordable
from bend_ray.report.runs import Run
from bend_ray.report.statistics import BagDifference, differences, mean_and_sd

BAG = "bag"
DEEP_ENSEMBLE = "deep_ensemble"
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

    Args:
        nll: to be found.
        sizes: of deep ensembles, rising.
        nlls: theirs; a size counts with the lowest NLL so far, so that the curve does not rise.

    Source: Ashukha et al., "Pitfalls of in-domain uncertainty estimation and ensembling", 2020,
    equation 1.

    >>> str(equivalent(0.25, [1, 2, 4], [0.4, 0.3, 0.2]))
    '3.0'
    >>> str(equivalent(0.1, [1, 2, 4], [0.4, 0.3, 0.2]))
    '> 4'
    """
    if nll > nlls[0]:
        return Equivalent(float(sizes[0]), -1)
    best = nlls[0]
    for low, high, reached in zip(sizes, sizes[1:], nlls[1:], strict=False):
        if reached <= nll < best:
            return Equivalent(low + (high - low) * (best - nll) / (best - reached), 0)
        best = min(best, reached)
    if nll == nlls[0]:
        return Equivalent(float(sizes[0]), 0)
    return Equivalent(float(sizes[-1]), 1)


def equivalents(runs: Sequence[Run], name: str) -> dict[str, Equivalent]:
    """A bag's deep-ensemble equivalents, as it votes and after temperature scaling.

    Empty where no deep ensemble was trained, and of the deep ensemble itself; of bags that are
    scored after temperature scaling only that one.
    """
    found = {}
    bags = [run.evidence["bags"] for run in runs]
    untrained = any(each.get(DEEP_ENSEMBLE, {}).get("curve") is None for each in bags)
    if untrained or name == DEEP_ENSEMBLE:
        return {}
    curves = [each[DEEP_ENSEMBLE]["curve"] for each in bags]
    as_voted = [run.evaluation.scores(name).nll for run in runs]
    if None not in as_voted and not temperatures([run.evaluation for run in runs]):
        nll = _mean(as_voted)
        found[AS_IT_IS] = equivalent(nll, *_mean_curve([c["nll"]["mean"] for c in curves], curves))
    nll = _mean(each[name]["scaled"]["nll"] for each in bags)
    found[SCALED] = equivalent(nll, *_mean_curve([c["scaled_nll"] for c in curves], curves))
    return found


def _mean_curve(
    nlls: Sequence[Sequence[float]], curves: Sequence[dict[str, Any]]
) -> tuple[list[int], list[float]]:
    return list(curves[0]["sizes"]), [_mean(at) for at in zip(*nlls, strict=True)]


def minus(runs: Sequence[Run], rival: str) -> dict[str, BagDifference]:
    """The bag minus a rival: paired by repeat, or by test image where there is one repeat."""
    if len(runs) > 1:
        ours, theirs = ([run.evaluation.scores(n) for run in runs] for n in (BAG, rival))
        return differences(ours, theirs)
    recorded = runs[0].evidence["bags"][rival]["bag_minus_it"]
    images = runs[0].evidence["images"]["test"]
    found = {}
    for score, higher_is_better in (("accuracy", True), ("nll", False)):
        mean, error = recorded[score]["mean"], recorded[score]["standard_error"]
        if mean is not None:
            found[score] = BagDifference(mean, error, higher_is_better, images)
    return found


@dataclass(frozen=True)
class Row:
    """One line of the table of all rivals; scores are (mean, standard deviation or None)."""

    name: str
    size: str
    accuracy: tuple[float | None, float | None]
    nll: tuple[float | None, float | None]
    scaled_nll: tuple[float | None, float | None]
    ece: tuple[float | None, float | None]
    cost_seconds: float | None
    equivalents: dict[str, Equivalent]
    minus: dict[str, BagDifference]


def rows(runs: Sequence[Run]) -> list[Row]:
    """The bag and its rivals by NLL, the lowest first; what has none comes last."""
    unsorted = [_row(runs, name) for name in (BAG, *runs[0].evaluation.rivals)]
    unsorted += _equal_cost(runs)
    return sorted(unsorted, key=lambda row: (row.nll[0] is None, row.nll[0]))


def _row(runs: Sequence[Run], name: str) -> Row:
    return Row(
        name=named(name),
        scaled_nll=mean_and_sd([run.evidence["bags"][name]["scaled"]["nll"] for run in runs]),
        equivalents=equivalents(runs, name),
        minus={} if name == BAG else minus(runs, name),
        **_columns([run.evaluation.scores(name) for run in runs]),
    )


def _columns(scores: Sequence[BagScores]) -> dict[str, Any]:
    """What a row says of scores alone."""

    def spread(key: str) -> tuple[float | None, float | None]:
        return mean_and_sd([getattr(each, key) for each in scores])

    return {
        "size": span([each.size for each in scores]),
        "accuracy": spread("accuracy"),
        "nll": spread("nll"),
        "ece": spread("ece"),
        "cost_seconds": spread("cost_seconds")[0],
    }


def _equal_cost(runs: Sequence[Run]) -> list[Row]:
    """As many members of the deep ensemble as the bag's cost would have trained, if it has them."""
    found = [run.evaluation.prices.equal_cost_deep_ensemble for run in runs]
    scores = [each for each in found if each is not None]
    if len(scores) < len(runs) or unaffordable([run.evaluation for run in runs]):
        return []
    row = Row(
        name="deep ensemble, equal cost",
        scaled_nll=(None, None),
        equivalents={},
        minus=differences([run.evaluation.bag for run in runs], scores),
        **_columns(scores),
    )
    return [row]


def named(name: str) -> str:
    """A bag as people call it.

    >>> named("bag"), named("deep_ensemble")
    ('bag of generated', 'deep ensemble')
    """
    special = {
        BAG: "bag of generated",
        "member": "its median member",
        "held_out": "held out",
        "multiswag": "MultiSWAG",
        "gaussian": "Gaussian",
    }
    return special.get(name, spaced(name))


@dataclass(frozen=True)
class Highlight:
    """One of the three numbers: how much, of what, and what it means."""

    value: str
    label: str
    note: str


def headline(runs: Sequence[Run]) -> str:
    """The answer in two or three sentences."""
    size = runs[0].evaluation.bag.size
    images = runs[0].evidence["images"]["test"]
    accuracy = _mean(run.evaluation.bag.accuracy for run in runs)
    repeats = f" (mean of {len(runs)} repeats)" if len(runs) > 1 else ""
    parts = [
        f"{size} classifiers drawn from noise, voting, are right on "
        f"{100 * accuracy:.2f} % of {images:,} {runs[0].evaluation.part} examples{repeats}.",
        _against_median(runs),
        _against_deep_ensemble(runs),
    ]
    return " ".join(part for part in parts if part)


def highlights(runs: Sequence[Run]) -> list[Highlight]:
    """The three numbers of the headline."""
    gain = _gain(runs)
    median = _mean(_median(run) for run in runs)
    verdicts = [
        Highlight(
            f"{100 * gain.mean:+.2f} points",
            "bag against its median member",
            f"accuracy of the median generated model: {100 * median:.2f} %",
        )
    ]
    if DEEP_ENSEMBLE in runs[0].evaluation.rivals:
        against = minus(runs, DEEP_ENSEMBLE)
        size = runs[0].evaluation.rivals[DEEP_ENSEMBLE].size
        verdicts.append(
            Highlight(
                " · ".join(_signed(score, each) for score, each in against.items()),
                f"bag against a deep ensemble of {size}",
                " · ".join(f"{each.verdict} in {_unit(s)[0]}" for s, each in against.items()),
            )
        )
    return [*verdicts, _cost_card(runs)]


def _gain(runs: Sequence[Run]) -> BagDifference:
    gains = [(run.evaluation.bag.accuracy or 0.0) - _median(run) for run in runs]
    mean, sd = mean_and_sd(gains)
    assert mean is not None
    return BagDifference(mean, None if sd is None else sd / len(gains) ** 0.5, True, len(gains))


def _median(run: Run) -> float:
    """Accuracy of the median generated model."""
    accuracy = run.evaluation.generated.accuracy
    assert accuracy is not None
    return accuracy.median


def _against_median(runs: Sequence[Run]) -> str:
    gain = _gain(runs)
    if gain.mean == 0:
        return "That is level with their median member."
    word = "more" if gain.mean > 0 else "fewer"
    error = f" ± {100 * gain.standard_error:.2f}" if gain.standard_error is not None else ""
    return f"That is {abs(100 * gain.mean):.2f}{error} points {word} than their median member."


def _against_deep_ensemble(runs: Sequence[Run]) -> str:
    if DEEP_ENSEMBLE not in runs[0].evaluation.rivals:
        return "No deep ensemble was trained to compare it with."
    size = runs[0].evaluation.rivals[DEEP_ENSEMBLE].size
    verbs = {"win": "wins", "loss": "loses", "tie": "ties"}
    clauses = [
        f"{verbs[each.verdict]} in {_unit(score)[0]} ({_signed(score, each)})"
        for score, each in minus(runs, DEEP_ENSEMBLE).items()
    ]
    return f"Against a deep ensemble of {size} ordinary networks it {' and '.join(clauses)}."


def _cost_card(runs: Sequence[Run]) -> Highlight:
    per_model = [run.evaluation.prices.per_model for run in runs]
    marginal = _mean(each.marginal_seconds for each in per_model)
    amortised = _mean(
        math.nan if each.amortised_seconds is None else each.amortised_seconds for each in per_model
    )
    ordinary = [each.ordinary_seconds for each in per_model]
    if not math.isfinite(amortised):
        note = "what the population had cost is unknown"
        return Highlight(seconds(marginal), "one more member", note)
    if None in ordinary:
        note = f"{seconds(amortised)} with everything before it"
        return Highlight(seconds(marginal), "one more member", note)
    trained = _mean(ordinary)
    return Highlight(
        f"{seconds(marginal)} against {seconds(trained)}",
        "one more member against training one",
        f"{times(marginal, trained)}; with everything before it {seconds(amortised)}: "
        f"{times(amortised, trained)}",
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


def _signed(score: str, difference: BagDifference) -> str:
    _, unit, scale, digits = _unit(score)
    error = difference.standard_error
    spread = "" if error is None else f" ± {scale * error:.{digits}f}"
    return f"{scale * difference.mean:+.{digits}f}{spread} {unit}"


def _unit(score: str) -> tuple[str, str, float, int]:
    """Name, unit, scale and digits of a score's differences."""
    return ("accuracy", "points", 100.0, 2) if score == "accuracy" else ("NLL", "nats", 1.0, 4)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _mean(values: Any) -> float:
    return statistics.fmean(values)
