"""Chains rewritten for training compute what they computed before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bend_ray.networks.training_chain import for_training


def lenet(channels: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    )


def nested() -> nn.Sequential:
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                norm=nn.BatchNorm2d(outputs),
                active=nn.ReLU(),
                pool=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )

    return nn.Sequential(
        OrderedDict(
            first=block(1, 6), second=block(6, 8), flat=nn.Flatten(), head=nn.Linear(128, 3)
        )
    )


def repeated() -> nn.Sequential:
    active, pool = nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        active,
        pool,
        nn.Conv2d(4, 4, 3),
        active,
        pool,
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    # Rounded: pools meet ties, and ReLUs exact zeros.
    return torch.randn(5, 1, 16, 16, generator=generator).mul(2).round()


def outcome(module: nn.Module, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and each tensor's gradient."""
    own = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    logits = functional_call(module, own, (images(),))
    logits.square().sum().backward()
    return logits.detach(), {name: tensor.grad for name, tensor in own.items()}


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in module.named_parameters()}


@pytest.mark.parametrize("build", [lambda: lenet(8), nested, repeated])
def test_pooling_first_and_in_place_changes_no_bit(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = build()
    logits, gradients = outcome(module, parameters(module))
    again, their_gradients = outcome(for_training(module), parameters(module))
    assert torch.equal(again, logits)
    assert gradients.keys() == their_gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(their_gradients[name], gradient), name


def test_the_order_is_changed_and_the_names_are_kept() -> None:
    module = lenet()
    chain = for_training(module)
    kinds = [type(layer).__name__.strip("_") for layer in chain]
    assert kinds[:6] == ["Conv2d", "MaxPool2d", "ReLU"] * 2
    assert chain.state_dict().keys() == module.state_dict().keys()
    assert [type(layer).__name__ for layer in module][:3] == ["Conv2d", "ReLU", "MaxPool2d"]


def test_a_relu_keeps_its_input_where_the_layer_before_needs_it() -> None:
    chain = for_training(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Sigmoid(), nn.ReLU()))
    assert not chain[1].inplace
    assert not chain[3].inplace


def test_what_is_no_plain_chain_stays_itself() -> None:
    class Own(nn.Sequential):
        pass

    for module in (Own(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2)), nn.Linear(2, 2)):
        assert for_training(module) is module
