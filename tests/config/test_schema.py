from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from bend_ray.config.reading import Knob, knobs, load_config, with_knobs
from bend_ray.config.resources import Resources, TrainResources
from bend_ray.config.schema import (
    AS_DRAWN,
    AutoencoderSection,
    EvaluationSection,
    Finish,
    PipelineConfig,
    Rival,
    SamplesSection,
    SeedsSection,
    identity,
)
from bend_ray.data.augmentation import Augmentation
from bend_ray.data.datasets import Dataset
from bend_ray.data.splits import Split
from bend_ray.ensemble.bagging import Bagging
from bend_ray.ensemble.votes import Vote
from bend_ray.errors import ConfigError
from bend_ray.generation.diffusion import Euler, FlowMatching, Process, Sampler
from bend_ray.generation.models import Autoencoder, Denoiser, PrincipalMlp
from bend_ray.generation.rivals import DeepEnsemble, Gaussian
from bend_ray.networks.architectures import Architecture, Mlp
from bend_ray.networks.protocols import Forks, Independent, Protocol, held_out_ids
from bend_ray.optim import Optimizer, Schedule
from bend_ray.randomness import generator_for
from bend_ray.spec import Spec, variants
from bend_ray.tasks import Task

AXES = {
    "dataset": Dataset,
    "dataset.task": Task,
    "dataset.split": Split,
    "seeds.architecture": Architecture,
    "seeds.recipe.optimizer": Optimizer,
    "seeds.recipe.schedule": Schedule,
    "seeds.recipe.augmentation": Augmentation,
    "seeds.protocol": Protocol,
    "autoencoder.model": Autoencoder,
    "generator.denoiser": Denoiser,
    "generator.process": Process,
    "samples.sampler": Sampler,
    "evaluation.bagging": Bagging,
    "evaluation.vote": Vote,
    "evaluation.rivals": Rival,
}

FITS_ALL = ["autoencoder.model.latent_size=8"]
"""Below the training models of every protocol's defaults."""

COMPANIONS = {
    "samples.sampler.kind=euler": ["generator.process.kind=flow"],
    "samples.sampler.kind=heun": ["generator.process.kind=flow"],
    "generator.process.kind=flow": ["samples.sampler.kind=euler"],
    "dataset.kind=image_parquet": ["dataset.train=train", "dataset.test=test"],
    "dataset.kind=image_folder": ["dataset.root=images"],
    "dataset.kind=arrays": ["dataset.train=train.npz"],
    "dataset.kind=table": ["dataset.train=rows.csv"],
    "seeds.protocol.kind=checkpoints": ["seeds.protocol.files=run-{trunk}.pt"],
    "dataset.split.kind=group": ["dataset.split.column=team"],
    "dataset.split.kind=time": ["dataset.split.column=day"],
} | {f"{axis}.kind=imported": [f"{axis}.target=os:getcwd"] for axis in AXES}
"""What else a variant, or a knob, asks for."""

OF_TABLES = ("dataset.task", "dataset.split")

SECTIONS = {
    knob.path for knob in knobs() if any(k.path.startswith(f"{knob.path}.") for k in knobs())
}


def kind_of(variant: type[Spec]) -> str:
    return str(variant.model_fields["kind"].default)


def choosing(path: str, kind: str) -> list[str]:
    """Overrides that put a variant in place, with what it asks for."""
    within = ["dataset.kind=table", "dataset.train=rows.csv"] if path in OF_TABLES else []
    override = f"{path}.kind={kind}"
    return [*FITS_ALL, *within, override, *COMPANIONS.get(override, [])]


OTHERS = {
    "v": "eps",
    "eps": "v",
    "CIFAR10": "MNIST",
    "batch": "group",
    "cyclic": "constant",
    "constant": "cyclic",
    "resnet18": "resnet34",
    "float32": "bf16",
    "white": "black",
    "tell": "refuse",
    "auto": None,
    "head": "fitted",
}
OTHER_THAN_NULL = (
    {
        "dataset.mode": "grey",
        "dataset.task": {"kind": "regression"},
        "seeds.architecture.weights": "IMAGENET1K_V1",
        "dataset.class_names": ["cat", "dog"],
        "dataset.labels": "y",
        "seeds.recipe.augmentation.policy": "rand_augment",
        "seeds.recipe.class_weights": "balanced",
        "dataset.split.column": "year",
        "seeds.protocol.found": [8, 16],
    }
    | {
        f"dataset.{name}": "elsewhere"
        for name in (
            *("train", "validation", "test", "root"),
            *("content.train", "content.validation", "content.test"),
        )
    }
    | {f"seeds.protocol.{name}": "elsewhere" for name in ("files", "prefix", "content")}
)

INCIDENTAL = {
    f"dataset.{name}"
    for name in ("train", "validation", "test", "root", "download", "duplicates", "memory")
} | {"seeds.protocol.files", "seeds.checkpoint_seconds"}
"""Knobs that say where something is found, what is told of it, or how much of it may be lost."""


def another(value: Any, path: str = "") -> Any:
    """A value that is valid where the first is."""
    if path.endswith((".target", ".version", ".source")):
        return "os:getpid"
    if value is None:
        return OTHER_THAN_NULL.get(path, 3)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 2 if value < 100 else value - 30
    if isinstance(value, float):
        return value / 2 if value else 0.25
    if isinstance(value, list):
        first = {"dataset.left_out": "3", "evaluation.shift": "rotate"}.get(path, 0.5)
        return [another(value[0]), *value[1:]] if value else [first]
    if isinstance(value, dict):
        return {"age": "date"} if path == "dataset.columns" else {"width": 3}
    return OTHERS.get(value, f"another-{value}")


def with_and_without(knob: Knob) -> list[PipelineConfig]:
    """Two configs that differ in one knob alone."""
    section, _, name = knob.path.rpartition(".")
    if section == "evaluation.rivals":
        rival = {"kind": knob.kind}
        if knob.kind == "imported":
            rival["target"] = "os:getcwd"
        changed = rival | {name: another(knob.default, knob.path)}
        varied = [[f"{section}=[{json.dumps(item)}]"] for item in (rival, changed)]
    elif section == "evaluation.ood":
        varied = [
            [f"{section}=[{{kind: dataset, dataset: {{kind: digits, split_seed: {seed}}}}}]"]
            for seed in (0, 1)
        ]
    else:
        axis = section.removesuffix(".content").removesuffix(".variation")
        base = choosing(axis, knob.kind) if knob.kind else FITS_ALL
        base = [*base, *COMPANIONS.get(knob.path, [])]
        varied = [base, [*base, f"{knob.path}={json.dumps(another(knob.default, knob.path))}"]]
    return [load_config(None, overrides) for overrides in varied]


def with_latent_size(size: int) -> AutoencoderSection:
    return AutoencoderSection(model=PrincipalMlp(latent_size=size))


def decides(knob: Knob) -> bool:
    of_no_result = {"resources", "probes", "tracking"} & set(knob.path.split("."))
    return not of_no_result and knob.path not in SECTIONS | INCIDENTAL


def test_the_default_config_is_valid_and_small() -> None:
    config = PipelineConfig()
    assert config.seeds.num_models == 128
    assert config.num_training_models == 112
    assert config.latent_size == config.num_training_models - 1


@pytest.mark.parametrize("axis", AXES.values(), ids=AXES.keys())
def test_kinds_of_an_axis_are_unique(axis: Any) -> None:
    kinds = [kind_of(variant) for variant in variants(axis)]
    assert len(kinds) == len(set(kinds))


def test_every_axis_of_the_config_is_known_to_these_tests() -> None:
    in_config = {knob.path for knob in knobs() if isinstance(knob.default, str)}
    leaves = {
        "generator.process.prediction",
        "dataset.task.variance",
        "seeds.architecture.name",
        "seeds.architecture.norm",
        "seeds.protocol.rate",
        "seeds.recipe.precision",
        *(f"dataset.{name}" for name in ("image_column", "label_column", "name", "root")),
        *("dataset.background", "dataset.duplicates", "samples.finish"),
        *(
            knob.path
            for knob in knobs()
            if knob.path.endswith((".resources.placement", ".resources.gpus"))
        ),
    }
    inside_training = {
        f"{stage}.training.{axis}"
        for stage in ("autoencoder", "generator")
        for axis in ("optimizer", "schedule")
    }
    assert in_config - leaves - inside_training == AXES.keys() - {
        "evaluation.rivals",
        "dataset.task",
    }


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (path, kind_of(variant))
        for path, axis in AXES.items()
        if path != "evaluation.rivals"
        for variant in variants(axis)
    ],
)
def test_every_variant_can_be_chosen_with_its_defaults(path: str, kind: str) -> None:
    place: Any = load_config(None, choosing(path, kind))
    for name in path.split("."):
        place = getattr(place, name)
    assert place.kind == kind


@pytest.mark.parametrize("path", [path for path in AXES if path != "evaluation.rivals"])
def test_each_variant_has_its_own_identity(path: str) -> None:
    identities = {
        json.dumps(identity(load_config(None, choosing(path, kind_of(variant)))))
        for variant in variants(AXES[path])
    }
    assert len(identities) == len(variants(AXES[path]))


@pytest.mark.parametrize(
    "knob",
    [knob for knob in knobs() if decides(knob)],
    ids=lambda knob: f"{knob.path}-{knob.kind}",
)
def test_every_knob_that_decides_a_result_is_in_the_identity(knob: Knob) -> None:
    first, second = map(identity, with_and_without(knob))
    assert first != second


@pytest.mark.parametrize(
    "knob",
    [knob for knob in knobs() if knob.path in INCIDENTAL],
    ids=lambda knob: f"{knob.path}-{knob.kind}",
)
def test_where_something_is_found_is_no_part_of_the_identity(knob: Knob) -> None:
    first, second = with_and_without(knob)
    assert first != second
    assert identity(first) == identity(second)


class Wider(Mlp):
    """Another network, under the name of ours."""

    def build(self, input_shape: Any, num_classes: int) -> Any:
        return super().build(input_shape, num_classes + 1)


def test_a_spec_that_is_no_member_of_its_union_is_refused() -> None:
    with pytest.raises(ValidationError, match="expected Mlp itself, got a subclass of it, Wider"):
        SeedsSection(architecture=Wider())
    for spec in (SeedsSection, EvaluationSection):

        class Another(spec):  # type: ignore[misc, valid-type]
            pass

        with pytest.raises(ValidationError, match="itself, got a subclass of it"):
            PipelineConfig.model_validate({spec.__name__[:-7].lower(): Another()})


def test_a_class_of_another_behaviour_has_another_identity() -> None:
    assert identity(Wider()) != identity(Mlp())
    # Validation can be gone around.
    config = PipelineConfig()
    seeds = config.seeds.model_copy(update={"architecture": Wider()})
    assert identity(config.model_copy(update={"seeds": seeds})) != identity(config)


def test_identity_holds_no_resources_at_any_depth() -> None:
    text = json.dumps(identity(PipelineConfig()))
    assert "resources" not in text
    assert "cpus" not in text


def test_identity_is_json_and_says_everything_else() -> None:
    whole = identity(PipelineConfig())
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    dumped = PipelineConfig().model_dump(mode="json")
    for section in dumped.values():
        if isinstance(section, dict):
            section.pop("resources", None)
            section.pop("probes", None)
            section.pop("checkpoint_seconds", None)
    assert whole == dumped


@pytest.mark.parametrize(
    ("overrides", "finish"),
    [
        ([], Finish()),
        (["samples.finish=auto"], Finish()),
        (["samples.finish=null"], AS_DRAWN),
        (["seeds.protocol={kind: forks}"], AS_DRAWN),
        (["seeds.protocol.early_tails=0"], AS_DRAWN),
        (["generator.conditional=false"], AS_DRAWN),
        (["samples.finish.guidance=0.5"], Finish(guidance=0.5)),
        (["samples.finish={guidance: 0, annealing: {fraction: 0}}"], AS_DRAWN),
    ],
)
def test_drawn_models_are_finished_where_the_population_allows_it(
    overrides: list[str], finish: Finish
) -> None:
    for config in (load_config(None, overrides), with_knobs(load_config(None, overrides), {})):
        assert config.finish == finish


def test_what_is_said_of_a_finish_is_kept_as_it_was_said() -> None:
    assert PipelineConfig().samples.finish == "auto"
    assert load_config(None, ["samples.finish=null"]).samples.finish is None


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["seeds.protocol.early_tails=0"], "expected 0 without early tails"),
        (["seeds.protocol={kind: forks}"], "expected 0 without early tails"),
        (
            ["seeds.protocol.early_tails=1", "generator.conditional=false"],
            "whose way it moves on along",
        ),
    ],
)
def test_guidance_must_know_the_way(overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_config(None, [*overrides, "samples.finish.guidance=0.5"])


def test_training_models_are_what_is_not_held_out() -> None:
    for protocol in (Forks(trunks=3, forks=7), Independent(models=33)):
        section = SeedsSection(protocol=protocol, held_out=0.3)
        config = PipelineConfig(seeds=section, autoencoder=with_latent_size(2))
        held_out = held_out_ids(protocol.runs(), 0.3, generator_for(0, "held out"))
        assert config.num_training_models == section.num_models - len(held_out)


def test_a_latent_per_model_is_refused() -> None:
    PipelineConfig(autoencoder=with_latent_size(111))
    with pytest.raises(ValidationError, match="fewer than the 112 models"):
        PipelineConfig(autoencoder=with_latent_size(112))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_every_number_is_finite(value: float) -> None:
    with pytest.raises(ValidationError):
        PipelineConfig(samples=SamplesSection(temperature=value))
    with pytest.raises(ValidationError):
        PipelineConfig(evaluation=EvaluationSection(rivals=(Gaussian(scale=value),)))


def test_sampler_and_process_are_one_pair() -> None:
    with pytest.raises(ValidationError, match="expected ddim or ancestral"):
        PipelineConfig(samples=SamplesSection(sampler=Euler()))
    flow = PipelineConfig().generator.model_copy(update={"process": FlowMatching()})
    with pytest.raises(ValidationError, match="expected euler or heun"):
        PipelineConfig(generator=flow)
    PipelineConfig(generator=flow, samples=SamplesSection(sampler=Euler()))


def test_a_rival_can_be_named_once() -> None:
    with pytest.raises(ValidationError, match="got gaussian again"):
        EvaluationSection(rivals=(Gaussian(), DeepEnsemble(), Gaussian(scale=0.5)))
    assert EvaluationSection(rivals=()).rivals == ()
    default = Counter(rival.kind for rival in EvaluationSection().rivals)
    ours = Counter(kind_of(variant) for variant in variants(Rival))
    assert default == ours - Counter(["imported"])


@pytest.mark.parametrize("workers", [2, (1, 4), (3, 3)])
def test_workers_are_a_number_or_a_range(workers: Any) -> None:
    assert TrainResources(workers=workers).workers == workers


@pytest.mark.parametrize("workers", [0, (0, 2), (4, 1), (1, 2, 3), (1,)])
def test_workers_that_mean_nothing_are_refused(workers: Any) -> None:
    with pytest.raises(ValidationError, match="workers"):
        TrainResources(workers=workers)


def test_a_config_is_frozen_and_hashable() -> None:
    config = PipelineConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    assert hash(config) == hash(PipelineConfig())
    assert config != PipelineConfig(seed=1)


@pytest.mark.parametrize("label", ["spot", "!spot", "in(spot, on-demand)", "!in(a,b)"])
def test_labels_are_what_ray_selects_nodes_by(label: str) -> None:
    resources = Resources(labels={"market": label})
    assert resources.labels == {"market": label}
    assert hash(resources) == hash(Resources(labels={"market": label}))


@pytest.mark.parametrize("labels", [{"market": "in(a"}, {"mar ket": "spot"}, {"market": ""}])
def test_what_no_label_can_be_is_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="expected "):
        Resources(labels=labels)
