"""Every network that a population cannot be made of is refused, in a line that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bend_ray.data.examples import Examples, Parts
from bend_ray.errors import DataError
from bend_ray.networks.probe import check_network, check_recipe
from bend_ray.networks.recipe import Recipe

ROWS, FEATURES, CLASSES = 5, 6, 3
INPUTS = torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(0))


def checked(build: Callable[[], Any], inputs: Any = INPUTS) -> None:
    check_network(build, inputs, CLASSES, "shop:net")


class Net(nn.Module):
    """A good network, to be spoilt."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class WithLogits(Net):
    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=self.layer(x), hidden=x)


class WithLogitsByName(Net):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.layer(x)}


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Linear(FEATURES, FEATURES)
        self.same = self.square

    def forward(self, x: Tensor) -> Any:
        return self.layer(self.same(self.square(x).relu()))


class TwoInputs(Net):
    def forward(self, numbers: Tensor, tokens: Tensor) -> Any:
        return self.layer(numbers) + tokens.sum(1, keepdim=True)


def frozen_below() -> nn.Module:
    below = nn.Linear(FEATURES, FEATURES).requires_grad_(False)
    return nn.Sequential(below, nn.BatchNorm1d(FEATURES), nn.Dropout(0.5), Net())


GOOD = [Net, WithLogits, WithLogitsByName, Tied, frozen_below]


@pytest.mark.parametrize("build", GOOD)
def test_a_network_that_can_be_trained_and_asked_passes(build: Callable[[], nn.Module]) -> None:
    state = torch.get_rng_state()
    checked(build)
    assert torch.equal(torch.get_rng_state(), state)


def test_several_inputs_are_given_by_the_names_of_parameters() -> None:
    tokens = torch.zeros(ROWS, 2, dtype=torch.int64)
    checked(TwoInputs, {"numbers": INPUTS, "tokens": tokens})
    with pytest.raises(DataError, match=r"takes by name numbers \(4, 6\) float32, words \(4, 2\)"):
        checked(TwoInputs, {"numbers": INPUTS, "words": tokens})


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class Spoilt(Net):
    """A network of which one thing is wrong."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.calls = what, 0
        self.kept = torch.randn(FEATURES)
        self.register_buffer("seen", torch.zeros(1))
        self.own = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x) * self.own
        self.calls += 1
        changed = {
            "several": (y, x),
            "columns": y[:, :2],
            "row": y[0],
            "integers": y.argmax(1, keepdim=True).expand(-1, CLASSES),
            "nan": y * float("nan"),
            "random": y + torch.randn(1),
            "count": y + self.calls,
            "company": y - y.mean(0),
            "unregistered": self.layer(x * self.kept),
            "detached": y.detach(),
        }
        if self.what == "writes":
            self.seen += 1
        if self.what == "raises":
            raise KeyError("a\nb")
        return changed.get(self.what, y)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: 3, "expected a function that returns a torch.nn.Module, got a int"),
        (nn.Identity, "expected a network with parameters, got none"),
        (lambda net=Net(): net, "expected a new network at every call"),  # noqa: B008
        (lambda: nn.Sequential(Net(), nn.Softmax(-1)), "expected logits, got probabilities"),
        (Lazy, "expected parameters of known shapes, got lazy ones"),
        (lambda: Net().double(), "got torch.float64 for layer.weight; call .float"),
        (lambda: Net().requires_grad_(False), "expected parameters to train, got frozen ones"),
        (lambda: Spoilt("several"), "expected logits, or an output with .logits, got a tuple"),
        (lambda: Spoilt("columns"), r"shape \(batch, 3\), one a class, got \(4, 2\)"),
        (lambda: Spoilt("row"), r"shape \(batch, 3\), one a class, got \(3,\)"),
        (lambda: Spoilt("integers"), "expected finite logits"),
        (lambda: Spoilt("nan"), "expected finite logits"),
        (lambda: Spoilt("random"), "expected the same answer twice"),
        (lambda: Spoilt("count"), "expected the same answer twice"),
        (lambda: Spoilt("company"), "depends on its example alone"),
        (lambda: Spoilt("writes"), "expected evaluation to change nothing, got another seen"),
        (lambda: Spoilt("unregistered"), "register tensors as buffers"),
        (
            lambda: Spoilt("detached"),
            "got RuntimeError: element 0 of tensors does not req",
        ),
        (lambda: Spoilt("raises"), r"float32, got KeyError: .*test_probe.py, line"),
    ],
)
def test_another_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        checked(build)
    assert str(refused.value).startswith("shop:net: ")
    assert len(str(refused.value).splitlines()) == 1
    assert torch.is_grad_enabled()


def part(inputs: Tensor) -> Parts:
    train = Examples(inputs, torch.arange(len(inputs)) % CLASSES)
    return Parts(train, train, ("a", "b", "c"), None)


PIXELS = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
ALL = {
    "mixup": 0.2,
    "cutmix": 1.0,
    "augmentation": {"kind": "random_views", "policy": "rand_augment", "erasing": 0.5},
}


@pytest.mark.parametrize("update", [{}, ALL, {"class_weights": [1, 2, 3]}, {"epochs": 0.5}])
def test_a_recipe_that_fits_the_data_passes(update: dict[str, Any]) -> None:
    check_recipe(Recipe.model_validate({"batch_size": 2, **update}), part(PIXELS))


@pytest.mark.parametrize(
    ("update", "inputs", "message"),
    [
        ({"epochs": 0.01}, PIXELS, r"epochs: expected a step at least, of the 1 of a pass"),
        ({"class_weights": [1.0]}, PIXELS, r"class_weights: expected 3, one a class, got 1"),
        ({"cutmix": 1.0}, INPUTS, r"images for cutmix, got torch.float32 of shape \(6,\)"),
        ({"mixup": 1.0}, PIXELS[:, 0, 0].long(), r"expected floats or pixels for seeds.recipe.mix"),
        (
            {"augmentation": {"kind": "random_views", "policy": "rand_augment"}},
            INPUTS,
            r"expected images of uint8 pixels",
        ),
        (
            {"augmentation": {"kind": "random_views", "erasing": 1}},
            {"a": PIXELS, "b": PIXELS},
            r"expected one input, images",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    update: dict[str, Any], inputs: Any, message: str
) -> None:
    data = part(inputs) if isinstance(inputs, Tensor) else part(PIXELS)
    if isinstance(inputs, dict):
        data = replace(data, train=Examples(inputs, data.train.labels_N))
    with pytest.raises(DataError, match=message):
        check_recipe(Recipe.model_validate(update), data)


@pytest.mark.parametrize(
    "update",
    [
        *({"gradient_clip": value} for value in (0.0, -1.0, float("nan"), float("inf"))),
        *({"epochs": 0}, {"ema_decay": 1.0}, {"mixup": float("nan")}, {"precision": "fp16"}),
        *({"class_weights": []}, {"class_weights": [0.0, 1.0]}, {"class_weights": "rare"}),
    ],
)
def test_values_that_cannot_train_are_refused(update: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(update))):
        Recipe.model_validate(update)
