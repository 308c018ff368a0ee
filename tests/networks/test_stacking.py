from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from bend_ray.networks.stacking import Form, Stack, form_for, is_random, predict_logits
from bend_ray.parameters.layout import ParameterLayout

SHAPE = (2, 4, 4)
NUM_MODELS, NUM_IMAGES, NUM_CLASSES = 5, 11, 3


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, NUM_CLASSES))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, NUM_CLASSES)
    )


def dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, NUM_CLASSES))


BUILDS = [mlp, convnet, dropout]


def population(module: nn.Module) -> tuple[ParameterLayout, Tensor]:
    """Models of which no two are alike; running variances are positive."""
    layout = ParameterLayout.of(module)
    generator = torch.Generator().manual_seed(0)
    return layout, 0.1 + torch.rand(NUM_MODELS, layout.size, generator=generator)


def pictures(*lead: int) -> Tensor:
    return torch.randn(*lead, *SHAPE, generator=torch.Generator().manual_seed(1))


def one_by_one(module: nn.Module, theta_KP: Tensor, images_KBCHW: Tensor) -> Tensor:
    layout = ParameterLayout.of(module)
    logits = []
    for theta_P, images in zip(theta_KP, images_KBCHW, strict=True):
        module.load_state_dict(layout.unflatten(theta_P), strict=False)
        with torch.no_grad():
            logits.append(module.eval()(images))
    return torch.stack(logits)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", BUILDS)
def test_stacked_logits_are_those_of_each_model_run_alone(build: Callable[[], nn.Module]) -> None:
    layout, theta_KP = population(build())
    stack, images = Stack(build(), layout).eval(), pictures(NUM_IMAGES)
    logits_KBC = stack(theta_KP, images)
    assert logits_KBC.shape == (NUM_MODELS, NUM_IMAGES, NUM_CLASSES)
    repeated = images.expand(NUM_MODELS, *images.shape)
    assert_close(logits_KBC, one_by_one(build(), theta_KP, repeated))


@pytest.mark.parametrize("build", BUILDS)
def test_each_model_may_see_images_of_its_own(build: Callable[[], nn.Module]) -> None:
    layout, theta_KP = population(build())
    images = pictures(NUM_MODELS, NUM_IMAGES)
    logits_KBC = Stack(build(), layout).eval()(theta_KP, images, shared=False)
    assert_close(logits_KBC, one_by_one(build(), theta_KP, images))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("max_elements", [1, 32, 100, 32 * NUM_MODELS * 2, 2**24])
def test_logits_in_pieces_are_those_in_one(
    build: Callable[[], nn.Module], max_elements: int
) -> None:
    layout, theta_KP = population(build())
    stack, images = Stack(build(), layout), pictures(NUM_IMAGES)
    logits_KNC = predict_logits(stack, theta_KP, images, max_elements=max_elements)
    assert_close(logits_KNC, stack.eval()(theta_KP, images))


def test_pieces_stay_below_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, theta_KP = population(mlp())
    stack, images = Stack(mlp(), layout), pictures(NUM_IMAGES)
    sizes: list[tuple[int, int]] = []
    forward = stack.forward

    def spy(theta_KP: Tensor, images: Tensor) -> Tensor:
        sizes.append((len(theta_KP), len(images)))
        return forward(theta_KP, images)

    monkeypatch.setattr(stack, "forward", spy)
    for bound in (3 * 32, 32 * NUM_MODELS * 4):
        sizes.clear()
        predict_logits(stack, theta_KP, images, max_elements=bound)
        assert all(models * batch * 32 <= bound for models, batch in sizes)
        assert sum(models * batch for models, batch in sizes) == NUM_MODELS * NUM_IMAGES


def test_predictions_are_made_in_evaluation_mode_and_without_gradients() -> None:
    layout, theta_KP = population(dropout())
    stack, images = Stack(dropout(), layout).train(), pictures(NUM_IMAGES)
    logits_KNC = predict_logits(stack, theta_KP.requires_grad_(), images)
    assert not logits_KNC.requires_grad
    assert torch.equal(logits_KNC, predict_logits(stack, theta_KP, images))


def test_dropout_differs_between_models_while_they_train() -> None:
    layout, theta_KP = population(dropout())
    stack = Stack(dropout(), layout).train()
    logits_KBC = stack(theta_KP[:1].expand(NUM_MODELS, -1), pictures(NUM_IMAGES))
    assert not torch.allclose(logits_KBC[0], logits_KBC[1])


def test_a_model_gets_the_gradient_of_its_own_logits() -> None:
    layout, theta_KP = population(mlp())
    stack, images = Stack(mlp(), layout), pictures(NUM_IMAGES)
    together = theta_KP.clone().requires_grad_()
    stack(together, images).square().sum().backward()
    assert together.grad is not None
    for theta_P, gradient_P in zip(theta_KP, together.grad, strict=True):
        alone = theta_P[None].clone().requires_grad_()
        stack(alone, images).square().sum().backward()
        assert alone.grad is not None
        np.testing.assert_allclose(gradient_P, alone.grad[0], rtol=1e-4, atol=1e-4)
    assert all(parameter.grad is None for parameter in stack.parameters())


@pytest.mark.parametrize("build", [mlp, convnet])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_both_forms_give_the_same_logits_gradients_and_statistics(
    build: Callable[[], nn.Module], training: bool, shared: bool
) -> None:
    layout, theta_KP = population(build())
    images = pictures(NUM_IMAGES) if shared else pictures(NUM_MODELS, NUM_IMAGES)
    results = []
    forms: tuple[Form, ...] = ("stacked", "loop")
    for form in forms:
        trained = theta_KP[:, : layout.num_trainable].clone().requires_grad_()
        buffers = theta_KP[:, layout.num_trainable :].clone()
        stack = Stack(build(), layout, form).train(training)
        logits_KBC = stack(trained, images, buffers_KQ=buffers, shared=shared)
        logits_KBC.square().sum().backward()
        assert trained.grad is not None
        results.append((logits_KBC.detach(), trained.grad, buffers))
    for stacked, looped in zip(*results, strict=True):
        np.testing.assert_allclose(stacked, looped, rtol=1e-4, atol=1e-4)
    kept = theta_KP[:, layout.num_trainable :]
    assert torch.equal(results[0][2], kept) != (training and build is convnet)


@pytest.mark.parametrize("form", ["stacked", "loop"])
@pytest.mark.parametrize("build", [mlp, convnet])
def test_buffers_given_apart_are_those_of_the_row(
    build: Callable[[], nn.Module], form: Form
) -> None:
    layout, theta_KP = population(build())
    stack, images = Stack(build(), layout, form).eval(), pictures(NUM_IMAGES)
    trained, buffers = theta_KP.tensor_split([layout.num_trainable], dim=1)
    assert torch.equal(stack(trained, images, buffers_KQ=buffers), stack(theta_KP, images))


class Asking(nn.Module):
    """Dense layers on vectors; its code may ask for a number, which no stacked tensor has."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.asks, self.layer = asks, nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        return -y if self.asks and y.sum().item() > 0 else y


def test_a_gpu_stacks_and_a_cpu_stacks_dense_layers() -> None:
    assert form_for(mlp(), "cpu") == "stacked"
    assert form_for(convnet(), "cpu") == "loop"
    assert form_for(convnet(), "cuda") == "stacked"
    assert form_for(convnet(), "cuda:1") == "stacked"
    vectors = torch.zeros(3, 4)
    assert form_for(Asking(False), "cpu", vectors) == "stacked"
    assert form_for(nn.Sequential(Asking(False), nn.GELU()), "cpu", vectors) == "stacked"
    assert (
        form_for(Asking(True), "cpu", vectors) == form_for(Asking(True), "cuda", vectors) == "loop"
    )


def test_models_with_dropout_run_one_after_another_everywhere() -> None:
    assert form_for(dropout(), "cpu") == form_for(dropout(), "cuda") == "loop"
    assert is_random(StochasticDepth(0.1, "row"))
    assert not is_random(StochasticDepth(0.0, "row"))
    assert not is_random(nn.Dropout(0.0))


def test_dropout_is_drawn_from_each_models_own_seed() -> None:
    layout, theta_KP = population(dropout())
    stack, images = Stack(dropout(), layout, "loop").train(), pictures(NUM_IMAGES)
    before = torch.random.get_rng_state()
    together = stack(theta_KP, images, seeds_K=range(NUM_MODELS))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(stack(theta_KP[3:4], images, seeds_K=[3])[0], together[3])
    assert not torch.equal(stack(theta_KP[3:4], images, seeds_K=[4])[0], together[3])
