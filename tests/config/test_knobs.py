from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema import Draft202012Validator

from bend_ray.config.reading import Knob, json_schema, knobs, load_config
from bend_ray.config.schema import PipelineConfig, Rival
from bend_ray.config.yaml_text import parse_yaml, read_yaml
from bend_ray.generation.diffusion import Sampler
from bend_ray.spec import variants

SECTIONS = {
    knob.path for knob in knobs() if any(k.path.startswith(f"{knob.path}.") for k in knobs())
}


def held(config: PipelineConfig, path: str) -> Any:
    """What a config holds at a path; raises where another variant is in place."""
    place: Any = config
    for name in path.split("."):
        place = getattr(place, name)
    return place


def active(knob: Knob) -> bool:
    """Whether the default config has this knob, and not one of another variant."""
    *parents, name = knob.path.split(".")
    if parents == ["evaluation", "rivals"]:
        return False
    try:
        place = held(PipelineConfig(), ".".join(parents)) if parents else PipelineConfig()
    except AttributeError:
        return False
    return name in getattr(type(place), "model_fields", ()) and knob.kind in (
        "",
        getattr(place, "kind", ""),
    )


@pytest.mark.parametrize("knob", knobs(), ids=lambda knob: f"{knob.path}-{knob.kind}")
def test_every_knob_says_what_it_means(knob: Knob) -> None:
    assert len(knob.help.split()) >= 2
    assert knob.help.strip() == knob.help
    assert "\n" not in knob.help


def test_a_knob_is_listed_once_for_each_variant_that_has_it() -> None:
    named = [(knob.path, knob.kind) for knob in knobs()]
    assert len(named) == len(set(named))


def test_knobs_come_in_the_order_of_the_config() -> None:
    first = [knob.path for knob in knobs() if "." not in knob.path]
    assert first == list(PipelineConfig.model_fields)


def test_every_field_of_every_variant_is_a_knob() -> None:
    listed = {(knob.path, knob.kind) for knob in knobs()}
    for path, axis in (("samples.sampler", Sampler), ("evaluation.rivals", Rival)):
        for variant in variants(axis):
            kind = variant.model_fields["kind"].default
            own = {(f"{path}.{name}", kind) for name in variant.model_fields if name != "kind"}
            assert own <= listed


@pytest.mark.parametrize(
    "knob",
    [knob for knob in knobs() if active(knob) and knob.path not in SECTIONS],
    ids=lambda knob: knob.path,
)
def test_the_default_is_what_the_default_config_holds(knob: Knob) -> None:
    value = held(PipelineConfig(), knob.path)
    assert knob.default == (list(value) if isinstance(value, tuple) else value)
    set_again = load_config(None, [f"{knob.path}={json.dumps(knob.default)}"])
    assert set_again == PipelineConfig()


def test_a_variant_that_is_not_the_default_shows_its_own_defaults() -> None:
    shown = {(knob.path, knob.kind): knob.default for knob in knobs()}
    assert shown["autoencoder.model.latent_size", "principal_mlp"] is None
    assert shown["autoencoder.model.latent_size", "conv1d"] == 128
    assert shown["samples.sampler", ""] == "ddim"
    assert shown["evaluation.rivals", ""][0] == "originals_bag"


def test_what_must_be_set_has_no_default() -> None:
    required = {(knob.path, knob.kind) for knob in knobs() if knob.required}
    assert required == {
        ("dataset.train", "image_parquet"),
        ("dataset.test", "image_parquet"),
        ("dataset.root", "image_folder"),
        ("dataset.train", "arrays"),
        ("dataset.train", "table"),
        ("dataset.split.column", "group"),
        ("dataset.split.column", "time"),
        ("dataset.target", "imported"),
        ("seeds.architecture.target", "imported"),
        ("seeds.protocol.files", "checkpoints"),
        ("seeds.recipe.augmentation.target", "imported"),
        ("autoencoder.model.target", "imported"),
        ("generator.denoiser.target", "imported"),
        ("evaluation.vote.target", "imported"),
        ("evaluation.rivals.target", "imported"),
        ("evaluation.ood.dataset", "dataset"),
    }
    assert all(knob.default is None for knob in knobs() if knob.required)


CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def complaints(values: Any) -> list[str]:
    return [error.json_path for error in Draft202012Validator(json_schema()).iter_errors(values)]


def test_the_schema_is_one_and_tells_what_knobs_mean() -> None:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    count = schema["$defs"]["SamplesSection"]["properties"]["count"]
    assert count == {
        "type": "integer",
        "exclusiveMinimum": 0,
        "description": "Classifiers drawn, the trunks in turn.",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_schema_takes_every_shipped_config(path: Path) -> None:
    assert complaints(read_yaml(path)) == []


def test_the_schema_takes_the_resolved_config_and_each_default_alone() -> None:
    jsonschema.validate(PipelineConfig().model_dump(mode="json"), json_schema())
    for knob in knobs():
        if active(knob) and knob.path not in SECTIONS:
            values: Any = knob.default
            for name in reversed(knob.path.split(".")):
                values = {name: values}
            assert complaints(values) == [], knob.path


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("smaples: {count: 3}", "$"),
        ("samples: {cuont: 3}", "$.samples"),
        ("seed: true", "$.seed"),
        ("seed: yes", "$.seed"),
        ("samples: {count: 0}", "$.samples.count"),
        ("samples: {sampler: {kind: ddpm}}", "$.samples.sampler"),
        ("dataset: {kind: image_folder}", "$.dataset"),
        ("samples: 5", "$.samples"),
    ],
)
def test_the_schema_refuses_what_we_refuse(text: str, where: str) -> None:
    assert complaints(parse_yaml(text)) == [where]
