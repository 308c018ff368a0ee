"""A study: all trials of a search, and what came out.

Its artifact is ``{store}/tune/{fingerprint}/``: the trials' records, ``study.json`` and
``best.yaml``, and in ``ray/`` the state of Ray Tune, from which a killed search goes on, with its
TensorBoard files.
"""

from __future__ import annotations

from dataclasses import dataclass

from bend_ray.artifacts.cost import Cost
from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.graph import STAGE_VERSIONS, STAGES
from bend_ray.config.schema import PipelineConfig, identity
from bend_ray.errors import TrainingError
from bend_ray.tune.front import trade_off
from bend_ray.tune.records import BagRecord, TrialRecord
from bend_ray.tune.space import TuneSection, bag_config, encode, trial_config

VERSION = 1
STUDY = "study.json"


@dataclass(frozen=True)
class Study:
    """A search that is over.

    Attributes:
        config: whose knobs were set.
        section: of the search.
        trials: by number.
        cost: of all artifacts the trials needed, each once, and the wall time of the search.
        artifact: where it is kept.
    """

    config: PipelineConfig
    section: TuneSection
    trials: list[TrialRecord]
    cost: Cost
    artifact: Artifact

    @property
    def done(self) -> list[TrialRecord]:
        """Trials that came to their end."""
        return [trial for trial in self.trials if trial.status == "done"]

    @property
    def winner(self) -> tuple[TrialRecord, BagRecord]:
        """The trial and its bag of the lowest objective, the earliest of equals.

        Raises:
            TrainingError: no trial came to its end.
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
    def base(self) -> TrialRecord | None:
        """The trial of the config as it was given, if it came to its end."""
        point = self.section.point_of(self.config)
        for trial in self.done:
            if point == {path: encode(value) for path, value in trial.point.items()}:
                return trial
        return None

    def base_bag(self, base: TrialRecord) -> BagRecord:
        """Of the base's bags, the one of the config's own size, or the next smaller one tried."""
        size = self.config.evaluation.bagging.size or self.config.samples.count
        fitting = [bag for bag in base.bags if bag.size <= size] or base.bags[:1]
        return fitting[-1]

    @property
    def points(self) -> list[tuple[TrialRecord, BagRecord]]:
        """Every bag of every trial that is done, equal configs once."""
        seen, found = set(), []
        for trial in self.done:
            key = tuple(encode(value) for value in trial.point.values())
            if key not in seen:
                seen.add(key)
                found += [(trial, bag) for bag in trial.bags]
        return found

    def front(self) -> tuple[list[tuple[TrialRecord, BagRecord]], tuple[TrialRecord, BagRecord]]:
        """The Pareto front of (validation NLL, total cost, inference cost), and its knee.

        Raises:
            TrainingError: no trial came to its end.
        """
        points = self.points
        if not points:
            _ = self.winner
        front, knee = trade_off([bag.bag for _, bag in points])
        return sorted((points[i] for i in front), key=lambda point: point[1].nll), points[knee]

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


def study_artifact(config: PipelineConfig, section: TuneSection, store: Store) -> Artifact:
    """Where a study is, or will be."""
    decides = {
        "config": identity(config),
        "tune": section.model_dump(mode="json"),
        "stages": dict(STAGE_VERSIONS),
    }
    return store.artifact("tune", VERSION, decides)


def read_study(config: PipelineConfig, section: TuneSection, artifact: Artifact) -> Study:
    """A committed study.

    Raises:
        StoreError: it is not committed, or cannot be read.
    """
    content = artifact.read_json(STUDY)
    trials = [TrialRecord.model_validate(each) for each in content["trials"]]
    return Study(config, section, trials, artifact.manifest().cost, artifact)


def summary(study: Study) -> list[str]:
    """What came out, a line a sentence."""
    trial, bag = study.winner
    counts = dict.fromkeys(("done", "stopped", "failed"), 0)
    for each in study.trials:
        counts[each.status] += 1
    asked, made = study.stages_in_all()
    lines = [
        f"{len(study.trials)} trials: "
        + ", ".join(f"{count} {status}" for status, count in counts.items() if count),
        f"{asked} stages asked for, {made} made, {asked - made} shared",
        f"winner: trial {trial.number} with {bag.size} members, validation NLL {bag.nll:.4f}, "
        f"accuracy {100 * bag.accuracy:.2f} %",
    ]
    if (base := study.base) is not None:
        own = study.base_bag(base)
        lines.append(
            f"the config as given: trial {base.number} with {own.size} members, validation NLL "
            f"{own.nll:.4f}, accuracy {100 * own.accuracy:.2f} %"
        )
    return lines
