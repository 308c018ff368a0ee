from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bend_ray.classifiers.architectures import Mlp
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


@pytest.mark.parametrize("hidden", [(), (7,), (5, 6, 7)])
def test_reordering_the_units_of_a_group_keeps_the_function(hidden: tuple[int, ...]) -> None:
    spec = Mlp(hidden=hidden)
    module = spec.build((2, 3, 3), 4).double()
    images = torch.randn(8, 2, 3, 3, dtype=torch.float64)
    before, state = module(images), dict(module.state_dict())
    groups = spec.permutation_groups()
    assert len(groups) == len(hidden)
    for width, group in zip(hidden, groups, strict=True):
        permutation = torch.arange(width).roll(1)
        for name, axis in group:
            state[name] = state[name].index_select(axis, permutation)
    changed = any(not torch.equal(state[name], old) for name, old in module.state_dict().items())
    assert changed == bool(hidden)
    module.load_state_dict(state)
    assert torch.allclose(module(images), before, atol=1e-12)


def test_every_hidden_number_is_in_a_group() -> None:
    grouped = {name for group in Mlp(hidden=(5, 6)).permutation_groups() for name, _ in group}
    names = set(Mlp(hidden=(5, 6)).build((1, 2, 2), 3).state_dict())
    assert names - grouped == {"5.bias"}


def test_a_layer_of_no_units_is_refused() -> None:
    with pytest.raises(ValidationError, match="hidden"):
        Mlp(hidden=(8, 0))
