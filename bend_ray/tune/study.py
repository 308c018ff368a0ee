"""A study: all trials of a search, what came out, and which bag is worth its cost.

Its artifact is ``{store}/tune/{fingerprint}/``: ``study.json``, the trials' records, ``best.yaml``,
and in ``ray/`` the state of Ray Tune, from which a killed search goes on, with its TensorBoard
files. Its winner is held against its base config on fresh splits, where the search has
not looked; each opens a test part once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bend_ray import pipeline
from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.graph import STAGE_VERSIONS, STAGES
from bend_ray.config.reading import nested
from bend_ray.config.schema import PipelineConfig, identity
from bend_ray.config.yaml_text import block
from bend_ray.errors import TrainingError
from bend_ray.process.log import LOGGER
from bend_ray.report.evaluation import Result
from bend_ray.report.runs import settings
from bend_ray.report.statistics import COMPARED, BagDifference, cells, differences
from bend_ray.storage.masking import masked_json
from bend_ray.tune.records import BagRecord, TrialRecord
from bend_ray.tune.space import TuneSection, bag_config, encode, trial_config

VERSION = 2
STUDY = "study.json"
BEST = "best.yaml"

Point = tuple[TrialRecord, BagRecord]


@dataclass(frozen=True)
class Study:
    """A search, its trials by number once it is over, and what it cost: each artifact once."""

    config: PipelineConfig
    section: TuneSection
    artifact: Artifact
    trials: list[TrialRecord] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)

    @classmethod
    def of(cls, config: PipelineConfig, section: TuneSection, store: Store) -> Study:
        """One that may not have begun, where it is, or will be."""
        decides = {
            "config": identity(config),
            "tune": section.model_dump(mode="json"),
            "stages": dict(STAGE_VERSIONS),
        }
        return cls(config, section, store.artifact("tune", VERSION, decides))

    def read(self) -> Study:
        """With its trials; StoreError where they are not committed, or cannot be read."""
        content = self.artifact.read_json(STUDY)
        trials = [TrialRecord.model_validate(each) for each in content["trials"]]
        return replace(self, trials=trials, cost=self.artifact.manifest().cost)

    @property
    def done(self) -> list[TrialRecord]:
        """Trials that came to their end."""
        return [trial for trial in self.trials if trial.status == "done"]

    @property
    def winner(self) -> Point:
        """The trial and its bag of the lowest objective, the earliest of equals.

        TrainingError where no trial came to its end.
        """
        if not self.done:
            reasons = [trial.error for trial in self.trials if trial.error]
            raise TrainingError(
                f"tune: expected a trial to come to its end, got none of {len(self.trials)}: "
                f"{reasons[0] if reasons else 'all were stopped'}; mend the space or the config"
            )
        trial = min(self.done, key=lambda trial: trial.best.objective)
        return trial, trial.best

    @property
    def base(self) -> Point | None:
        """The config as it was given, if its trial came to its end.

        The bag is the one of the config's own size, or the next smaller one tried.
        """
        point = self.section.point_of(self.config)
        size = self.config.evaluation.bagging.size or self.config.samples.count
        for trial in self.done:
            if point == {path: encode(value) for path, value in trial.point.items()}:
                fitting = [bag for bag in trial.bags if bag.size <= size] or trial.bags[:1]
                return trial, fitting[-1]
        return None

    @property
    def points(self) -> list[Point]:
        """Every bag of every trial that is done, equal configs once."""
        distinct: dict[Any, TrialRecord] = {}
        for trial in self.done:
            distinct.setdefault(encode(list(trial.point.values())), trial)
        return [(trial, bag) for trial in distinct.values() for bag in trial.bags]

    def front(self) -> tuple[list[Point], Point]:
        """The Pareto front of (validation NLL, total cost, inference cost), and its knee.

        Costs are compared by their logarithms where the knee is sought.
        """
        points = self.points or [self.winner]
        rows = [(bag.nll, bag.cost_seconds, bag.flops) for _, bag in points]
        values = np.array(rows, dtype=np.float64)
        front = pareto_front(values)
        values[:, 1:] = np.log(np.maximum(values[:, 1:], 1e-9))
        turn = points[front[knee(values[front])]]
        return sorted((points[i] for i in front), key=lambda point: point[1].nll), turn

    def config_of(self, trial: TrialRecord, bag: BagRecord) -> PipelineConfig:
        """The config whose run makes a bag."""
        return bag_config(trial_config(self.config, self.section, trial.point), bag.size)

    def stages(self) -> dict[str, tuple[int, int]]:
        """By stage: how many trials asked for it, and how many different ones there are."""
        asked: dict[str, list[str]] = {stage: [] for stage in STAGES if stage != "evaluation"}
        for trial in self.trials:
            for record in trial.stages:
                asked[record.stage].append(record.fingerprint)
        return {stage: (len(names), len(set(names))) for stage, names in asked.items()}

    def stages_in_all(self) -> tuple[int, int]:
        """``stages``, summed."""
        asked, made = zip(*self.stages().values(), strict=True)
        return sum(asked), sum(made)


def pareto_front(values_NM: NDArray[np.float64]) -> list[int]:
    """Rows, rising, that no other row dominates: at most as large in all columns, less in one.

    Of equal rows it has the first.

    >>> pareto_front(np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 3.0], [2.0, 2.0]]))
    [0, 1]
    """
    no_worse_NN = (values_NM[:, None] <= values_NM).all(axis=2)
    equal_NN = no_worse_NN & no_worse_NN.T
    beaten_NN = np.where(equal_NN, np.triu(equal_NN, 1), no_worse_NN)
    front: list[int] = np.flatnonzero(~beaten_NN.any(axis=0)).tolist()
    return front


def knee(values_NM: NDArray[np.float64]) -> int:
    """The row of a front nearest to having the least of everything, each column scaled to [0, 1].

    It is the lowest of equals. Source: the compromise solution of Zeleny, "Compromise programming",
    1973, with the Euclidean distance.

    >>> knee(np.array([[0.0, 1.0], [0.2, 0.2], [1.0, 0.0]]))
    1
    """
    low, high = values_NM.min(axis=0), values_NM.max(axis=0)
    scaled = (values_NM - low) / np.where(high > low, high - low, 1.0)
    return int(np.square(scaled).sum(axis=1).argmin())


def summary(study: Study) -> list[str]:
    """What came out, a line a sentence."""
    counts = dict.fromkeys(("done", "stopped", "failed"), 0)
    for each in study.trials:
        counts[each.status] += 1
    listed = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    asked, made = study.stages_in_all()
    lines = [
        f"{len(study.trials)} trials: {listed}",
        f"{asked} stages asked for, {made} made, {asked - made} shared",
    ]
    for name, point in (("winner", study.winner), ("the config as given", study.base)):
        if point is not None:
            trial, bag = point
            lines.append(
                f"{name}: trial {trial.number} with {bag.size} members, validation NLL "
                f"{bag.nll:.4f}, accuracy {100 * bag.accuracy:.2f} %"
            )
    return lines


def best_yaml(config: PipelineConfig, about: str, *, mask: bool = False) -> str:
    """A config as a file that ``bend run`` takes: what differs from the default, below ``about``.

    ``mask`` replaces credentials in URIs, for a file others will read.
    """
    whole = config.model_dump(mode="json")
    # It is to be run on what the data set is by then.
    whole["dataset"].pop("content", None)
    values = nested(settings(whole))
    head = "".join(f"# {line}\n" for line in about.splitlines())
    return head + block(masked_json(values) if mask else values)


@dataclass(frozen=True)
class Fresh:
    """Results on the same splits, one a split: of the winner, and of the config as it was given."""

    winner: list[Result]
    base: list[Result]

    @property
    def differences(self) -> dict[str, BagDifference]:
        """The winner's bag minus the base's, in accuracy and NLL, paired by split."""
        ours, theirs = ([r.bag for r in each] for each in (self.winner, self.base))
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
        config.repeats(splits + 1)[1:] for config in (study.config_of(*study.winner), study.config)
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
        told = cells([run.bag for run in runs], {n: n for n in ("accuracy", "nll", "cost_seconds")})
        lines.append(
            "{}: test accuracy {accuracy} %, NLL {nll}, cost {cost_seconds} s".format(name, **told)
        )
    for score, minus in fresh.differences.items():
        unit = COMPARED[score][1]
        lines.append(f"winner minus config as given: {minus.text} {unit}: {minus.verdict}")
    return lines
