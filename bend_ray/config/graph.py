"""Plan: which artifact each stage of a config makes, and from which others.

This is the pipeline's graph, kept apart from the stages so that asking what is there (``bend
status``, a second ``bend run``) needs neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from bend_ray.artifacts.store import Artifact, Store
from bend_ray.config.schema import PipelineConfig, identity
from bend_ray.data.datasets import Located

STAGE_VERSIONS = {
    "seeds": 1,
    "autoencoder": 1,
    "latents": 1,
    "generator": 1,
    "samples": 1,
    "evaluation": 2,
}
"""Raised when a stage's code makes something else of the same inputs."""

STAGES = tuple(STAGE_VERSIONS)

EVIDENCE = "evidence.json"
"""The evaluation's file of all that its report is drawn from."""


@dataclass(frozen=True)
class Plan:
    """The artifacts of one config in one store, made or not."""

    seeds: Artifact
    autoencoder: Artifact
    latents: Artifact
    generator: Artifact
    samples: Artifact
    evaluation: Artifact

    def __getitem__(self, stage: str) -> Artifact:
        artifact: Artifact = getattr(self, stage)
        return artifact

    def __iter__(self) -> Iterator[Artifact]:
        return (getattr(self, field.name) for field in fields(self))


def identified(config: PipelineConfig) -> PipelineConfig:
    """A config whose data set knows what tells its content from any other's.

    Raises:
        DataError: its files cannot be read.
    """
    return config.model_copy(update={"dataset": config.dataset.identified()})


def plan(config: PipelineConfig, store: Store) -> Plan:
    """Where each stage of a config leaves its result in ``store``.

    Args:
        config: from ``identified``, as the same words may mean other data tomorrow.
        store: of the artifacts.
    """
    given = {"dataset": config.dataset.model_dump(mode="json")}

    def artifact(stage: str, decides: dict[str, object], *inputs: Artifact) -> Artifact:
        return store.artifact(stage, STAGE_VERSIONS[stage], decides, inputs, given)

    whole, test = identity(config), {}
    if isinstance(config.dataset, Located):
        assert config.dataset.content.test is not None, "expected a config from identified()"
        test = {"test": whole["dataset"]["content"].pop("test")}
    seed = {"seed": config.seed}
    decides = {name: whole[name] for name in ("dataset", "parameters", "seeds")}
    seeds = artifact("seeds", seed | decides)
    autoencoder = artifact("autoencoder", seed | {"autoencoder": whole["autoencoder"]}, seeds)
    latents = artifact("latents", {"latents": whole["latents"]}, seeds, autoencoder)
    generator = artifact("generator", seed | {"generator": whole["generator"]}, latents)
    samples = artifact("samples", seed | {"samples": whole["samples"]}, autoencoder, generator)
    scored = seed | {"evaluation": whole["evaluation"]} | test
    evaluation = artifact("evaluation", scored, seeds, samples)
    return Plan(seeds, autoencoder, latents, generator, samples, evaluation)
