"""One member as a graph: what is written down directly is what torch computes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from bend_ray.export.card import Card, Input
from bend_ray.export.graphs import forms
from bend_ray.export.members import member_graph
from bend_ray.networks.architectures import ConvNet, Mlp


def card(shape: tuple[int, int, int]) -> Card:
    return Card(
        model_version="test",
        created="now",
        bend_ray="test",
        architecture=Mlp(),
        inputs={"images": Input(shape=shape, dtype="uint8")},
        class_names=tuple("abcde"),
        vote={"kind": "soft"},
        members=(0,),
        weights=(1.0,),
    )


def same(module: nn.Module, shape: tuple[int, int, int]) -> onnx.ModelProto:
    torch.manual_seed(0)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    inputs = torch.randn(3, *shape)
    model = member_graph(module, card(shape))
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    state = {given.name: module.state_dict()[given.name].numpy() for given in model.graph.input[1:]}
    (logits,) = session.run(None, {"images": inputs.numpy(), **state})
    np.testing.assert_allclose(logits, module(inputs).detach(), atol=1e-5)
    return model


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_convnet(norm: str) -> None:
    module = ConvNet(channels=(4, 6), norm=norm).build((3, 10, 8), 5)
    assert forms(same(module, (3, 10, 8))) == ("unrolled",)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 6)])
def test_an_mlp_can_be_stacked(hidden: tuple[int, ...]) -> None:
    module = Mlp(hidden=hidden).build((2, 3, 3), 5)
    assert forms(same(module, (2, 3, 3))) == ("stacked", "unrolled")


def test_unusual_options_of_known_layers() -> None:
    layers = [
        nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=1, groups=2, bias=False),
        nn.BatchNorm2d(8, eps=1e-3),
        nn.MaxPool2d((2, 3), stride=1, padding=(0, 1)),
        nn.Flatten(),
        nn.Linear(8 * 3 * 4, 5, bias=False),
    ]
    same(nn.Sequential(*layers), (4, 8, 8))


def test_a_layer_that_runs_twice() -> None:
    active = nn.ReLU()
    layers = [nn.Flatten(), nn.Linear(18, 7), active, nn.Linear(7, 6), active, nn.Linear(6, 5)]
    assert forms(same(nn.Sequential(*layers), (2, 3, 3))) == ("stacked", "unrolled")


@pytest.mark.slow
def test_anything_else_goes_through_torchs_exporter() -> None:
    model = same(ConvNet(channels=(4,), norm="group").build((3, 8, 8), 5), (3, 8, 8))
    assert forms(model) == ("unrolled",)


class Indexed(nn.Module):
    """Whose state holds indices, as Swin's does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.head = nn.Linear(3, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1)[:, self.order])


@pytest.mark.slow
def test_a_buffer_of_whole_numbers_is_a_part_of_the_graph() -> None:
    model = same(Indexed(), (3, 1, 1))
    assert [given.name for given in model.graph.input] == ["images", "head.weight", "head.bias"]
