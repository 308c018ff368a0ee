import shlex

import pytest

from bend_ray.config.reading import load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.report.runs import command, different, settings


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["seed=3", "samples.temperature=1.0e-05", "seeds.resources.gpus=0.25"],
        ["seeds.protocol={kind: trajectory, checkpoints: 200}", "generator.conditional=false"],
        ["evaluation.bagging={kind: top_k, size: 5}", "evaluation.rivals=[{kind: noise}]"],
        ['dataset={kind: image_folder, root: "it\'s a folder: & <more>"}'],
        ["dataset={kind: image_parquet, train: 'null', test: '12'}"],
        ["autoencoder.resources.workers=[1, 4]", "seeds.architecture.hidden=[16, 16]"],
    ],
)
def test_the_command_makes_the_same_config_again(given: list[str]) -> None:
    config = load_config(None, given)
    words = shlex.split(command(config.model_dump(mode="json")))
    assert words[:2] == ["bend", "run"]
    assert load_config(None, [w for w in words[2:] if w != "--set"]) == config


def test_it_says_nothing_of_defaults() -> None:
    assert command(PipelineConfig().model_dump(mode="json")) == "bend run"
    said = settings(load_config(None, ["samples.count=96"]).model_dump(mode="json"))
    assert said == {"samples.count": 96}


def test_configs_differ_in_what_is_not_common_to_all() -> None:
    common = "seeds.cohort_size=16"
    configs = [
        load_config(None, [common, own]).model_dump(mode="json")
        for own in ("samples.count=96", "seed=1")
    ]
    assert different(configs) == [{"samples.count": "96"}, {"seed": "1"}]
