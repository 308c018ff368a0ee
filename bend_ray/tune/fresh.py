"""Fresh splits: a study's winner against its base config, where the search has not looked.

Both run under the same seeds and splits, none of them the search's, and each opens a test part
once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bend_ray import pipeline
from bend_ray.config.repeats import repeats_of
from bend_ray.process.log import LOGGER
from bend_ray.report.evaluation import Result
from bend_ray.report.statistics import COMPARED, BagDifference, cells, differences
from bend_ray.tune.study import Study


@dataclass(frozen=True)
class Fresh:
    """Results on the same splits, one a split: of the winner, and of the config as it was given."""

    winner: list[Result]
    base: list[Result]

    @property
    def differences(self) -> dict[str, BagDifference]:
        """The winner's bag minus the base's, in accuracy and NLL, paired by split."""
        ours, theirs = ([r.evaluation.bag for r in each] for each in (self.winner, self.base))
        return differences(ours, theirs)

    def as_json(self) -> dict[str, Any]:
        """Both, and what lies between them."""
        minus = {score: each.as_json() for score, each in self.differences.items()}
        winner, base = ([r.as_json() for r in each] for each in (self.winner, self.base))
        return {"winner": winner, "base": base, "winner_minus_base": minus}


def on_fresh_splits(study: Study, store_uri: str, splits: int, address: str | None) -> Fresh:
    """Run winner and base under so many seeds after the search's own; what is there is kept."""
    found = Fresh([], [])
    ours, theirs = (
        repeats_of(config, splits + 1)[1:]
        for config in (study.config_of(*study.winner), study.config)
    )
    for number, pair in enumerate(zip(ours, theirs, strict=True), start=1):
        for name, config in zip(("winner", "base"), pair, strict=True):
            told = (number, splits, config.seed, name)
            LOGGER.info("fresh        split %d of %d, seed %d: %s", *told)
            made = pipeline.run(config, store_uri, address=address)
            getattr(found, name).append(Result.of(made))
    return found


def sentences(fresh: Fresh) -> list[str]:
    """What came out, a line a sentence."""
    lines = []
    for name, runs in (("winner", fresh.winner), ("config as given", fresh.base)):
        bags = [run.evaluation.bag for run in runs]
        accuracy, nll, cost = cells(bags, "accuracy", "nll", "cost_seconds")
        lines.append(f"{name}: test accuracy {accuracy} %, NLL {nll}, cost {cost} s")
    for score, minus in fresh.differences.items():
        unit = COMPARED[score][1]
        lines.append(f"winner minus config as given: {minus.text} {unit}: {minus.verdict}")
    return lines
