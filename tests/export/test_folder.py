"""An exported bag, read back by other tools in a process that cannot import bend_ray."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from bags import Bagged, MakeBag
from click.testing import CliRunner

from bend_ray.artifacts.manifest import digest
from bend_ray.artifacts.store import Store
from bend_ray.cli.bag import export
from bend_ray.config.graph import graph_of, newest_config
from bend_ray.data.datasets import Digits
from bend_ray.ensemble.metrics import score
from bend_ray.ensemble.votes import apply_temperature, fit_temperature
from bend_ray.errors import ConfigError, DataError, StoreError
from bend_ray.export.card import read_card
from bend_ray.export.folder import export_bag
from bend_ray.process import log

MLP = "seeds.architecture={kind: mlp, hidden: [12]}"
CONVNET = "seeds.architecture={kind: convnet, channels: [4, 6]}"
GROUPED = "seeds.architecture={kind: convnet, channels: [4], norm: group}"
WEIGHTED = "evaluation.vote={kind: weighted, sharpness: 5.0}"
MAJORITY = "evaluation.vote={kind: majority}"

# A user's own network, as he would write it: state names are those of the bag's tensors.
NETWORKS = {
    "mlp": """
from torch import nn
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
""",
    "convnet": """
from collections import OrderedDict
from torch import nn
def block(inputs, outputs):
    conv, norm = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, relu=nn.ReLU(), pool=nn.MaxPool2d(2)))
def build():
    pooled = dict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), head=nn.Linear(6, 10))
    return nn.Sequential(OrderedDict(block0=block(1, 4), block1=block(4, 6), **pooled))
""",
}

# Every block in a namespace of its own, in one process.
_RUN = """
import json, sys, numpy
sys.modules["bend_ray"] = None
for heading, code in json.load(open("blocks.json")).items():
    names = {"numpy": numpy}
    exec(open("network.py").read(), names)
    exec(code, names)
    numpy.save(f"answer-{heading}.npy", numpy.asarray(names["probabilities"]))
assert not any(name.startswith("bend_ray.") for name in sys.modules)
"""


def blocks(folder: Path) -> dict[str, str]:
    """The README's Python blocks by their heading, each asked about the images of images.npy."""
    text = (folder / "README.md").read_text()
    found = re.findall(r"## (\S+)\n\n(?:[^#`]*`[^#]*?\n\n)?```python\n(.*?)```", text, re.DOTALL)
    said = {}
    for heading, code in found:
        replaced = re.sub(
            r"inputs = \{  # yours\n(?:    .*\n)*\}",
            r'inputs = {"images": numpy.load("images.npy")}',
            code,
        )
        assert replaced != code
        if "import torch" in code:
            replaced = replaced.replace('numpy.load("images.npy")', "own").replace(
                "inputs =", 'own = torch.from_numpy(numpy.load("images.npy"))\ninputs =', 1
            )
        said[heading] = replaced
    return said


def answers(folder: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What each block answers, in a process that cannot import bend_ray."""
    np.save(folder / "images.npy", pixels)
    (folder / "blocks.json").write_text(json.dumps(blocks(folder)))
    (folder / "network.py").write_text(NETWORKS[read_card(folder).architecture.kind])
    done = subprocess.run(
        [sys.executable, "-I", "-c", _RUN], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {name: np.load(folder / f"answer-{name}.npy") for name in blocks(folder)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "members"),
    [([MLP], None), ([CONVNET, WEIGHTED], [3, 1, 8, 2]), ([MLP, MAJORITY], [5, 5, 0, 7])],
    ids=["mlp-soft", "convnet-weighted", "mlp-majority-twice"],
)
def test_every_format_gives_the_bags_answer_without_us(
    make_bag: MakeBag,
    pixels: np.ndarray,
    tmp_path: Path,
    overrides: list[str],
    members: list[int] | None,
) -> None:
    bag = make_bag(*overrides, members=members)
    folder = tmp_path / "out"
    export_bag(bag.config, bag.graph, str(folder))
    expected = bag.probabilities(pixels).numpy()
    said = answers(folder, pixels)
    assert sorted(said) == ["ONNX", "safetensors"]
    for heading, probabilities in said.items():
        np.testing.assert_allclose(probabilities, expected, atol=1e-5, err_msg=heading)


def exported(bag: Bagged, folder: Path, **options: object) -> Path:
    export_bag(bag.config, bag.graph, str(folder), **options)  # type: ignore[arg-type]
    return folder


def run_onnx(folder: Path, pixels: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "bag.onnx"))
    return session.run(None, {"images": pixels})


@pytest.mark.parametrize("vote", ["{kind: soft}", "{kind: majority}", "{kind: weighted}"])
def test_onnx_answers_as_the_pipeline_does(
    make_bag: MakeBag, pixels: np.ndarray, tmp_path: Path, vote: str
) -> None:
    bag = make_bag(MLP, f"evaluation.vote={vote}", members=[4, 0, 7, 7])
    folder = exported(bag, tmp_path / "out")
    onnx.checker.check_model(str(folder / "bag.onnx"))
    probabilities, member_probabilities, *_ = run_onnx(folder, pixels)
    np.testing.assert_allclose(probabilities, bag.probabilities(pixels), atol=1e-5)
    own = bag.logits(pixels)[:3].softmax(-1).transpose(0, 1)
    np.testing.assert_allclose(member_probabilities, own, atol=1e-5)
    for rows in (pixels[:1], pixels[:0]):
        assert len(run_onnx(folder, rows)[0]) == len(rows)


def signed(said: dict[str, Any]) -> dict[str, Any]:
    """A manifest as if it had been committed so."""
    del said["sha256"]
    return said | {"sha256": digest(said)}


def test_a_temperature_is_inside(make_bag: MakeBag, pixels: np.ndarray, tmp_path: Path) -> None:
    bag = make_bag(MLP)
    manifest = Path(bag.graph.evaluation.path) / "manifest.json"
    said = json.loads(manifest.read_text())
    said["metrics"]["bag"]["temperature"] = 0.5
    manifest.write_text(json.dumps(signed(said)))
    folder = exported(bag, tmp_path / "out")
    assert read_card(folder).temperature == 0.5
    expected = apply_temperature(bag.probabilities(pixels), 0.5)
    np.testing.assert_allclose(run_onnx(folder, pixels)[0], expected, atol=1e-5)


def test_the_folder_says_what_it_is(make_bag: MakeBag, tmp_path: Path) -> None:
    bag = make_bag(CONVNET, members=[2, 6])
    folder = exported(bag, tmp_path / "out", with_onnx=False)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "members.safetensors",
    ]
    card = read_card(folder)
    assert card.model_version == bag.graph.evaluation.fingerprint
    assert card.members == (2, 6)
    assert card.weights == (0.5, 0.5)
    assert card.decoding.pixel_max == 16
    assert card.scores is not None
    assert card.scores.accuracy == 0.97
    tensors = safetensors.numpy.load_file(folder / "members.safetensors")
    module = bag.config.seeds.architecture.build((1, 8, 8), 10)
    assert set(tensors) == {n for n, t in module.state_dict().items() if t.is_floating_point()}
    assert all(len(tensor) == 2 for tensor in tensors.values())


def test_a_class_whose_folder_is_not_utf_8_has_a_name(
    make_bag: MakeBag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Digits.load
    names = ("caf\udce9", *"123456789")
    monkeypatch.setattr(Digits, "load", lambda self: replace(load(self), class_names=names))
    folder = exported(make_bag(MLP), tmp_path / "out")
    assert read_card(folder).class_names[0] == "caf\\udce9"
    assert "Classes: caf\\udce9, 1, 2" in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("network", [MLP, CONVNET, GROUPED])
def test_programs_need_no_more_than_the_folder_says(
    make_bag: MakeBag, tmp_path: Path, network: str
) -> None:
    folder = exported(make_bag(network), tmp_path / "out")
    needs = read_card(folder).onnx
    for name in ("bag.onnx", "member.onnx"):
        model = onnx.load_model(str(folder / name))
        onnx.checker.check_model(model, full_check=True)
        assert (model.ir_version, model.opset_import) == (
            needs["ir_version"],
            [onnx.helper.make_opsetid("", needs["opset"])],
        )
        assert onnx.helper.find_min_ir_version_for(model.opset_import) == needs["ir_version"]
    said = " ".join((folder / "README.md").read_text().split())
    assert f"Needs ONNX Runtime {needs['onnxruntime']} or later" in said
    assert f"IR version {needs['ir_version']} and opset {needs['opset']}." in said


def test_a_smaller_bag_is_its_first_members_and_says_so(
    make_bag: MakeBag, pixels: np.ndarray, tmp_path: Path
) -> None:
    bag = make_bag(MLP, members=[8, 3, 5])
    folder = exported(bag, tmp_path / "out", members=2)
    card = read_card(folder)
    assert card.members == (8, 3)
    assert card.scores is not None
    assert card.model_version == f"{bag.graph.evaluation.fingerprint}-n2"
    # A temperature of its own: two members are not as unsure as all of them.
    validation = bag.config.dataset.load().validation
    two = bag.logits(validation.inputs.numpy())[:2].softmax(-1).mean(dim=0)
    assert card.temperature == pytest.approx(fit_temperature(two, validation.labels_N), rel=1e-4)
    test = bag.config.dataset.load().test
    probs = apply_temperature(
        bag.logits(test.inputs.numpy())[:2].softmax(-1).mean(dim=0), card.temperature
    )
    assert card.scores.nll == pytest.approx(score(probs, test.labels_N)["nll"], rel=1e-4)
    expected = apply_temperature(bag.logits(pixels)[:2].softmax(-1).mean(dim=0), card.temperature)
    np.testing.assert_allclose(run_onnx(folder, pixels)[0], expected, atol=1e-5)
    with pytest.raises(ConfigError, match="expected 1 to 3"):
        exported(bag, tmp_path / "more", members=4)


@pytest.mark.parametrize("members", [2, 99])
def test_what_is_refused_is_not_announced(
    make_bag: MakeBag, tmp_path: Path, caplog: pytest.LogCaptureFixture, members: int
) -> None:
    make_bag(MLP)
    where = ["--store", str(tmp_path / "store"), "--output", str(tmp_path / "out")]
    with caplog.at_level("INFO", log.LOGGER.name):
        done = CliRunner().invoke(export, [*where, "--members", str(members), "--no-onnx"])
    assert (done.exit_code == 0) == (members == 2)
    assert ("of these the first" in caplog.text) == (members == 2)


def test_an_earlier_export_is_replaced_and_other_files_are_not(
    make_bag: MakeBag, tmp_path: Path
) -> None:
    bag = make_bag(MLP)
    folder = exported(bag, tmp_path / "out")
    assert (folder / "bag.onnx").exists()
    exported(bag, folder, members=3, with_onnx=False)
    assert len(read_card(folder).members) == 3
    # No program of the earlier bag beside the card of this one.
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "config.json",
        "members.safetensors",
    }
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"got one with letter\.txt"):
        exported(bag, tmp_path / "home")


def test_no_evaluation_is_told_in_one_line(make_bag: MakeBag, tmp_path: Path) -> None:
    bag = make_bag(MLP)
    elsewhere = graph_of(bag.config, Store(str(tmp_path / "empty")))
    with pytest.raises(StoreError, match="run `bend run`"):
        export_bag(bag.config, elsewhere, str(tmp_path / "out"))
    with pytest.raises(StoreError, match="expected an evaluation"):
        newest_config(Store(str(tmp_path / "empty")))
    with pytest.raises(DataError, match="expected a bag written by `bend export`"):
        read_card(tmp_path)
    (tmp_path / "config.json").write_text('{"format_version": 2}')
    with pytest.raises(DataError, match="export it again"):
        read_card(tmp_path)


def test_the_newest_evaluations_config_is_found_whatever_it_was(make_bag: MakeBag) -> None:
    older, newer = make_bag(MLP), make_bag(CONVNET, MAJORITY, "seed=7")
    store = newer.graph.evaluation.store
    for bag, created in (
        (older, "2026-01-01T00:00:00+00:00"),
        (newer, "2026-01-02T00:00:00+00:00"),
    ):
        manifest = Path(bag.graph.evaluation.path) / "manifest.json"
        said = json.loads(manifest.read_text()) | {"created": created}
        manifest.write_text(json.dumps(signed(said)))
    assert newest_config(store) == newer.config


def test_vectors_of_another_network_are_refused(make_bag: MakeBag, tmp_path: Path) -> None:
    from bend_ray.populations.members import member_states

    bag = make_bag(MLP)
    with pytest.raises(StoreError, match="expected classifiers of layout"):
        member_states(bag.config, bag.graph, [0], (1, 8, 8), 11)
    state = member_states(bag.config, bag.graph, [6, 0], (1, 8, 8), 10)
    assert torch.equal(state["1.weight"][0].flatten(), bag.theta_EP[6, : 12 * 64])
