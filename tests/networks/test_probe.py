"""Every network that a population cannot be made of is refused, in a line that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bend_ray.errors import DataError
from bend_ray.networks.probe import check_network

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
