"""Bags of what is no image: exported, loaded, asked from Python and over HTTP, saved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from inprocess import client
from starlette.testclient import TestClient
from strangers import CLASSES, NETWORKS, Stubborn, write_random, write_strangers

from bend_ray.errors import ConfigError, DataError
from bend_ray.export.card import Input, noise, read_card
from bend_ray.export.members import normalised
from bend_ray.serve.bag import Bag
from bend_ray.serve.settings import ServeSettings

INFER = "/v2/models/bag/infer"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("strangers")
    for name in NETWORKS:
        write_strangers(root / name, name)
    return {name: root / name for name in NETWORKS}


def http(folder: Path) -> TestClient:
    return client(folder, ServeSettings(run_code=True))


def by_hand(folder: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The mean softmax of the members, each run by torch alone."""
    from safetensors.torch import load_file

    card, state_K = read_card(folder), load_file(folder / "members.safetensors")
    module = NETWORKS[folder.name][0]().eval()
    given, probs = normalised(card, inputs), []
    for k in range(len(card.members)):
        module.load_state_dict({name: tensor[k] for name, tensor in state_K.items()}, strict=False)
        said = module(**given) if isinstance(given, dict) else module(given)
        probs.append((said["logits"] if isinstance(said, dict) else said).softmax(-1).detach())
    return torch.stack(probs).mean(0).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_bag_says_what_its_members_say(folders: dict[str, Path], name: str) -> None:
    folder = folders[name]
    card = read_card(folder)
    assert (card.onnx is None) == (name == "stubborn") == (not (folder / "bag.onnx").exists())
    assert len(card.warmup) == 2
    bag, inputs = Bag.load(folder, ServeSettings(run_code=True, groups=3)), noise(card, 11)
    given: Any = inputs if len(inputs) > 1 else inputs["inputs"]
    expected = by_hand(folder, inputs)
    np.testing.assert_allclose(bag.predict_proba(given), expected, atol=1e-5)
    assert bag.predict(given).tolist() == [CLASSES[c] for c in expected.argmax(axis=1)]
    uncertainty = bag.uncertainty(given)
    entropy = torch.special.entr(torch.from_numpy(expected).double()).sum(dim=1)
    np.testing.assert_allclose(uncertainty.entropy, entropy, atol=1e-4)
    assert uncertainty.votes.sum(axis=1).tolist() == [5] * 11
    assert (uncertainty.mutual_information >= 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_json_and_the_protocol_answer_alike(folders: dict[str, Path], name: str) -> None:
    folder, server = folders[name], http(folders[name])
    card = read_card(folder)
    inputs = noise(card, 3)
    rows = [{key: values[row].tolist() for key, values in inputs.items()} for row in range(3)]
    instances = rows if len(inputs) > 1 else [row["inputs"] for row in rows]
    done = server.post("/predict", json={"instances": instances})
    assert done.status_code == 200, done.text
    said = [[p["probabilities"][c] for c in CLASSES] for p in done.json()["predictions"]]
    np.testing.assert_allclose(said, by_hand(folder, inputs), atol=1e-5)
    (told,) = [server.get("/v2/models/bag").json()["inputs"]]
    body = {
        "inputs": [
            {**tensor, "shape": [3, *tensor["shape"][1:]], "data": inputs[tensor["name"]].tolist()}
            for tensor in told
        ]
    }
    done = server.post(INFER, json=body)
    assert done.status_code == 200, done.text
    (probabilities,) = [o["data"] for o in done.json()["outputs"] if o["name"] == "probabilities"]
    np.testing.assert_allclose(np.reshape(probabilities, (3, 3)), said, atol=1e-6)
    assert server.get("/").text == server.get("/docs").text


def test_tensors_behind_the_json_are_told_apart_by_their_sizes(folders: dict[str, Path]) -> None:
    import json

    card, server = read_card(folders["two"]), http(folders["two"])
    inputs = noise(card, 2)
    datatypes = {"tokens": "INT64", "numbers": "FP32"}
    tensors = [
        {
            "name": name,
            "datatype": datatypes[name],
            "shape": list(inputs[name].shape),
            "parameters": {"binary_data_size": inputs[name].nbytes},
        }
        for name in ("numbers", "tokens")  # in another order than the card's
    ]
    head = json.dumps({"inputs": tensors}).encode()
    tail = inputs["numbers"].tobytes() + inputs["tokens"].tobytes()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    done = server.post(INFER, content=head + tail, headers=headers)
    assert done.status_code == 200, done.text
    (probabilities,) = [o["data"] for o in done.json()["outputs"] if o["name"] == "probabilities"]
    expected = by_hand(folders["two"], inputs)
    np.testing.assert_allclose(np.reshape(probabilities, (2, 3)), expected, atol=1e-5)
    for wrong in (tail[:-1], tail + b"x"):
        assert server.post(INFER, content=head + wrong, headers=headers).status_code == 422


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("table", {"instances": [[1, 2, 3]]}, "shape [n, 4], got [1, 3]"),
        ("table", {"instances": [[1, 2, 3, 1e39]]}, "finite"),
        ("table", {"instances": [[1, 2, 3, "x"]]}, "expected numbers"),
        ("table", {"instances": [{"numbers": [1, 2, 3, 4]}]}, "missing: inputs; unknown: numbers"),
        ("tokens", {"instances": [[1, 2, 3, 4, 5, 0.5]]}, "whole numbers"),
        ("tokens", {"instances": [[1, 2, 3, 4, 5, -1]]}, "that index a table"),
        ("tokens", {"instances": [[1, 2, 3, 4, 5, 2**62]]}, "that the network takes"),
        ("two", {"instances": [{"tokens": [0] * 6}]}, "expected tokens, numbers; missing: numbers"),
        ("two", {"instances": [[0] * 6]}, "instances[0]: expected an object"),
    ],
)
def test_what_does_not_fit_is_told(
    folders: dict[str, Path], name: str, body: Any, told: str
) -> None:
    done = http(folders[name]).post("/predict", json=body)
    assert (done.status_code, told in done.json()["error"]) == (422, True), done.text


def test_one_who_asks_the_impossible_harms_nobody_else(folders: dict[str, Path]) -> None:
    import asyncio

    from bend_ray.serve.answering import Answering
    from bend_ray.serve.meters import Meters, Prometheus
    from bend_ray.serve.queries import Wants

    service = Answering(ServeSettings(batch_wait_ms=20), Meters(Prometheus()))
    service.go_live(service.load(str(folders["tokens"])))
    good, bad = np.ones((1, 6), np.int64), np.full((1, 6), 20)

    async def together() -> list[Any]:
        asked = [
            service.ask(service.card(), {"inputs": values}, Wants()) for values in (good, bad, good)
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = asyncio.run(together())
    assert isinstance(second, DataError)
    np.testing.assert_array_equal(first[1]["probabilities"], third[1]["probabilities"])


def test_whatever_a_user_has_is_understood(folders: dict[str, Path]) -> None:
    bag = Bag.load(folders["table"])
    x = np.array([[1.0, -2.0, 3.0, 5.0], [0.0, 0.0, 0.0, 1.0]])
    expected = bag.predict_proba(x)
    frame = pd.DataFrame(x, columns=list("abcd"))
    for same in (x.tolist(), x.astype(np.float32), torch.from_numpy(x), frame, {"inputs": x}):
        np.testing.assert_array_equal(bag.predict_proba(same), expected)
    assert bag.predict_proba(np.zeros((0, 4))).shape == (0, 3)
    for wrong in (np.zeros(4), np.zeros((2, 5)), np.full((1, 4), np.nan)):
        with pytest.raises(DataError, match=r"^x: [^\n]*expected"):
            bag.predict_proba(wrong)
    both = Bag.load(folders["two"])
    with pytest.raises(DataError, match="as many examples"):
        both.predict({"tokens": np.zeros((2, 6), int), "numbers": np.zeros((1, 4))})


def test_many_examples_are_answered_in_pieces(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bag, x = Bag.load(folders["table"]), np.random.default_rng(0).normal(size=(23, 4))
    whole = bag.uncertainty(x)
    monkeypatch.setattr("bend_ray.serve.bag.MOST_AT_ONCE", 20)
    for one, other in zip(bag.uncertainty(x), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_labels_that_are_numbers_are_given_back_as_numbers(folder: Path) -> None:
    bag, images = Bag.load(folder), np.zeros((3, 1, 8, 8), np.uint8)
    assert bag.predict(images).dtype == np.int64
    np.testing.assert_array_equal(bag.predict_proba(images[:, 0]), bag.predict_proba(images))


def test_a_bag_is_saved_and_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    bag, x = Bag.load(folders["table"]), np.ones((2, 4))
    bag.save(tmp_path / "mine")
    bag.save(tmp_path / "mine")
    again = Bag.load(tmp_path / "mine")
    assert again.card == bag.card
    np.testing.assert_array_equal(again.predict_proba(x), bag.predict_proba(x))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"letter\.txt"):
        bag.save(tmp_path / "home")


def test_code_is_not_run_because_a_bag_says_so(folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"strangers:Stubborn.*run_code"):
        Bag.load(folders["stubborn"])


def test_a_network_that_noise_does_not_suit_is_exported_all_the_same(tmp_path: Path) -> None:
    inputs = {"inputs": Input(shape=(4,), dtype="float32", low=-1e38, high=1e38)}
    card = write_random(tmp_path, Stubborn, inputs)
    assert card.onnx is None
    bag = Bag.load(tmp_path, ServeSettings(run_code=True))
    assert bag.predict_proba(np.ones((1, 4))).sum() == pytest.approx(1)


@pytest.mark.slow
def test_a_bag_with_programs_needs_neither_torch_nor_ray(folders: dict[str, Path]) -> None:
    code = (
        "import sys, numpy, bend_ray;"
        f"bag = bend_ray.load_bag({str(folders['two'])!r});"
        "bag.predict({'tokens': numpy.ones((1, 6), int), 'numbers': numpy.ones((1, 4))});"
        "print([name for name in ('torch', 'ray', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
