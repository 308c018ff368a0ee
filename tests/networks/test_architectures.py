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


def randomised(module: nn.Module) -> nn.Module:
    """No two units are alike, in their norms and statistics neither."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.1, 1.0)
    return module.double().eval()


@pytest.mark.parametrize(
    ("spec", "widths"),
    [
        (Mlp(hidden=()), ()),
        (Mlp(hidden=(7,)), (7,)),
        (Mlp(hidden=(5, 6, 7)), (5, 6, 7)),
        *((ConvNet(channels=(5, 6), norm=norm), (5, 6)) for norm in ("batch", "group", "none")),
    ],
    ids=str,
)
def test_reordering_the_units_of_a_group_keeps_the_function(
    spec: Mlp | ConvNet, widths: tuple[int, ...]
) -> None:
    module = randomised(spec.build((2, 4, 4), 4))
    images = torch.randn(8, 2, 4, 4, dtype=torch.float64)
    before, state = module(images), dict(module.state_dict())
    groups = spec.permutation_groups()
    assert len(groups) == len(widths)
    for width, group in zip(widths, groups, strict=True):
        permutation = torch.arange(width).roll(1)
        for name, axis in group:
            state[name] = state[name].index_select(axis, permutation)
    changed = any(not torch.equal(state[name], old) for name, old in module.state_dict().items())
    assert changed == bool(widths)
    module.load_state_dict(state)
    assert torch.allclose(module(images), before, atol=1e-12)


def test_every_hidden_number_is_in_a_group() -> None:
    grouped = {name for group in Mlp(hidden=(5, 6)).permutation_groups() for name, _ in group}
    names = set(Mlp(hidden=(5, 6)).build((1, 2, 2), 3).state_dict())
    assert names - grouped == {"5.bias"}


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


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_every_channel_of_a_convnet_is_in_a_group(norm: str) -> None:
    spec = ConvNet(channels=(4, 5), norm=norm)
    grouped = {name for group in spec.permutation_groups() for name, _ in group}
    names = {entry.name for entry in ParameterLayout.of(spec.build((1, 4, 4), 3)).entries}
    assert names - grouped == {"head.bias"}


def test_a_convnet_without_blocks_is_refused() -> None:
    with pytest.raises(ValidationError, match="channels"):
        ConvNet(channels=())
