from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bend_ray.errors import DataError
from bend_ray.networks.architectures import ConvNet, Mlp
from bend_ray.parameters.layout import ParameterLayout


def test_the_default_network_for_digits_has_3466_parameters() -> None:
    # 64 x 32 + 32, 32 x 32 + 32, 32 x 10 + 10.
    assert ParameterLayout.of(Mlp().build((1, 8, 8), 10)).size == 2080 + 1056 + 330


@pytest.mark.parametrize("hidden", [(), (7,), (5, 6, 7)])
def test_images_become_one_logit_a_class(hidden: tuple[int, ...]) -> None:
    module = Mlp(hidden=hidden).build((3, 4, 5), 6)
    assert module(torch.zeros(2, 3, 4, 5)).shape == (2, 6)
    widths = [layer.out_features for layer in module.children() if isinstance(layer, nn.Linear)]
    assert widths == [*hidden, 6]


def test_a_network_without_hidden_layers_is_linear() -> None:
    module = Mlp(hidden=()).build((1, 2, 2), 3)
    images = torch.randn(5, 1, 2, 2)
    state = module.state_dict()
    expected = images.flatten(1) @ state["1.weight"].T + state["1.bias"]
    assert torch.allclose(module(images), expected, atol=1e-6)


def test_a_layer_of_no_units_is_refused() -> None:
    with pytest.raises(ValidationError, match="hidden"):
        Mlp(hidden=(8, 0))


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(("channels", "size"), [((4,), 2), ((4, 6), 7), ((4, 5, 6), 8)])
def test_images_that_survive_the_pooling_become_logits(
    norm: str, channels: tuple[int, ...], size: int
) -> None:
    module = ConvNet(channels=channels, norm=norm).build((2, size, size + 1), 3)
    assert module(torch.zeros(2, 2, size, size + 1)).shape == (2, 3)


def test_images_that_do_not_survive_the_pooling_are_refused() -> None:
    with pytest.raises(DataError, match=r"at least 8x8 pixels for the 3 blocks.*got 28x7"):
        ConvNet().build((1, 28, 7), 10)


@pytest.mark.parametrize(
    ("norm", "beside_the_weights"),
    [("batch", 4 * 16), ("group", 2 * 16), ("none", 16)],
)
def test_a_convnet_has_the_numbers_it_says(norm: str, beside_the_weights: int) -> None:
    layout = ParameterLayout.of(ConvNet(channels=(16,), norm=norm).build((3, 8, 8), 10))
    assert layout.size == 3 * 16 * 9 + beside_the_weights + 16 * 10 + 10


def test_a_convnet_without_blocks_is_refused() -> None:
    with pytest.raises(ValidationError, match="channels"):
        ConvNet(channels=())
