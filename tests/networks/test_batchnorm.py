from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bend_ray.errors import DataError
from bend_ray.networks.architectures import ConvNet, TorchvisionModel
from bend_ray.networks.batchnorm import recalibrate_batchnorm
from bend_ray.networks.probe import check_batches
from bend_ray.networks.stacking import Form, Stack
from bend_ray.parameters.layout import ParameterLayout

NUM_MODELS, NUM_IMAGES, BATCH = 3, 23, 8


def build() -> nn.Module:
    return ConvNet(channels=(4, 5)).build((1, 4, 4), 3)


LAYOUT = ParameterLayout.of(build())


def population() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 + torch.rand(NUM_MODELS, LAYOUT.size, generator=generator)


def images() -> Tensor:
    return torch.randn(NUM_IMAGES, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def torchs_own_loop(theta_P: Tensor, module: nn.Module) -> Tensor:
    """As ``torch.optim.swa_utils.update_bn`` does it."""
    module.load_state_dict(LAYOUT.unflatten(theta_P), strict=False)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None  # type: ignore[assignment]
    module.train()
    with torch.no_grad():
        for batch in torch.tensor_split(images(), 3):
            module(batch)
    return LAYOUT.flatten(module.state_dict())


@pytest.mark.parametrize("form", ["stacked", "loop"])
@pytest.mark.parametrize("max_elements", [2**24, 1, 2 * BATCH * 16])
def test_statistics_are_those_of_torchs_cumulative_average(form: Form, max_elements: int) -> None:
    theta_KP = population()
    kept = theta_KP.clone()
    recalibrated = recalibrate_batchnorm(
        Stack(build(), LAYOUT, form),
        theta_KP,
        images(),
        batch_size=BATCH,
        max_elements=max_elements,
    )
    expected = torch.stack([torchs_own_loop(theta_P, build()) for theta_P in theta_KP])
    np.testing.assert_allclose(recalibrated, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(theta_KP, kept)
    trained = slice(LAYOUT.num_trainable)
    assert torch.equal(recalibrated[:, trained], kept[:, trained])


def test_old_statistics_leave_no_trace() -> None:
    theta_KP, other_KP = population(), population()
    other_KP[:, LAYOUT.num_trainable :] = -7.0
    stack = Stack(build(), LAYOUT)
    assert torch.equal(*(recalibrate_batchnorm(stack, t, images()) for t in (theta_KP, other_KP)))


def test_one_batch_gives_the_moments_of_the_first_convolutions_output() -> None:
    theta_KP = population()
    state = LAYOUT.unflatten(recalibrate_batchnorm(Stack(build(), LAYOUT), theta_KP, images())[0])
    weight = LAYOUT.unflatten(theta_KP[0])["block0.conv.weight"]
    variance, mean = torch.var_mean(nn.functional.conv2d(images(), weight, padding=1), (0, 2, 3))
    np.testing.assert_allclose(state["block0.norm.running_mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state["block0.norm.running_var"], variance, rtol=1e-4, atol=1e-5)


def test_the_stack_is_left_in_evaluation_mode_with_its_momentum() -> None:
    stack = Stack(build(), LAYOUT).train()
    before = copy.deepcopy([m.momentum for m in stack.modules() if isinstance(m, nn.BatchNorm2d)])
    recalibrate_batchnorm(stack, population(), images())
    norms = [module for module in stack.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == before == [0.1, 0.1]
    assert not any(module.training for module in stack.modules())


def test_models_without_batchnorm_are_as_they_were() -> None:
    module = ConvNet(channels=(4,), norm="group").build((1, 4, 4), 3)
    layout = ParameterLayout.of(module)
    theta_KP = torch.randn(2, layout.size)
    assert recalibrate_batchnorm(Stack(module, layout), theta_KP, images()) is theta_KP


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_batches_that_a_norm_cannot_be_trained_on_are_refused(name: str) -> None:
    module = TorchvisionModel(name=name).build((3, 32, 32), 3)
    with pytest.raises(DataError, match=r"batches .*got one of 1 .*batch_size"):
        check_batches(lambda: module, torch.zeros(1, 3, 32, 32), 1)
    check_batches(lambda: module, torch.zeros(1, 3, 32, 32), 2)
    check_batches(lambda: module, torch.zeros(1, 3, 64, 64), 1)
