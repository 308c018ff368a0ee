"""Fresh splits: a study's winner against its base config, where the search has not looked.

Both run under the same seeds and splits, none of them the search's, and each opens a test part
once.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from bend_ray import pipeline
from bend_ray.config.repeats import repeats_of
from bend_ray.config.schema import PipelineConfig
from bend_ray.process.log import LOGGER
from bend_ray.report.evaluation import Result
from bend_ray.report.statistics import BagDifference, differences
from bend_ray.tune.study import Study

BASE = "base"


@dataclass(frozen=True)
class Fresh:
    """Winner and base on the same splits.

    Attributes:
        winner: a result a split.
        base: those of the config as it was given.
    """

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
    """Run winner and base under so many seeds after the search's own; what is there is kept.

    Raises:
        BendError: as ``pipeline.run``.
    """
    winner = study.config_of(*study.winner)
    runs: dict[str, list[Result]] = {}
    pairs = zip(_fresh(winner, splits), _fresh(study.config, splits), strict=True)
    for number, pair in enumerate(pairs, start=1):
        for name, config in zip(("winner", BASE), pair, strict=True):
            LOGGER.info(
                "fresh        split %d of %d, seed %d: %s", number, splits, config.seed, name
            )
            made = pipeline.run(config, store_uri, address=address)
            runs.setdefault(name, []).append(Result.of(made))
    return Fresh(runs["winner"], runs[BASE])


def _fresh(config: PipelineConfig, splits: int) -> list[PipelineConfig]:
    return repeats_of(config, splits + 1)[1:]


def sentences(fresh: Fresh) -> list[str]:
    """What came out, a line a sentence."""
    lines = []
    for name, runs in (("winner", fresh.winner), ("config as given", fresh.base)):
        bags = [run.evaluation.bag for run in runs]
        accuracy = statistics.fmean(bag.accuracy or 0.0 for bag in bags)
        nll = statistics.fmean(math.inf if bag.nll is None else bag.nll for bag in bags)
        cost = statistics.fmean(bag.cost_seconds or math.nan for bag in bags)
        lines.append(
            f"{name}: test accuracy {100 * accuracy:.2f} %, NLL {nll:.4f}, cost {cost:.1f} s"
        )
    for score, scale, unit in (("accuracy", 100, "points"), ("nll", 1, "nats")):
        minus = fresh.differences[score]
        error = "" if minus.standard_error is None else f" ± {scale * minus.standard_error:.4f}"
        lines.append(
            f"winner minus config as given: {scale * minus.mean:+.4f}{error} {unit}: "
            f"{minus.verdict}"
        )
    return lines
