from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import fuzzed
from hypothesis import example, given
from hypothesis import strategies as st

from bend_ray.config.reading import knobs, load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import ConfigError
from bend_ray.generation.diffusion import Ancestral
from bend_ray.generation.models import ConvDenoiser
from bend_ray.networks.protocols import Independent, Trajectory


def refusal(*overrides: str, path: Path | None = None) -> str:
    """What ``load_config`` complains of."""
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    return message


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_without_a_file_it_is_the_default_config() -> None:
    assert load_config(None) == PipelineConfig()


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}", "---\n", "null"])
def test_a_file_that_says_nothing_is_the_default_config(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == PipelineConfig()


def test_a_file_says_only_what_differs(tmp_path: Path) -> None:
    text = """
    seed: 3
    seeds:
      architecture: {hidden: [16]}
      protocol:
        trunks: 20   # more of them
    autoencoder: {training: {batch_size: 32}}
    """
    config = load_config(written(tmp_path, text))
    expected = PipelineConfig().model_dump()
    expected["seed"] = 3
    expected["seeds"]["architecture"]["hidden"] = (16,)
    expected["seeds"]["protocol"]["trunks"] = 20
    expected["autoencoder"]["training"]["batch_size"] = 32
    assert config.model_dump() == expected


def test_a_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    config = load_config(
        None, ["seeds.protocol.kind=trajectory", "autoencoder.model.latent_size=9"]
    )
    path = tmp_path / "resolved.json"
    path.write_text(config.model_dump_json(indent=2))
    assert load_config(path) == config


def test_an_override_goes_on_top_of_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    path = written(tmp_path, "samples: {count: 10, temperature: 0.5}")
    config = load_config(path, ["samples.count=20", "samples.count=30"])
    assert (config.samples.count, config.samples.temperature) == (30, 0.5)


def test_an_override_leaves_its_neighbours_at_the_section_s_own_default() -> None:
    config = load_config(None, ["autoencoder.training.batch_size=32", "generator.training.seed=1"])
    assert (config.autoencoder.training.batch_size, config.autoencoder.training.patience) == (32, 2)
    assert (config.generator.training.seed, config.generator.training.steps) == (1, 100)
    assert config.autoencoder.training.optimizer == PipelineConfig().autoencoder.training.optimizer


def test_the_value_of_an_override_is_yaml() -> None:
    config = load_config(
        None,
        [
            "autoencoder.resources={cpus: 2, workers: [1, 4]}",
            "seeds.architecture.hidden=[8, 8, 8]",
            "generator.conditional=false",
            "generator.training.optimizer.learning_rate=1e-4",
            "evaluation.bagging.size=null",
        ],
    )
    assert config.autoencoder.resources.workers == (1, 4)
    assert config.seeds.architecture.hidden == (8, 8, 8)
    assert config.generator.conditional is False
    assert config.generator.training.optimizer.learning_rate == 1e-4
    assert config.evaluation.bagging.size is None


def test_what_yaml_1_1_reads_otherwise_is_read_as_it_is_meant() -> None:
    config = load_config(
        None,
        [
            "seed=1e3",
            "samples.count=1_000",
            "autoencoder.training.steps=0x10",
            "samples.temperature=1e-1",
            "generator.conditional=yes",
            "seeds.protocol.align=off",
            "seeds.resources={accelerator: no, labels: {zone: on, since: 2026-01-31}}",
        ],
    )
    assert (config.seed, config.samples.count, config.autoencoder.training.steps) == (
        1000,
        1000,
        16,
    )
    assert (config.samples.temperature, config.generator.conditional) == (0.1, True)
    assert config.seeds.protocol.align is False
    assert config.seeds.resources.accelerator == "no"
    assert config.seeds.resources.labels == {"zone": "on", "since": "2026-01-31"}


def test_another_kind_starts_from_its_own_defaults() -> None:
    config = load_config(None, ["generator.denoiser.kind=conv1d"])
    assert config.generator.denoiser == ConvDenoiser()
    assert config.generator.training == PipelineConfig().generator.training


def test_naming_the_kind_in_place_keeps_the_rest() -> None:
    config = load_config(None, ["generator.training.optimizer={kind: adamw, weight_decay: 0.5}"])
    assert config.generator.training.optimizer.learning_rate == 1e-3


def test_a_kind_may_be_chosen_before_or_after_its_knobs(tmp_path: Path) -> None:
    overrides = ["seeds.protocol.checkpoints=200", "seeds.protocol.kind=trajectory"]
    for order in (overrides, overrides[::-1]):
        assert load_config(None, order).seeds.protocol == Trajectory(checkpoints=200)
    path = written(tmp_path, "seeds: {protocol: {kind: independent, models: 300}}")
    assert load_config(path, ["seeds.protocol.align=false"]).seeds.protocol == Independent(
        models=300, align=False
    )
    assert load_config(None, ["samples.sampler.kind=ancestral"]).samples.sampler == Ancestral()


REFUSED = {
    # What is misspelt, with what was meant.
    "samples.cuont=3": "samples.cuont: no such key; did you mean samples.count?",
    "smaples.count=3": "smaples: no such key; did you mean samples?",
    "seeds.protocol.trunk=3": "did you mean seeds.protocol.trunks?",
    "generator.denoiser.hiden=3": "did you mean generator.denoiser.hidden?",
    "evaluation.rivals=[{kind: noise, scal: 1}]": "did you mean evaluation.rivals.0.scale?",
    "samples.zzz=3": "samples.zzz: no such key; `bend config` lists every key",
    "samples.kind=ddim": "samples.kind: no such key",
    "dataset={kind: table, train: a, label: y}": "did you mean dataset.target, the column to",
    "dataset={kind: table, train: a, labels: y}": "did you mean dataset.target, the column to",
    # What data of a kind cannot give.
    "evaluation.shift=[noisy_columns]": "evaluation.shift: expected corruptions of images for",
    "evaluation.ood=[{kind: left_out}]": "evaluation.ood: left_out needs classes in dataset.left",
    "evaluation.ood=[{kind: dataset, dataset: {kind: arrays, train: a}}]": "expected data sets of",
    "dataset.num_calibration=300": "num_calibration: expected fewer than the 300 validation",
    # What belongs to another variant.
    "autoencoder.model.kernel=3": "autoencoder.model.kernel: no such key; "
    "it belongs to kind conv1d",
    "seeds.protocol={kind: independent, trunks: 2}": "it belongs to kind forks",
    "samples.sampler={kind: ancestral, steps: 2}": "it belongs to kind ddim or euler or heun",
    # A key with the name of a kind, of a type, or of both.
    "seeds.protocol.tails=0": "seeds.protocol.tails: Input should be greater than 0, got 0",
    "samples.noise=1": "samples.noise: no such key",
    "seeds.protocol.int=1": "seeds.protocol.int: no such key",
    "mlp=1": "mlp: no such key",
    # Sizes.
    "samples.count=0": "samples.count: Input should be greater than 0, got 0",
    "samples.count=-5": "samples.count: Input should be greater than 0, got -5",
    "autoencoder.training.batch_size=0": "autoencoder.training.batch_size: Input should be",
    "seeds.architecture.hidden=[8, 0]": "seeds.architecture.hidden.1: Input should be greater",
    "autoencoder.resources.workers=0": "autoencoder.resources.workers: Input should be greater",
    "autoencoder.resources.workers=[4, 1]": "autoencoder.resources: expected workers [least, most]",
    "seeds.held_out=1": "seeds.held_out: Input should be less than 1, got 1",
    "samples.sampler.eta=1.5": "samples.sampler.eta: Input should be less than or equal to 1",
    "evaluation.rivals=[{kind: noise, scale: -1}]": "evaluation.rivals.0.scale: Input should be",
    # Types.
    "samples.count=many": "samples.count: Input should be a valid integer",
    "samples.count=1.5": "samples.count: Input should be a valid integer",
    "samples.count=": "samples.count: Input should be a valid integer, got None",
    "samples.count=[1]": "samples.count: Input should be a valid integer, got [1]",
    "samples.count.x=3": "samples.count: Input should be a valid integer",
    "samples.count=2001-01-01": "samples.count: Input should be a valid integer",
    "generator.conditional=3": "generator.conditional: Input should be a valid boolean",
    "samples.finish.annealing=0.05": "samples.finish.annealing: expected a section with keys",
    "samples=5": "samples: expected a section with keys such as count, sampler,",
    "samples.sampler=heun": "samples.sampler: expected a section with keys such as kind, steps,",
    "autoencoder.training.optimizer.betas=[0.9]": "autoencoder.training.optimizer.betas.1: Field",
    "generator.process.prediction=x0": "generator.process.prediction: Input should be 'v' or 'eps'",
    "evaluation.rivals=[noise]": "evaluation.rivals.0: expected a section with keys such as kind,",
    "evaluation.rivals=[{scale: 1}]": "evaluation.rivals.0: Unable to extract tag",
    "samples={1: 2}": "samples.1: Keys should be strings",
    # Kinds.
    "samples.sampler.kind=ddpm": "samples.sampler: Input tag 'ddpm' found using 'kind' does not",
    "samples.sampler.kind=[1]": "samples.sampler: Input tag '[1]'",
    "dataset.kind=mnist": "dataset: Input tag 'mnist' found using 'kind' does not match",
    # Numbers that are none.
    "samples.temperature=.inf": "samples.temperature: Input should be a finite number, got inf",
    "samples.temperature=inf": "samples.temperature: Input should be a finite number, got 'inf'",
    "samples.temperature=.nan": "samples.temperature: Input should be a finite number, got nan",
    "generator.training.gradient_clip=.inf": "generator.training.gradient_clip: Input should",
    "evaluation.rivals=[{kind: noise, scale: .inf}]": "evaluation.rivals.0.scale: Input should",
    # Sections that do not agree.
    "autoencoder.model.latent_size=112": "autoencoder.model.latent_size: expected fewer than the "
    "112 models the generator learns from, so that it cannot store them one by one, got 112; lower",
    "evaluation.bagging.size=49": "evaluation.bagging.size: expected at most samples.count = 48, "
    "got 49; lower it or draw more samples",
    "samples.sampler.kind=heun": "samples.sampler: expected ddim or ancestral for "
    "generator.process ddpm, got heun",
    "generator.process.kind=flow": "samples.sampler: expected euler or heun for "
    "generator.process flow, got ddim",
    "evaluation.rivals=[{kind: noise}, {kind: trunk_bag}, {kind: noise}]": "evaluation: expected "
    "each kind of rival once, got noise again",
    # What YAML 1.1 would take for a number, or for a text.
    "samples.count=true": "samples.count: Input should be no boolean, got True",
    "samples.temperature=false": "samples.temperature: Input should be no boolean, got False",
    "seeds.architecture.hidden=[8, true]": "seeds.architecture.hidden: Input should be no boolean",
    "samples.count=yes": "samples.count: Input should be a valid integer, unable to parse string",
    "samples.count=1:30": "unable to parse string as an integer, got '1:30'",
    "samples.count=0b11": "unable to parse string as an integer, got '0b11'",
    "seeds.resources.accelerator=1": "valid string, got 1; write it in quotes",
    "seeds.resources.labels={a: true}": "valid string, got True; write it in quotes",
    # Variables, which a shell would have put in.
    "dataset={kind: image_folder, root: $DATA/set}": "dataset.root: variables are not expanded: "
    "write out $DATA/set",
    "parameters.include=['fc.*', '${A}']": "parameters.include.1: variables are not expanded",
    # What is no override.
    "samples.count": "--set samples.count: expected a.b=value, as in --set samples.count=96",
    "=3": "--set =3: expected a.b=value",
    "samples..count=3": "--set samples..count=3: expected a.b=value",
    "samples.count=[1": "--set samples.count=[1: expected YAML, got: while parsing",
    "samples.count=010": "expected YAML, got: 010, which is octal to some readers "
    "and decimal to others; write 10, or '010' for text",
    "samples={count: 1, count: 2}": "got: the key count twice, in line 1; keep one",
    "samples.count=!!int many": "expected YAML, got: ",
    "samples.count=!!python/name:os.system": "expected YAML, got: ",
}


@pytest.mark.parametrize(("override", "complaint"), REFUSED.items())
def test_what_cannot_mean_anything_is_refused_by_its_key(override: str, complaint: str) -> None:
    assert complaint in refusal(override)


def test_brackets_without_end_are_refused() -> None:
    assert "expected YAML" in refusal("samples.count=" + "[" * 500)


def test_a_section_cannot_be_set_below_a_value() -> None:
    message = refusal("samples=5", "samples.count=3")
    assert message == "--set samples.count=3: expected samples to be a section, got 5"


def test_every_problem_is_told_at_once_and_each_once() -> None:
    message = refusal("samples.count=0", "seed=-1", "autoencoder.resources.workers=x")
    problems = message.split("; ")
    assert [problem.split(":")[0] for problem in problems] == [
        "seed",
        "autoencoder.resources.workers",
        "samples.count",
    ]


def test_a_key_or_value_of_several_lines_is_quoted_in_one() -> None:
    assert refusal("sam\nples=3").startswith("sam ples: no such key")
    assert "got 'a\\nb'" in refusal('samples.count="a\\nb"')
    refusal("a\nb")
    refusal("samples.count=[\n\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("samples: {count: 3", "expected YAML, got: while parsing a flow mapping"),
        ("a: b: c", "expected YAML, got: mapping values are not allowed here"),
        ("samples:\n\t- 3", "expected YAML, got: while scanning"),
        (
            "seed: 1\nseeds:\n  cohort_size: 2\nseed: 3",
            "expected YAML, got: the key seed twice, in line 1 and in line 4; keep one",
        ),
        ("seed: !!timestamp 2001-01-01", "expected YAML, got: could not determine a constructor"),
        ("a: 1\n---\nb: 2", "expected YAML, got: expected a single document"),
        ("- samples\n- count", "expected a mapping of sections, got list"),
        ("samples", "expected a mapping of sections, got str"),
        ("3", "expected a mapping of sections, got int"),
        ("samples: *nowhere", "expected YAML, got: an alias, *nowhere; write the value out"),
        ("a: &a [x, x]\nb: [*a, *a]", "expected YAML, got: an alias, *a; write the value out"),
        ("a: {b: 1}\nc: {<<: *a}", "expected YAML, got: an alias, *a; write the value out"),
        ("seed: 0x" + "f" * 9999, "expected YAML, got: an integer of 39996 bits"),
        ("# " + 2**20 * "x", "expected a config file of at most 1,048,576 bytes"),
        ("[" * 500, "expected YAML, got: maximum recursion depth exceeded"),
    ],
)
def test_a_file_that_is_no_config_is_refused_by_its_name(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = written(tmp_path, text)
    assert refusal(path=path).startswith(f"{path}: {complaint}")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00s", b"\x00\x01\x02", b"PK\x03\x04\x14\x00"])
def test_a_binary_file_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    assert refusal(path=path).startswith(f"{path}: expected YAML, got: ")


def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert (
        refusal(path=missing)
        == f"{missing}: expected a config file, got: No such file or directory"
    )
    assert refusal(path=tmp_path) == f"{tmp_path}: expected a config file, got: Is a directory"


def test_an_empty_section_says_what_it_lacks(tmp_path: Path) -> None:
    message = refusal(path=written(tmp_path, "samples:\n"))
    assert message.startswith("samples: expected a section with keys such as count, sampler,")
    assert message.endswith("got None")


PATHS = sorted({knob.path for knob in knobs()} | {"samples.sampler.kind", "seeds.protocol.kind"})
ODD_VALUES = [
    *(".inf", "-.inf", ".nan", "null", "~", "yes", "[]", "{}", "[1, 2]", "{kind: noise}", "''"),
    *("{kind: 3}", "[[]]", "{1: 2}", "2001-99-99", "!!int x", "&a [*a]", "*a", "%", "@", "`", "=="),
    *(
        '"\\ud800"',
        "<<",
        "{<<: 1}",
        "? x",
        "- 1",
        "12:30:45",
        "0o7",
        "0x",
        "1_0",
        "|",
        "\x00",
        "\n",
    ),
]
scalars = (
    st.integers(-3, 40).map(str)
    | st.integers(-(2**70), 2**70).map(str)
    | st.integers(2**60, 2**80).map(hex)
    | st.floats(allow_nan=True).map(lambda number: yaml.safe_dump(number).split("\n")[0])
    | st.booleans().map(str)
    | st.sampled_from(ODD_VALUES)
    | st.sampled_from(["ddim", "euler", "flow", "conv1d", "mlp", "greedy", "trajectory", "eps"])
    | st.text(max_size=3)
)


@st.composite
def override_paths(draw: st.DrawFn) -> str:
    """A knob's path, as it is or with letters lost, doubled, changed or added below it."""
    path = draw(st.sampled_from(PATHS))
    place = draw(st.integers(0, len(path)))
    letters = draw(st.sampled_from(["", "x", ".", ".0", "\n", ".kind", "forks", "é"]))
    lost = draw(st.integers(0, 2))
    return draw(st.sampled_from([path, path[:place] + letters + path[place + lost :]]))


def loaded_or_refused(path: Path | None, overrides: Sequence[str] = ()) -> PipelineConfig | None:
    """The config, or None if it is refused in one line; anything else is raised."""
    try:
        return load_config(path, overrides)
    except ConfigError as error:
        message = str(error)
    assert len(message.splitlines()) == 1
    return None


@pytest.mark.slow
@given(overrides=st.lists(st.tuples(override_paths(), scalars).map("=".join), max_size=4))
@example(overrides=["samples=~", "samples.count=1"])
@example(overrides=["seeds.protocol.kind={}"])
@fuzzed(80)
def test_any_override_loads_or_is_refused_in_one_line(overrides: list[str]) -> None:
    config = loaded_or_refused(None, overrides)
    if config is not None:
        assert PipelineConfig.model_validate_json(config.model_dump_json()) == config


@given(content=st.binary(max_size=12) | st.text(max_size=12).map(str.encode))
@fuzzed(40)
def test_any_file_loads_or_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    loaded_or_refused(path)


mappings: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=3),
    lambda below: (
        st.lists(below, max_size=2)
        | st.dictionaries(
            st.sampled_from(["kind", "protocol", "model", "rivals", "sampler", "count", "steps"]),
            below,
            max_size=3,
        )
    ),
    max_leaves=6,
)


@given(section=st.sampled_from(sorted(PipelineConfig.model_fields)), value=mappings)
@fuzzed(40)
def test_any_section_loads_or_is_refused_in_one_line(
    tmp_path: Path, section: str, value: Any
) -> None:
    text = yaml.safe_dump({section: value})
    loaded_or_refused(written(tmp_path, text))
