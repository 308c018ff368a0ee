from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bend_ray.networks.inference import Inference, halve
from bend_ray.networks.stacking import Form, Stack, predict_logits
from bend_ray.parameters.layout import ParameterLayout


class Branching(nn.Module):
    """Convolutions before norms: two that can take the norm over, and three that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.pool = nn.MaxPool2d(2)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.plain_norm = nn.BatchNorm2d(4, affine=False, eps=0.1)
        self.branched, self.branched_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.tied, self.tied_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.tied.weight = self.branched.weight

    def forward(self, images: Tensor) -> Tensor:
        values = self.plain_norm(self.grouped(self.pool(self.first(images).relu())))
        split = self.branched(values)
        values = self.branched_norm(split) + split
        values = self.twice_norm(self.twice(self.twice(values)))
        return self.tied_norm(self.tied(values)).flatten(1)


class Unfollowed(nn.Module):
    """What it does depends on the images, which no tracer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))

    def forward(self, images: Tensor) -> Tensor:
        values: Tensor = self.layers(images).flatten(1)
        return values if images.sum() > 0 else -values


def random_state(layout: ParameterLayout, models: int) -> Tensor:
    return 0.1 + torch.rand(models, layout.size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("form", "build", "folds"),
    [("stacked", Branching, 2), ("loop", Branching, 2), ("loop", Unfollowed, 0)],
)
def test_a_program_answers_as_its_module(form: Form, build: type[nn.Module], folds: int) -> None:
    module = build().eval()
    assert len(Inference(module)._folds) == folds
    layout = ParameterLayout.of(module)
    theta_KP, images = random_state(layout, 3), torch.rand(5, 2, 7, 7)
    stack = Stack(module, layout, form)
    expected = stack.eval()(theta_KP, images)
    torch.testing.assert_close(predict_logits(stack, theta_KP, images), expected)
    # As before: with a norm to train, and by whoever else holds the module.
    assert torch.equal(stack(theta_KP, images), expected)


@pytest.mark.parametrize(
    ("own", "folded"), [("first.1.weight", {"grouped"}), ("first.0.*", {"first.0", "grouped"})]
)
def test_a_shared_convolution_takes_over_shared_norms_alone(own: str, folded: set[str]) -> None:
    module = Branching().eval()
    layout, whole = ParameterLayout.of(module, [own]), ParameterLayout.of(module)
    base = whole.unflatten(random_state(whole, 1)[0])
    for entry in layout.entries:
        del base[entry.name]
    assert {fold.conv for fold in Inference(module, base)._folds} == folded
    stack = Stack(module, layout, "loop", base)
    theta_KP, images = random_state(layout, 3), torch.rand(5, 2, 7, 7)
    expected = stack.eval()(theta_KP, images)
    torch.testing.assert_close(predict_logits(stack, theta_KP, images), expected)


def test_halves_are_those_of_max_pooling() -> None:
    values = torch.randn(2, 3, 7, 6)
    values[0, 0, 0, 0] = torch.nan
    expected = nn.MaxPool2d(2)(values)
    torch.testing.assert_close(halve(values), expected, rtol=0, atol=0, equal_nan=True)
