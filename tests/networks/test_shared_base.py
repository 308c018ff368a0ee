"""Models that own a part of their parameters and share the rest, against whole models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

from bend_ray.data.examples import Examples
from bend_ray.networks.architectures import ConvNet
from bend_ray.networks.batchnorm import recalibrate_batchnorm
from bend_ray.networks.fitting import fit
from bend_ray.networks.recipe import Recipe, Stretch
from bend_ray.networks.stacking import Form, Stack
from bend_ray.optim import Sgd
from bend_ray.parameters.layout import ParameterLayout

NUM_MODELS, NUM_IMAGES, NUM_CLASSES = 3, 12, 3
# One norm whole, one without its statistics, and the head.
SUBSET = ("block0.norm.*", "block1.norm.weight", "head.*")
RECIPE = Recipe(epochs=3, batch_size=4, optimizer=Sgd(learning_rate=0.1))
STRETCH = Stretch(start=0.0, epochs=3.0)


def build() -> nn.Module:
    return ConvNet(channels=(4, 5)).build((1, 8, 8), NUM_CLASSES)


WHOLE = ParameterLayout.of(build())
OWN = ParameterLayout.of(build(), SUBSET)
OWN_NAMES = {entry.name for entry in OWN.entries}


def root() -> Tensor:
    return 0.1 + torch.rand(WHOLE.size, generator=torch.Generator().manual_seed(0))


def base() -> dict[str, Tensor]:
    state = WHOLE.unflatten(root())
    return {name: tensor for name, tensor in state.items() if name not in OWN_NAMES}


def members() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 0.1 + torch.rand(NUM_MODELS, OWN.size, generator=generator)


def whole(theta_KP: Tensor) -> Tensor:
    """The same models, each with the base written out."""
    states = [base() | OWN.unflatten(theta_P) for theta_P in theta_KP]
    return torch.stack([WHOLE.flatten(state) for state in states])


def images() -> Examples:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (NUM_IMAGES, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Examples(pixels, torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=generator))


def normalise(pixels: Tensor) -> Tensor:
    return pixels.float() / 128 - 1


@pytest.mark.parametrize("form", ["stacked", "loop"])
def test_answers_are_those_of_the_whole_models(form: Form) -> None:
    inputs = normalise(images().inputs)
    answers = Stack(build(), OWN, form, base()).eval()(members(), inputs)
    expected = Stack(build(), WHOLE, form).eval()(whole(members()), inputs)
    torch.testing.assert_close(answers, expected)


def test_layers_below_the_first_own_one_are_computed_once() -> None:
    seen: dict[str, bool] = {}
    module = build()
    for name, layer in module.named_modules():
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: is_batchedtensor(inputs[0])})
        )
    own = ParameterLayout.of(module, ("block1.norm.*", "head.*"))
    shared = {
        name: tensor
        for name, tensor in WHOLE.unflatten(root()).items()
        if name not in {entry.name for entry in own.entries}
    }
    stack = Stack(module, own, "loop", shared).eval()
    stack(torch.rand(NUM_MODELS, own.size), normalise(images().inputs))
    assert not seen["block0.conv"]
    assert not seen["block1.norm"]
    assert seen["block1.relu"]
    assert seen["head"]


def fine_tuned_alone(theta_P: Tensor, generator: torch.Generator) -> Tensor:
    """With torch's own optimizer: the rest frozen, norms with the base's statistics in eval."""
    module = build()
    module.load_state_dict(WHOLE.unflatten(whole(theta_P[None])[0]), strict=False)
    trained = [p for name, p in module.named_parameters() if name in OWN_NAMES]
    optimizer = torch.optim.SGD(
        trained, RECIPE.optimizer.learning_rate, momentum=0.9, nesterov=True
    )
    data = images()
    steps = RECIPE.num_steps(STRETCH.epochs, NUM_IMAGES)
    order = [
        batch
        for _ in range(3)
        for batch in torch.randperm(NUM_IMAGES, generator=generator).split(RECIPE.batch_size)
    ]
    module.train()
    module.block1.norm.eval()
    for step, batch in enumerate(order[:steps]):
        for group in optimizer.param_groups:
            group["lr"] = RECIPE.optimizer.learning_rate * RECIPE.schedule.factor(step / steps)
        logits = module(normalise(data.inputs[batch]))
        loss = nn.functional.cross_entropy(logits, data.labels_N[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return WHOLE.flatten(module.state_dict())


@pytest.mark.trains
@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("form", ["stacked", "loop"])
def test_fine_tuning_moves_what_is_own_and_nothing_else(form: Form) -> None:
    recipe = RECIPE.model_copy(update={"optimizer": Sgd(learning_rate=0.1, weight_decay=0.0)})
    generators = [torch.Generator().manual_seed(seed) for seed in range(NUM_MODELS)]
    shared = base()
    kept = {name: tensor.clone() for name, tensor in shared.items()}
    stack = Stack(build(), OWN, form, shared)
    theta_KP = fit(stack, members(), images(), normalise, recipe, STRETCH, generators)[-1]
    for name, tensor in shared.items():
        assert torch.equal(tensor, kept[name]), name
    generators = [torch.Generator().manual_seed(seed) for seed in range(NUM_MODELS)]
    alone = [
        fine_tuned_alone(theta_P, generator)
        for theta_P, generator in zip(members(), generators, strict=True)
    ]
    torch.testing.assert_close(whole(theta_KP), torch.stack(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(theta_KP, members())


def test_only_own_statistics_are_recalibrated() -> None:
    stack = Stack(build(), OWN, "loop", base())
    before = members()
    after = recalibrate_batchnorm(stack, before, normalise(images().inputs))
    moved = OWN.unflatten((after != before).float())
    assert {name for name, part in moved.items() if part.any()} == {
        "block0.norm.running_mean",
        "block0.norm.running_var",
    }
