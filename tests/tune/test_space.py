"""What may be searched, how it is named, and that a winner comes back as the config it was."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from bend_ray.config.reading import load_config, with_knobs
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import ConfigError
from bend_ray.tune.space import (
    Asha,
    Range,
    TuneSection,
    bag_config,
    encode,
    load_section,
    trial_config,
)
from bend_ray.tune.study import best_yaml

SAMPLERS = [{"kind": "ddim", "steps": 20}, {"kind": "ancestral"}]


def section(**changes: Any) -> TuneSection:
    values = {"ensemble_counts": [1, 8], "knobs": {"samples.sampler": SAMPLERS}}
    return TuneSection.model_validate(values | changes)


def refused(tmp_path: Path, **values: Any) -> str:
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as raised:
        load_section(file, PipelineConfig(), None)
    message = str(raised.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("autoencoder.model.latent_siz", "expected a config path"),
        ("seed", "lucky seed"),
        ("dataset.split_seed", "the same images"),
        ("generator.resources.workers", "where work runs"),
        ("samples.count", "ensemble_counts"),
        ("evaluation.bagging.size", "ensemble_counts"),
        ("evaluation.rivals", "do not change the bag"),
    ],
)
def test_what_cannot_be_tuned_is_refused_with_the_reason(
    tmp_path: Path, path: str, why: str
) -> None:
    message = refused(tmp_path, knobs={path: [1, 2]})
    assert path in message
    assert why in message


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"knobs": {"samples.temperature": {"low": 2, "high": 1}}}, "expected low < high"),
        ({"knobs": {"samples.temperature": []}}, "at least 1 item"),
        ({"ensemble_counts": [8, 1]}, "expected rising numbers"),
        ({"searcher": {"kind": "grid"}, "trials": 3}, "at least the 20 combinations"),
        ({"seracher": {"kind": "grid"}}, "seracher: Extra inputs"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    assert said in refused(tmp_path, **values)


def test_the_default_search_holds_the_config_it_is_of() -> None:
    config = with_knobs(PipelineConfig(), {"autoencoder.model.latent_size": 50})
    found = load_section(None, config, 7)
    assert found.trials == 7
    assert found.point_of(config) is not None
    assert max(found.ensemble_counts) == config.samples.count
    for latent_size in found.knobs["autoencoder.model.latent_size"]:
        trial_config(config, found, {"autoencoder.model.latent_size": latent_size})


def test_the_searches_that_come_with_it_are_read() -> None:
    for file in (Path(__file__).parents[2] / "configs" / "tune").glob("*.yaml"):
        found = load_section(file, PipelineConfig(), None)
        assert found.point_of(PipelineConfig()) is not None, "the default is what to compare with"


def test_a_section_travels_as_a_scalar_and_comes_back() -> None:
    for sampler in SAMPLERS:
        encoded = encode(sampler)
        assert isinstance(encoded, str)
        assert section().decoded({"samples.sampler": encoded}) == {"samples.sampler": sampler}


def test_a_range_with_a_step_holds_what_people_would_write() -> None:
    tenths = Range(low=0.7, high=1.0, step=0.1)
    assert tenths.values() == [0.7, 0.8, 0.9, 1.0]
    assert tenths.nearest(0.7 + 2 * 0.1) == 0.9
    assert Range(low=1, high=8, step=3).values() == [1, 4, 7]
    assert Range(low=1, high=8).holds(8)
    assert not Range(low=1, high=8, step=3).holds(8)


def test_a_config_outside_the_space_has_no_point() -> None:
    assert section().point_of(PipelineConfig()) is None
    inside = with_knobs(PipelineConfig(), {"samples.sampler": {"kind": "ancestral"}})
    assert section().point_of(inside) == {"samples.sampler": encode({"kind": "ancestral"})}


def test_knobs_of_one_name_are_told_apart() -> None:
    knobs = {
        "generator.training.steps": [1, 2],
        "samples.sampler.steps": [1, 2],
        "samples.temperature": [1, 2],
    }
    names = section(knobs=knobs).names
    assert list(names.values()) == ["training.steps", "sampler.steps", "temperature"]


@pytest.mark.parametrize("first", [0.1, 0.25, 0.3])
def test_milestones_rise_to_before_the_end(first: float) -> None:
    shares = Asha(first=first, reduction=2).milestones
    assert shares[0] == first
    assert all(b == 2 * a for a, b in pairwise(shares))
    assert shares[-1] < 1 <= 2 * shares[-1]


@pytest.mark.parametrize("bagging", [{"kind": "all"}, {"kind": "top_k"}])
def test_best_yaml_is_the_bag(tmp_path: Path, bagging: dict[str, str]) -> None:
    base = with_knobs(PipelineConfig(), {"seeds.recipe.epochs": 7, "samples.count": 12})
    point = {"samples.sampler": {"kind": "ancestral"}, "evaluation.bagging": bagging}
    searched = section(knobs={path: [value] for path, value in point.items()})
    best = bag_config(trial_config(base, searched, point), 5)
    chosen = bagging["kind"] == "top_k"
    # Who votes as they come need not be drawn to be left out.
    assert best.samples.count == (12 if chosen else 5)
    assert best.evaluation.bagging.size == (5 if chosen else None)
    file = tmp_path / "best.yaml"
    file.write_text(best_yaml(best, "a line\nand another"))
    assert file.read_text().startswith("# a line\n# and another\n")
    assert load_config(file) == best
