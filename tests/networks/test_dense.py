from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from bend_ray.networks.dense import is_dense, run_dense

NUM_MODELS, NUM_IMAGES = 5, 7
IMAGE = (2, 3, 3)


def chain(bias: bool) -> nn.Module:
    active = nn.Tanh()  # one module that runs twice
    hidden = nn.Sequential(nn.Linear(18, 6, bias=bias), active, nn.Linear(6, 5, bias=bias), active)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(5, 4))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_logits_and_gradients_are_those_of_vmap(bias: bool, shared: bool) -> None:
    module = chain(bias)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(NUM_MODELS, *p.shape, generator=generator, requires_grad=True)
        for name, p in module.named_parameters()
    }
    lead = (NUM_IMAGES,) if shared else (NUM_MODELS, NUM_IMAGES)
    images = torch.randn(*lead, *IMAGE, generator=generator)
    expected = vmap(
        lambda own, batch: functional_call(module, own, (batch,)), (0, None if shared else 0)
    )(state, images)
    actual = run_dense(module, state, images, shared=shared)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    for got, wanted in zip(
        torch.autograd.grad(actual.square().sum(), list(state.values())),
        torch.autograd.grad(expected.square().sum(), list(state.values())),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(),
        nn.Bilinear(4, 4, 2),
        nn.Sequential(nn.Flatten(2), nn.Linear(4, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout(0.5)),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2)),
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 2)),
    ],
    ids=str,
)
def test_other_networks_are_left_to_vmap(module: nn.Module) -> None:
    assert not is_dense(module)
    assert is_dense(chain(bias=True))
