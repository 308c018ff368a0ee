"""What a user brings, on every axis: found by name, told apart by its code, and used."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_things
import pytest

from bend_ray import imported, pipeline
from bend_ray.artifacts.shards import read_population
from bend_ray.config.graph import identified
from bend_ray.config.reading import load_config
from bend_ray.config.schema import PipelineConfig
from bend_ray.errors import BendError, ConfigError
from bend_ray.imported import Imported
from bend_ray.report.evaluation import Result

OWN = {
    "dataset": "make_parts",
    "seeds.architecture": "make_net",
    "seeds.recipe.augmentation": "jitter",
    "autoencoder.model": "Autoencoder",
    "generator.denoiser": "Denoiser",
    "evaluation.vote": "best_half",
}
SMALL = [
    "seeds.protocol.trunks=2",
    "seeds.protocol.early_tails=1",
    "seeds.protocol.tails=4",
    "seeds.recipe.epochs=4",
    "autoencoder.model.latent_size=3",
    "autoencoder.training.steps=5",
    "generator.training.steps=5",
    "samples.count=4",
    'evaluation.rivals=[{"kind": "imported", "target": "own_things:pairs"}]',
]


def own_config(*overrides: str) -> PipelineConfig:
    """A config with something of a user's own wherever there can be."""
    named = [
        text
        for axis, name in OWN.items()
        for text in (f"{axis}.kind=imported", f"{axis}.target=own_things:{name}")
    ]
    return load_config(None, [*named, *SMALL, *overrides])


@pytest.mark.trains
def test_a_run_takes_something_of_ones_own_on_every_axis(tmp_path: Path) -> None:
    graph = pipeline.run(own_config(), str(tmp_path), local=True)
    evaluation = Result.of(graph)
    assert evaluation.bag.accuracy > 0.5
    assert set(evaluation.rivals) == {"pairs"}
    drawn = read_population(graph.samples)
    assert drawn.theta_KP.shape == (4, sum(p.numel() for p in own_things.make_net(3).parameters()))
    assert [line.state for line in pipeline.status(own_config(), str(tmp_path))][-1] == "committed"
    # What is stored can be read without the code, which it does not hold.
    held = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"make_net" in path.read_bytes() for path in held if path.suffix != ".json")


def test_results_are_read_without_a_users_code(tmp_path: Path) -> None:
    folder = tmp_path / "own_things"
    folder.mkdir()
    (folder / "hats.py").write_text("raise SystemExit('was imported')\n")
    arguments = ["seeds.architecture.kind=imported", "seeds.architecture.target=hats:make"]
    command = [sys.executable, "-m", "bend_ray", "status"]
    for override in arguments:
        command += ["--set", override]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "seeds" in found.stdout


def test_its_code_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "boots.py"
    file.write_text("def make():\n    return 1\n")
    spec = Imported(target="boots:make")
    first = spec.identified()
    assert first == spec.identified()
    assert first.resolve()() == 1

    file.write_text("def make():\n    return 2  # longer\n")
    assert spec.identified() != first
    # Once it is known it stays, so that all of a run is of one code ...
    assert first.identified() == first
    assert first.resolve()() == 1
    # ... and what this process has imported is no longer what the file says.
    with pytest.raises(ConfigError, match=r"importlib\.reload the module"):
        spec.identified().resolve()
    importlib.reload(sys.modules["boots"])
    assert spec.identified().resolve()() == 2

    imported._FOUND.pop("boots:make")
    with pytest.raises(ConfigError, match="has changed since that run; put it back"):
        first.resolve()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere_at_all:make", "expected a module that can be imported from here"),
        ("own_things:none", "expected a function or class of that name"),
        ("own_things:NUM_CLASSES", "expected a function or class, got 3"),
        ("own_things:make_net", "expected `arguments` that it takes, got .*: missing a required"),
    ],
)
def test_what_cannot_be_called_is_refused(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Imported(target=target).identified().make()


@pytest.mark.parametrize("target", ["own_things", "own_things:", ":make", "a b:c"])
def test_a_target_is_a_module_and_a_name(target: str) -> None:
    with pytest.raises(ConfigError, match="expected module:function as in shop"):
        load_config(None, [f"seeds.architecture={{kind: imported, target: '{target}'}}"])


def test_open_parameters_are_filled_in_and_given_ones_kept() -> None:
    assert (
        Imported(target="own_things:make_net").make(num_classes=5, unknown=1)[-1].out_features == 5
    )
    own = Imported(target="own_things:make_net", arguments={"num_classes": 4, "width": 3})
    assert own.make(num_classes=5)[0].out_features == 3
    assert own.make(num_classes=5)[-1].out_features == 4


def test_what_fails_is_told_in_a_line() -> None:
    with pytest.raises(ConfigError, match=r"^own_things:jitter: AttributeError: .*\(own_th.*line"):
        Imported(target="own_things:jitter").call("text", None)


def _closure(width: int) -> Callable[[], int]:
    return lambda: width


def test_a_function_that_no_process_can_import_travels_with_its_spec() -> None:
    spec = Imported.of(_closure(3))
    assert spec.source is not None
    assert spec != Imported.of(_closure(4))
    assert spec.resolve()() == 3
    # In another process nothing is held, until a spec arrives that brings it: as Ray sends them.
    cloudpickle: Any = pytest.importorskip("ray.cloudpickle")
    sent = cloudpickle.dumps(spec)
    held = dict(imported._HELD)
    imported._HELD.clear()
    with pytest.raises(ConfigError, match="expected the notebook or script that defines it"):
        Imported.model_validate(spec.model_dump()).resolve()
    assert pickle.loads(sent).resolve()() == 3
    imported._HELD.update(held)
    # What is stored is its name and digest alone.
    assert set(spec.model_dump()) == {"kind", "target", "arguments", "version", "source"}


def test_two_of_one_module_that_travel_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported, "_HELD", {})
    specs = [Imported(target=f"own_things:{name}") for name in ("make_net", "jitter")]
    for spec in specs:
        spec.hold()
    first, second = (spec.identified() for spec in specs)
    assert first.source == second.source
    assert first.resolve() is own_things.make_net
    assert second.resolve() is own_things.jitter


def test_a_version_makes_another_identity() -> None:
    config = own_config()
    other = own_config("seeds.architecture.version='2'")
    assert identified(config) != identified(other)


@pytest.mark.parametrize("given", [3, "own_things", own_things.Denoiser(3)])
def test_only_functions_classes_and_names_are_taken(given: Any) -> None:
    with pytest.raises((ConfigError, ValueError), match="expected"):
        Imported.of(given)


@pytest.mark.parametrize(
    ("axis", "source", "message"),
    [
        ("evaluation.vote", "lambda nll: nll[:1]", "expected weights of 0 or more"),
        ("evaluation.vote", "lambda nll: nll * 0", "expected weights of 0 or more"),
        ("seeds.recipe.augmentation", "lambda b, g: b[:, :2]", "expected views"),
        ("seeds.recipe.augmentation", "lambda b, g: b.double()", "expected views"),
        (
            "autoencoder.model",
            "lambda num_features: own_things.Autoencoder(num_features, 5)",
            "encode",
        ),
        ("generator.denoiser", "lambda: own_things.Denoiser(7)", r"\(x, t, condition\): expected"),
        ("dataset", "lambda: [1, 2]", "expected a row of numbers"),
        ("seeds.architecture", "lambda: None", "expected a function that returns a torch.nn"),
    ],
)
def test_what_does_not_fit_its_axis_is_refused_before_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: str, source: str, message: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"wrong_{abs(hash((axis, source)))}"
    (tmp_path / f"{name}.py").write_text(f"import own_things\nmake = {source}\n")
    store = tmp_path / "store"
    with pytest.raises(BendError, match=message) as refused:
        pipeline.run(own_config(f"{axis}.target={name}:make"), str(store), local=True)
    assert len(str(refused.value).splitlines()) == 1
