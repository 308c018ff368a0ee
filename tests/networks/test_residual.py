"""The residual MLP: what it computes, many at once as one by one, and its place in a program."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bend_ray.ensemble.votes import SoftVote
from bend_ray.export.card import Card, Input
from bend_ray.export.folder import publish_bag
from bend_ray.networks.architectures import ResidualMlp
from bend_ray.networks.residual import Periodic
from bend_ray.networks.stacking import Stack, form_for, predict_logits
from bend_ray.parameters.layout import ParameterLayout
from bend_ray.serve.bag import Bag

SPEC = ResidualMlp(width=8, blocks=2, frequencies=3)


def test_numbers_are_beside_their_sines_and_cosines() -> None:
    torch.manual_seed(0)
    layer, x = Periodic(2, 3, 0.5), torch.tensor([[0.3, -1.0]])
    found = layer(x)[0].detach()
    angles = [
        2 * math.pi * x[0, f].item() * layer.frequency_FQ[f, q].item()
        for f in range(2)
        for q in range(3)
    ]
    expected = [0.3, -1.0, *map(math.sin, angles), *map(math.cos, angles)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_many_at_once_are_as_one_by_one() -> None:
    torch.manual_seed(0)
    modules = [SPEC.build((5,), 3) for _ in range(4)]
    layout = ParameterLayout.of(modules[0])
    theta = torch.stack([layout.flatten(dict(m.state_dict())) for m in modules])
    assert form_for(modules[0], "cpu", torch.randn(2, 5)) == "stacked"
    x = torch.randn(7, 5)
    expected = torch.stack([m.eval()(x) for m in modules]).detach()
    found = predict_logits(Stack(SPEC.build((5,), 3), layout), theta, x)
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_bag_of_them_is_a_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    states = [SPEC.build((5,), 2).state_dict() for _ in range(2)]
    card = Card(
        model_version="residual",
        created="2026-11-30T00:00:00+00:00",
        bend_ray="0",
        architecture=SPEC,
        inputs={"inputs": Input(shape=(5,), dtype="float32", low=-1.0, high=1.0)},
        class_names=("no", "yes"),
        vote=SoftVote(),
        members=(0, 1),
        weights=(0.5, 0.5),
    )
    publish_bag(tmp_path, card, {n: torch.stack([s[n] for s in states]) for n in states[0]})
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    expected = 0.0
    for state in states:
        network = SPEC.build((5,), 2)
        network.load_state_dict(state)
        expected = expected + network(torch.from_numpy(x)).softmax(dim=1) / 2
    bag = Bag.load(tmp_path)
    assert bag.way is not None
    assert bag.predict_proba(x) == pytest.approx(expected.detach().numpy(), abs=1e-5)
