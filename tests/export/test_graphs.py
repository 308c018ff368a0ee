"""All members as one graph: what they say is what each says in torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from bend_ray.export.card import Card, Input
from bend_ray.export.graphs import bag_program
from bend_ray.export.members import member_graph
from bend_ray.networks.architectures import Mlp

SHAPE = (2, 9, 9)


def plain(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, channels, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 4, 3),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


def normed(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 5),
    )


def grouped(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 2 * channels, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, 5),
    )


def card(members: int) -> Card:
    return Card(
        model_version="test",
        created="now",
        bend_ray="test",
        architecture=Mlp(),
        inputs={"images": Input(shape=SHAPE, dtype="uint8", mean=(100.0, 120.0), std=(50.0, 70.0))},
        class_names=tuple("abcde"),
        vote={"kind": "soft"},
        members=tuple(range(members)),
        weights=(1 / members,) * members,
    )


def program(
    build: Callable[[], nn.Module], members: int
) -> tuple[onnx.ModelProto, list[nn.Module]]:
    torch.manual_seed(0)
    modules = [build().eval() for _ in range(members)]
    for buffer in (buffer for module in modules for buffer in module.buffers()):
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    member = member_graph(modules[0], card(members))
    states = [module.state_dict() for module in modules]
    names = [given.name for given in member.graph.input[1:]]
    state_K = {name: torch.stack([state[name] for state in states]).numpy() for name in names}
    return bag_program(card(members), member, state_K, "unrolled"), modules


@pytest.mark.parametrize("build", [plain, normed, grouped])
@pytest.mark.slow
@pytest.mark.parametrize(("channels", "members"), [(1, 5), (6, 1)])
def test_members_say_what_each_says_alone(
    build: Callable[[int], nn.Module], channels: int, members: int
) -> None:
    model, modules = program(lambda: build(channels), members)
    onnx.checker.check_model(model, full_check=True)
    pixels = np.random.default_rng(0).integers(256, size=(3, *SHAPE), dtype=np.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (said,) = session.run(["member_probabilities"], {"images": pixels})
    mean, std = (torch.tensor(each)[:, None, None] for each in ((100.0, 120.0), (50.0, 70.0)))
    inputs = (torch.from_numpy(pixels).float() - mean) / std
    with torch.no_grad():
        expected = torch.stack([module(inputs).softmax(dim=-1) for module in modules])
    np.testing.assert_allclose(said, expected.transpose(0, 1), atol=1e-5)
