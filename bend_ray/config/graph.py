"""Graph: which artifact each stage of a config makes, and from which others.

This is the pipeline's graph, kept apart from the stages so that asking what is there (``bend
status``, a second ``bend run``) needs neither Ray nor torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.reading import validated
from bend_ray.config.schema import ParametersSection, PipelineConfig, identity
from bend_ray.data.datasets import LabelledExamples, Located
from bend_ray.data.inputs import CALIBRATION, TEST, VALIDATION, Corrupted, Inputs
from bend_ray.errors import StoreError
from bend_ray.generation.rivals import DeepEnsemble, Drawing
from bend_ray.imported import Imported
from bend_ray.networks.protocols import Checkpoints, Independent
from bend_ray.spec import Spec
from bend_ray.storage.filesystems import file_exists, resolve
from bend_ray.storage.masking import masked
from bend_ray.storage.uris import joined

STAGE_VERSIONS = {
    "seeds": 10,
    "autoencoder": 3,
    "latents": 2,
    "generator": 2,
    "samples": 5,
    "evaluation": 7,
}
"""Raised when a stage's code makes something else of the same inputs."""

STAGES = tuple(STAGE_VERSIONS)

DATASETS = "datasets"
"""Folder of a store that holds data which was given as objects."""
ORDINARY = "ordinary"
"""The deep ensemble's population: made by the stage of seeds, before the evaluation."""

ANSWERS = "answers"
"""Folder of a store that holds what models say of inputs, for whoever compares them."""
ANSWERS_VERSION = 3

STORED = (ANSWERS, *STAGES)
"""All folders of artifacts, the evaluations last."""

EVIDENCE = "evidence.json"
"""The evaluation's file of all that its report is drawn from."""


@dataclass(frozen=True)
class Question:
    """Models, of a population or drawn by a rival, and what they are asked about.

    Attributes:
        config: of their networks and their data.
        seeds: the trained population: whose bases they share, and from which a rival draws.
        population: the models; of a rival those it draws from.
        inputs: what they are asked about.
        rival: who draws ``samples.count`` models at most, of which a smaller bag has the first.
    """

    config: PipelineConfig
    seeds: Artifact
    population: Artifact
    inputs: Inputs = VALIDATION
    rival: Drawing | None = None

    @property
    def answers(self) -> Artifact:
        """The artifact of their answers, made or not; ``stages.evaluation`` makes it."""
        decides: dict[str, Any] = {"inputs": identity(self.inputs)}
        dataset, is_test = self.config.dataset, self.inputs not in (VALIDATION, CALIBRATION)
        if is_test and isinstance(dataset, Located):
            decides["content"] = dataset.content.test
        if self.rival is not None:
            samples = self.config.samples
            decides["rival"] = identity(self.rival)
            decides |= {n: getattr(samples, n) for n in ("count", "recalibration_images")}
        store = self.population.store
        return store.artifact(ANSWERS, ANSWERS_VERSION, decides, (self.population,))

    def about(self, inputs: Inputs) -> Question:
        """The same models, asked about others."""
        return replace(self, inputs=inputs)


@dataclass(frozen=True)
class Graph:
    """The artifacts of one config in one store, made or not."""

    config: PipelineConfig
    """What they are made from; where a cluster makes them with the resources that it has."""
    seeds: Artifact
    autoencoder: Artifact
    latents: Artifact
    generator: Artifact
    samples: Artifact
    evaluation: Artifact
    ordinary: Artifact | None
    """The deep ensemble's population; None where it is no rival."""
    questions: Mapping[str, Question]
    """Whom the evaluation asks, about validation: ``seeds``, ``samples``, ``ordinary``, rivals."""
    scored: tuple[Inputs, ...]
    """What it asks them about once bags are chosen, the test part first."""

    def __getitem__(self, stage: str) -> Artifact:
        artifact: Artifact = getattr(self, stage)
        return artifact

    def __iter__(self) -> Iterator[Artifact]:
        """One a stage, in order."""
        return (self[stage] for stage in STAGES)

    def steps(self, until: str) -> list[str]:
        """What is made up to a stage, in order: stages, and what the evaluation needs besides."""
        stages = list(STAGES[: STAGES.index(until) + 1])
        if until == "evaluation" and self.ordinary is not None:
            stages.insert(-1, ORDINARY)
        return stages


def ordinary(config: PipelineConfig) -> PipelineConfig | None:
    """The config whose seeds are the deep ensemble: ordinary independent trainings.

    None where it is no rival.
    """
    rival = next((r for r in config.evaluation.rivals if isinstance(r, DeepEnsemble)), None)
    if rival is None:
        return None
    size = rival.size or config.samples.count
    protocol = Independent(models=size, bootstrap=False, align=False)
    section = config.seeds.model_copy(update={"protocol": protocol, "held_out": 0.0})
    return config.model_copy(update={"parameters": ParametersSection(), "seeds": section})


def identified(config: PipelineConfig) -> PipelineConfig:
    """A config whose data and imported code know what tells them from any other.

    DataError where files of the data set cannot be read, ConfigError where there is no such module.
    """
    known: PipelineConfig = _identified(config)
    # Sections agree or not only when it is known how many checkpoints there are.
    return known if config.seeds.protocol.is_known else validated(dict(known))


def _identified(value: Any) -> Any:
    if isinstance(value, LabelledExamples | Imported | Checkpoints):
        return value.identified()
    if isinstance(value, tuple) and any(isinstance(each, Spec) for each in value):
        return tuple(map(_identified, value))
    if not isinstance(value, Spec):
        return value
    found = {name: _identified(each) for name, each in value}
    changed = {name: each for name, each in found.items() if each is not getattr(value, name)}
    return value.model_copy(update=changed) if changed else value


def graph_of(config: PipelineConfig, store: Store) -> Graph:
    """Where each stage of a config, from ``identified``, leaves its result in a store."""
    as_asked = {"config": config.model_dump(mode="json")}

    def artifact(stage: str, decides: dict[str, object], *inputs: Artifact) -> Artifact:
        given = as_asked if stage == "evaluation" else {}
        return store.artifact(stage, STAGE_VERSIONS[stage], decides, inputs, given)

    whole, test = identity(config), {}
    whole["samples"]["finish"] = identity(config.finish)
    if isinstance(config.dataset, Located):
        assert config.dataset.content.train is not None, "expected a config from identified()"
        test = {"test": whole["dataset"]["content"].pop("test")}
    seed = {"seed": config.seed}

    def population(whole: dict[str, Any]) -> Artifact:
        names = ("dataset", "parameters", "seeds")
        return artifact("seeds", seed | {name: whole[name] for name in names})

    seeds = population(whole)
    autoencoder = artifact("autoencoder", seed | {"autoencoder": whole["autoencoder"]}, seeds)
    latents = artifact("latents", {"latents": whole["latents"]}, seeds, autoencoder)
    generator = artifact("generator", seed | {"generator": whole["generator"]}, latents)
    samples = artifact("samples", seed | {"samples": whole["samples"]}, autoencoder, generator)
    scored = seed | {"evaluation": whole["evaluation"]} | test
    models = {"seeds": seeds, "samples": samples}
    questions = {name: Question(config, seeds, each) for name, each in models.items()}
    if (others := ordinary(config)) is not None:
        models[ORDINARY] = population(identity(others) | {"dataset": whole["dataset"]})
        questions[ORDINARY] = Question(others, models[ORDINARY], models[ORDINARY])
    section = config.evaluation
    for rival in section.rivals:
        if isinstance(rival, Drawing):
            questions[rival.name] = Question(config, seeds, seeds, rival=rival)
    inputs = (
        TEST,
        *((CALIBRATION,) if config.dataset.num_calibration else ()),
        *section.ood,
        *(Corrupted(corruption=each) for each in section.shift),
    )
    asked = [q.about(part).answers for part in (VALIDATION, *inputs) for q in questions.values()]
    evaluation = artifact("evaluation", scored, *models.values(), *asked)
    stages = seeds, autoencoder, latents, generator, samples, evaluation
    return Graph(config, *stages, models.get(ORDINARY), questions, inputs)


def newest_config(store: Store) -> PipelineConfig:
    """The config whose evaluation was committed last; its data set need not be at hand.

    StoreError where there is no evaluation, or another version of bend_ray made the newest.
    """
    evaluations = store.manifests("evaluation")
    if not evaluations:
        raise StoreError(
            f"expected an evaluation in {masked(store.uri)}, got none; make one with "
            "`bend run`, or name another store with --store"
        )
    newest = evaluations[-1]
    with contextlib.suppress(ValidationError):
        config = PipelineConfig.model_validate(newest.given.get("config"))
        if graph_of(config, store).evaluation.fingerprint == newest.fingerprint:
            return _moved(config, store)
    raise StoreError(
        f"expected evaluation {newest.fingerprint} of {masked(store.uri)} to be of this "
        "version of bend_ray, it is of another; run `bend run` again, or name its config"
    )


def _moved(config: PipelineConfig, store: Store) -> PipelineConfig:
    """The config where its store was moved: what was written into it is found where it is now."""
    dataset, found = config.dataset, {}
    for part in ("train", "validation", "test"):
        folder, _, name = str(getattr(dataset, part, "")).rpartition("/")
        here = joined(store.uri, DATASETS, name)
        if folder.endswith(f"/{DATASETS}") and file_exists(*resolve(here)):
            found[part] = here
    return config.model_copy(update={"dataset": dataset.model_copy(update=found)})
