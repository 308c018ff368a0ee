"""A loaded bag: the members' answers, whichever way they are run and in how many groups."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
import torch
from served import export_random, reseal

from bend_ray.ensemble.votes import MajorityVote, SoftVote, Vote, WeightedVote
from bend_ray.errors import DataError, StoreError
from bend_ray.export import files
from bend_ray.export.card import noise, read_card
from bend_ray.export.graphs import Way
from bend_ray.serve.bag import Bag
from bend_ray.serve.queries import Inputs
from bend_ray.serve.settings import ServeSettings, Stop


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bags")
    return {kind: export_random(root, kind) for kind in ("mlp", "convnet")}


def softmaxes(folder: Path) -> np.ndarray:
    """Of each member about the examples of the card, ``(2, K, C)``."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "bag.onnx"))
    (said,) = session.run(["member_probabilities"], noise(read_card(folder)))
    return np.asarray(said)


def pixels(count: int) -> Inputs:
    return {"images": np.random.default_rng(0).integers(0, 17, (count, 1, 8, 8), dtype=np.uint8)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
@pytest.mark.parametrize("groups", [1, 2, 4, 50])
def test_groups_and_threads_change_nothing(
    folders: dict[str, Path], kind: str, groups: int
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folders[kind] / "bag.onnx"))
    images = pixels(9)
    probabilities, member_probabilities, *_ = session.run(None, images)
    bag = Bag.load(folders[kind], ServeSettings(groups=groups, cpus=2, max_batch_size=9))
    assert len(bag.groups) == (min(groups, 9) if groups > 1 else 0)
    for stop in (Stop(), Stop(confidence=2.0)):  # all at once, and group after group to the end
        answers = bag.answer(images, [stop] * 9)
        np.testing.assert_allclose(answers["probabilities"], probabilities, atol=1e-6)
        np.testing.assert_allclose(answers["member_probabilities"], member_probabilities, atol=1e-6)
        probs_BEC = torch.from_numpy(member_probabilities).double()
        bag_B = torch.special.entr(torch.from_numpy(probabilities).double()).sum(dim=1)
        whole_B = torch.special.entr(probs_BEC.mean(dim=1)).sum(dim=1)
        own_B = torch.special.entr(probs_BEC).sum(dim=2).mean(dim=1)
        np.testing.assert_allclose(answers["entropy"], bag_B, atol=1e-5)
        np.testing.assert_allclose(answers["mutual_information"], whole_B - own_B, atol=1e-5)
        np.testing.assert_array_equal(answers["member_labels"], probs_BEC.argmax(dim=2))


def test_a_bag_is_loaded_and_saved_from_an_object_store(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, uri = files.resolve, "s3://bags/mlp"
    store = pyarrow.fs.SubTreeFileSystem(str(folders["mlp"]), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(files, "resolve", lambda u: (store, "") if u == uri else real(u))
    bag, expected = Bag.load(uri), Bag.load(folders["mlp"])
    images = pixels(3)["images"]
    np.testing.assert_array_equal(bag.predict_proba(images), expected.predict_proba(images))
    bag.save(tmp_path / "saved")
    assert sorted(os.listdir(tmp_path / "saved")) == sorted(os.listdir(folders["mlp"]))
    saved = Bag.load(tmp_path / "saved")
    np.testing.assert_array_equal(saved.predict_proba(images), expected.predict_proba(images))
    (folders["mlp"] / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(StoreError, match=r"cannot copy .*config\.json"):
        Bag.load(uri)
    (tmp_path / "config.json").rename(folders["mlp"] / "config.json")


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("vote", [SoftVote(), MajorityVote(), WeightedVote()])
def test_the_graph_that_answers_counts_as_python_does(
    folders: dict[str, Path], tmp_path: Path, vote: Vote, temperature: float
) -> None:
    folder = shutil.copytree(folders["convnet"], tmp_path / "bag")
    weights = np.arange(1, 10) / 45 if vote.kind == "weighted" else np.full(9, 1 / 9)
    change = {"vote": vote, "weights": tuple(weights.tolist()), "temperature": temperature}
    with_weights = np.tensordot(weights, softmaxes(folder), (0, 1))
    reseal(folder, warmup=tuple(map(tuple, with_weights.tolist())), **change)
    bag, images = Bag.load(folder, ServeSettings(groups=4)), pixels(40)
    graph = bag.answer(images, [Stop()] * 40)
    tally = bag.answer(images, [Stop(confidence=2.0)] * 40)
    assert graph.keys() == tally.keys()
    for name in graph:
        said, expected = graph[name], tally[name]
        assert said.dtype == expected.dtype
        np.testing.assert_allclose(said, expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("way", [Way("stacked", 2), Way("unrolled", 1), Way("unrolled", 2, True)])
def test_every_way_gives_the_same(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    images = pixels(5)
    expected = Bag.load(folders["mlp"]).answer(images, [Stop()] * 5)
    monkeypatch.setattr("bend_ray.serve.bag.fastest", lambda *_: way)
    bag = Bag.load(folders["mlp"])
    said = bag.answer(images, [Stop()] * 5)
    assert f"{way.form} members on {way.threads} threads" in f"{bag.way}"  # as the log says it
    np.testing.assert_allclose(said["probabilities"], expected["probabilities"], atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_stopping_when_decided_saves_members_and_keeps_every_label(
    folders: dict[str, Path], kind: str
) -> None:
    bag = Bag.load(folders[kind], ServeSettings(groups=9))
    images = pixels(200)
    whole = bag.answer(images, [Stop()] * 200)
    early = bag.answer(images, [Stop(decided=True)] * 200)
    np.testing.assert_array_equal(early["label"], whole["label"])
    assert kind == "convnet" or early["members_used"].mean() < 9  # these convnets are never sure
    assert (whole["members_used"] == 9).all()
    mixed = bag.answer(images, [Stop(), Stop(decided=True)] * 100)
    np.testing.assert_array_equal(mixed["members_used"][::2], 9)
    np.testing.assert_array_equal(mixed["members_used"][1::2], early["members_used"][1::2])


def test_a_broken_folder_is_told_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, content, told in (
        ("members.safetensors", b"junk", "export it again"),
        ("member.onnx", b"junk", "member.onnx"),
        ("config.json", b"{}", "expected the card of a bag"),
        ("config.json", None, "written by `bend export`"),
    ):
        for file in folders["mlp"].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        if name != "config.json":
            reseal(tmp_path)
        with pytest.raises(DataError, match=told) as refused:
            Bag.load(tmp_path)
        assert "\n" not in str(refused.value)


def test_members_of_another_shape_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["mlp"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    convnet = folders["convnet"] / "members.safetensors"
    (tmp_path / "members.safetensors").write_bytes(convnet.read_bytes())
    reseal(tmp_path)
    with pytest.raises(DataError, match=r"expected 1\.weight of shape"):
        Bag.load(tmp_path)


@pytest.mark.slow
def test_answering_imports_no_torch(folders: dict[str, Path]) -> None:
    code = (
        "import sys, pathlib, numpy; from bend_ray.serve.bag import Bag;"
        f"bag = Bag.load(pathlib.Path({str(folders['mlp'])!r}));"
        "bag.predict(numpy.zeros((1, 1, 8, 8), numpy.uint8));"
        "print([name for name in ('torch', 'ray', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
