"""The front door: ``import bend_ray``, and what a user does with it."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import own_things
import prose
import pytest
from nbclient import NotebookClient

import bend_ray as bend
from bend_ray import api

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "bend_ray" / "README.md"
SETTINGS = {
    "seeds.protocol.trunks": 2,
    "seeds.protocol.early_tails": 1,
    "seeds.protocol.tails": 4,
    "autoencoder.model.latent_size": 3,
    "autoencoder.training.steps": 5,
    "generator.training.steps": 5,
    "evaluation.rivals": [{"kind": "originals_bag"}],
}


def fitted(store: Path, **options: Any) -> bend.Run:
    parts = own_things.make_parts()
    given = {"epochs": 30, "members": 4, "settings": SETTINGS, "store": store} | options
    return bend.fit(own_things.make_net, parts["train"], parts["test"], **given)


def test_importing_it_imports_neither_torch_nor_ray() -> None:
    heavy = "{'torch', 'ray', 'numpy', 'pydantic', 'pyarrow'} & set(sys.modules)"
    command = [sys.executable, "-c", f"import sys, bend_ray; print({heavy})"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_the_names_are_these() -> None:
    assert dir(bend) == sorted(bend.__all__)
    assert set(bend.__all__) == {
        *("fit", "run", "find", "load_bag", "arrays_of", "__version__"),
        *("Run", "Bag", "BendError", "Config", "SeedsSection", "SamplesSection"),
        *("EvaluationSection", "Finish", "Recipe", "AdamW", "Sgd"),
        *("Arrays", "Digits", "ImageFolder", "ImageParquet", "Torchvision"),
        *("ConvNet", "Imported", "Mlp", "TorchvisionModel"),
        *("Checkpoints", "Forks", "Independent", "Tails", "Trajectory"),
        *("MajorityVote", "SoftVote", "WeightedVote", "GreedyForward", "TopK"),
        *("DeepEnsemble", "MultiSwag"),
    }


@pytest.mark.parametrize("name", bend.__all__)
def test_every_name_is_there_and_explained(name: str) -> None:
    value = getattr(bend, name)
    assert name == "__version__" or value.__doc__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = bend.nonsense


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(bend.__file__).parent / "py.typed").exists()


@pytest.mark.trains
def test_a_fit_gives_figures_models_and_a_page(tmp_path: Path) -> None:
    run = fitted(tmp_path / "runs")
    assert run.evaluation.part == "test"
    assert run.evaluation.bag.size == 4
    assert run.evaluation.bag.accuracy > 0.5
    assert run.evaluation.rivals["originals_bag"].size > 1
    assert run.population().theta_KP.shape[0] == 4
    assert "originals bag" in run.summary()
    assert Path(run.report(tmp_path / "page")).read_text().startswith("<!DOCTYPE html>")
    # A second call finds everything, and so does who knows the config, or asks for the newest.
    assert fitted(tmp_path / "runs").fingerprint == run.fingerprint
    assert bend.find(run.config, store=tmp_path / "runs").fingerprint == run.fingerprint
    assert bend.find(store=tmp_path / "runs").fingerprint == run.fingerprint
    assert repr(run) == f"<Run {run.fingerprint}: 4 members, NLL {run.evaluation.bag.nll:.4f}>"


@pytest.mark.trains
def test_a_bag_answers_and_is_saved(tmp_path: Path) -> None:
    run = fitted(tmp_path / "runs")
    inputs_NF, labels_N = own_things.make_parts()["test"]
    bag = run.bag()
    probs_NC = bag.predict_proba(inputs_NF)
    assert probs_NC.shape == (len(inputs_NF), own_things.NUM_CLASSES)
    np.testing.assert_allclose(probs_NC.sum(axis=1), 1, atol=1e-5)
    assert (bag.predict(inputs_NF) == probs_NC.argmax(axis=1)).all()
    assert (bag.predict(inputs_NF) == labels_N).mean() == run.evaluation.bag.accuracy
    sure = bag.uncertainty(inputs_NF)
    entropy_N = -(probs_NC * np.log(probs_NC)).sum(axis=1)
    np.testing.assert_allclose(sure.entropy, entropy_N, atol=1e-5)
    assert (sure.votes.sum(axis=1) == 4).all()
    bag.save(tmp_path / "bag")
    del bag
    again = bend.load_bag(tmp_path / "bag")
    np.testing.assert_allclose(again.predict_proba(inputs_NF), probs_NC, atol=1e-6)


def test_a_store_that_was_moved_keeps_its_data(tmp_path: Path) -> None:
    fitted(tmp_path / "runs", epochs=2)
    (tmp_path / "runs").rename(tmp_path / "moved")
    bag = bend.find(store=tmp_path / "moved").bag(members=2)
    assert bag.predict(own_things.make_parts()["test"][0][:3]).shape == (3,)


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_on_ray_a_fit_has_the_bits_of_one_in_this_process(tmp_path: Path) -> None:
    here = fitted(tmp_path / "here")
    there = fitted(tmp_path / "there", address="local")
    assert here.fingerprint == there.fingerprint
    for stage in ("seeds", "samples"):
        assert (here.population(stage).theta_KP == there.population(stage).theta_KP).all()
    ours, theirs = here.evaluation.bag.model_dump(), there.evaluation.bag.model_dump()
    assert ours | {"cost_seconds": 0} == theirs | {"cost_seconds": 0}


def test_without_a_test_part_figures_say_validation(tmp_path: Path) -> None:
    inputs_NF, labels_N = own_things.make_parts()["train"]
    names = np.array(["ant", "bee", "cat"])[labels_N]
    run = bend.fit(
        own_things.make_net,
        (inputs_NF, names),
        members=4,
        epochs=4,
        settings=SETTINGS,
        store=tmp_path,
    )
    assert run.evaluation.part == "validation"
    assert run.summary().startswith("validation part")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": own_things.make_net(3)}, "expected a function or class that makes one"),
        ({"network": 3}, "expected a function or class, or its name"),
        ({"network": "nowhere:make"}, "expected a module that can be imported from here"),
        ({"network": lambda: own_things.make_net(7)}, r"one a class, got \(4, 7\)"),
        (
            {"network": lambda width: own_things.make_net(3, width)},
            "missing a required argument",
        ),
        ({"train": (np.zeros((9, 6)), np.zeros(8))}, "8 labels"),
        ({"train": (np.full((90, 6), np.nan), np.arange(90) % 3)}, "nan"),
        ({"train": bend.Digits(), "test": (1, 2)}, "expected a data set with its own parts"),
        ({"settings": {"samples.cont": 3}}, "no such key"),
        ({"epochs": -1}, "seeds.recipe.epochs"),
        ({"address": "256.1.1.1:1"}, "address"),
    ],
    ids=lambda given: "" if isinstance(given, str) else next(iter(given)),
)
def test_what_is_wrong_is_told_in_a_line_and_nothing_is_made(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = {
        "network": own_things.make_net,
        "train": own_things.make_parts()["train"],
        "settings": SETTINGS,
    }
    with pytest.raises(bend.BendError, match=message) as refused:
        bend.fit(**given | changes, store=tmp_path)
    assert len(str(refused.value).splitlines()) == 1
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_store_that_lacks_a_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(bend.BendError, match=r"make it with bend_ray\.run"):
        bend.find(bend.Config(seed=3), store=tmp_path)


@pytest.mark.slow
def test_the_page_runs_as_a_notebook(tmp_path: Path) -> None:
    """Functions of a notebook are told apart by their source; nothing of Ray is at hand."""
    blocks = prose.blocks(PAGE.read_text())
    cells = [block.text for block in blocks if block.language == "python"]
    assert len(cells) == 3
    cells.append("import sys; assert 'ray' not in sys.modules")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    printed = notebook.cells[0].outputs[-2]["text"]
    assert "bag of generated" in printed
    assert (tmp_path / "my-bag").is_dir()


def test_the_parts_of_the_front_door_are_public() -> None:
    for name in bend.__all__:
        if name in ("__version__", "Config", "Arrays", "Imported"):
            continue
        value = getattr(bend, name)
        assert getattr(import_module(value.__module__), name) is value
    assert bend.fit is api.fit
