"""What a training keeps, of losses that can be followed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bend_ray.generation.training import LOOKED_AT, AveragedSteps, HeldOut
from bend_ray.optim import Constant, Sgd, Training

PLAIN = Training(
    steps=20,
    optimizer=Sgd(learning_rate=0.25, momentum=0.0, weight_decay=0.0),
    schedule=Constant(),
    ema_decay=0.0,
    gradient_clip=1e9,
    patience=2,
)


class Distance(nn.Module):
    """Half the square of the way from a number to those of a batch, and noise that changes none."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.tensor(start))

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
        return {"noise": torch.randn(shape, generator=generator)}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        assert batch["noise"].shape == batch["features"].shape
        return (self.place - batch["features"]).square().mean() / 2


def followed(start: float, goal: float, unseen: float, steps: int) -> tuple[Distance, HeldOut]:
    """A training towards ``goal``, looked at from ``unseen`` after each step."""
    objective = Distance(start)
    averaged = AveragedSteps(objective, PLAIN)
    rows = {"features": torch.full((3, 1), unseen), "condition": torch.zeros(3, dtype=torch.int64)}
    held_out = HeldOut(objective, averaged, rows, torch.Generator().manual_seed(0))
    for step in range(steps):
        held_out.look(step)
        if held_out.is_over:
            break
        batch = {"features": torch.full((4, 1), goal)}
        objective(batch | objective.draw((4, 1), torch.Generator())).backward()
        averaged.step(step)
    held_out.settle()
    averaged.settle()
    return objective, held_out


def test_a_training_that_leaves_held_out_members_behind_stops_and_keeps_its_start() -> None:
    objective, held_out = followed(start=1.0, goal=5.0, unseen=1.0, steps=20)
    assert objective.place.item() == 1.0
    # The way left shrinks by a quarter a step: 4, 3, 2.25; the loss rises twice.
    losses = [loss for _, loss in held_out.curve]
    assert losses == pytest.approx([0.0, 0.5, 1.75**2 / 2])
    assert [step for step, _ in held_out.curve] == [0, 1, 2]


def test_what_is_kept_is_where_held_out_members_lost_least() -> None:
    objective, held_out = followed(start=1.0, goal=5.0, unseen=3.0, steps=20)
    places = [5 - 4 * 0.75**step for step, _ in held_out.curve]
    best = min(range(len(places)), key=lambda step: abs(places[step] - 3.0))
    assert objective.place.item() == pytest.approx(places[best])
    assert len(places) == best + 1 + 2


@pytest.mark.parametrize(
    ("losses", "is_over"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 2.0], False),
        ([1.0, 2.0, 3.0], True),
        ([1.0, 2.0, 1.5], False),  # worse than the start, but on its way back
        ([1.0, 3.0, 2.0, 1.5, 0.5], False),
        ([1.0, 3.0, 2.0, 2.1, 2.2], True),
        ([1.0, 1.0, 1.0], False),
    ],
)
def test_a_training_is_over_once_the_loss_has_risen_as_often_as_there_is_patience(
    losses: list[float], is_over: bool
) -> None:
    objective = Distance(0.0)
    rows = {"features": torch.zeros(5, 2)}
    held_out = HeldOut(objective, AveragedSteps(objective, PLAIN), rows, torch.Generator())
    held_out.curve = list(enumerate(losses))
    assert held_out.is_over is is_over


def test_a_training_that_goes_on_gaining_is_not_stopped() -> None:
    objective, held_out = followed(start=1.0, goal=5.0, unseen=5.0, steps=20)
    assert len(held_out.curve) == 20
    assert objective.place.item() == pytest.approx(5 - 4 * 0.75**19)


def test_a_step_is_looked_at_once_and_always_with_the_same_noise() -> None:
    class Noisy(Distance):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            assert len(batch["features"]) >= LOOKED_AT
            return self.place + batch["noise"].mean()

    objective = Noisy(1.0)
    averaged = AveragedSteps(objective, PLAIN)
    rows = {"features": torch.zeros(5, 2)}
    held_out = HeldOut(objective, averaged, rows, torch.Generator().manual_seed(0))
    for step in (0, 0, 1):
        held_out.look(step)
    (first, loss), (second, again) = held_out.curve
    assert (first, second, loss) == (0, 1, again)


def test_looking_changes_no_weight_and_leaves_no_gradient() -> None:
    objective = Distance(2.0)
    averaged = AveragedSteps(objective, PLAIN)
    rows = {"features": torch.zeros(5, 2)}
    HeldOut(objective, averaged, rows, torch.Generator()).look(0)
    assert objective.place.item() == 2.0
    assert objective.place.grad is None
