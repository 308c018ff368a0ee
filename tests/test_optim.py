from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from bend_ray.optim import AdamW, Constant, Cosine, Optimizer, Schedule, Sgd, Training
from bend_ray.spec import variants

FACTORS = (0.0, 0.1, 1.0, 0.7, 0.7, 0.3, 0.05, 0.0)
SHAPES = ((4, 3), (5,), ())


def adamw(spec: AdamW) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(
        parameters, lr=spec.learning_rate, betas=spec.betas, weight_decay=spec.weight_decay
    )


def sgd(spec: Sgd) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(
        parameters,
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.nesterov and spec.momentum > 0,
    )


ADAMW = (
    AdamW(),
    AdamW(weight_decay=0.0),
    AdamW(learning_rate=0.1, weight_decay=0.3, betas=(0.5, 0.9)),
)
SGD = (
    Sgd(),
    Sgd(weight_decay=0.0, learning_rate=0.5),
    Sgd(nesterov=False, momentum=0.5, weight_decay=0.1),
    Sgd(momentum=0.0, weight_decay=0.1),
)
AGREES = [(spec, adamw(spec)) for spec in ADAMW] + [(spec, sgd(spec)) for spec in SGD]
SPECS = [spec for spec, _ in AGREES]


def start(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in SHAPES
    ]


def set_gradients(parameters: Sequence[Tensor], step: int) -> None:
    """Gradients of very different size, one of them zero now and then."""
    generator = torch.Generator().manual_seed(1000 + step)
    for index, parameter in enumerate(parameters):
        scale = 10.0 ** (index - 1) * float((step + index) % 4 != 0)
        parameter.grad = scale * torch.randn(
            parameter.shape, generator=generator, dtype=parameter.dtype
        )


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    np.testing.assert_allclose(
        actual.detach().numpy(), expected.detach().numpy(), rtol=tolerance, atol=tolerance
    )


def take_steps(
    spec: Any, parameters: list[Tensor], steps: Sequence[int], state: Any = None
) -> dict[str, list[Tensor]]:
    optimizer = spec.build(parameters)
    if state is not None:
        for name, tensors in optimizer.state().items():
            for mine, kept in zip(tensors, state[name], strict=True):
                mine.copy_(kept)
    for step in steps:
        set_gradients(parameters, step)
        optimizer.step(FACTORS[step])
    left: dict[str, list[Tensor]] = optimizer.state()
    return left


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(("spec", "reference"), AGREES, ids=[repr(spec) for spec in SPECS])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str
)
def test_a_training_equals_that_of_torch_optim(
    spec: Any,
    reference: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    expected, ours = start(dtype), start(dtype)
    optimizer = reference(expected)
    for step, factor in enumerate(FACTORS):
        set_gradients(expected, step)
        for group in optimizer.param_groups:
            group["lr"] = factor * spec.learning_rate
        optimizer.step()
    take_steps(spec, ours, range(len(FACTORS)))
    for mine, theirs, first in zip(ours, expected, start(dtype), strict=True):
        assert_close(mine, theirs, tolerance)
        assert float((mine - first).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_resumed_training_is_the_undisturbed_one(spec: Any) -> None:
    undisturbed, resumed = start(), start()
    take_steps(spec, undisturbed, range(8))
    # A state that is kept must not change under the training that goes on.
    state = copy.deepcopy(take_steps(spec, resumed, range(3)))
    take_steps(spec, resumed, range(3, 8), state)
    assert all(torch.equal(a, b) for a, b in zip(resumed, undisturbed, strict=True))


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_step_clears_the_gradients(spec: Any) -> None:
    parameters = start()
    take_steps(spec, parameters, range(1))
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_rows_of_one_tensor_are_trained_as_tensors_of_their_own(spec: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    together = torch.randn(5, 7, generator=generator, dtype=torch.float64).requires_grad_()
    apart = [row.detach().clone().requires_grad_() for row in together]
    one, many = spec.build([together]), [spec.build([row]) for row in apart]
    for factor in FACTORS:
        gradient = torch.randn(together.shape, generator=generator, dtype=together.dtype)
        together.grad = gradient.clone()
        one.step(factor)
        for row, row_gradient, optimizer in zip(apart, gradient, many, strict=True):
            row.grad = row_gradient.clone()
            optimizer.step(factor)
    assert_close(together, torch.stack(apart), 1e-13)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_parameters_stand_still_at_a_factor_of_zero(spec: Any) -> None:
    parameters = start()
    optimizer = spec.build(parameters)
    set_gradients(parameters, 1)
    optimizer.step(0.0)
    assert all(torch.equal(a, b) for a, b in zip(parameters, start(), strict=True))


def test_the_first_step_of_adamw_is_the_learning_rate_against_the_sign() -> None:
    # The bias-corrected moments of one gradient are itself and its square.
    parameter = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = AdamW(learning_rate=0.25, weight_decay=0.0).build([parameter])
    parameter.grad = torch.tensor([2.0, -1e3, 1e-2], dtype=torch.float64)
    optimizer.step(0.5)
    moved = torch.tensor([-0.125, 0.125, -0.125], dtype=torch.float64)
    assert_close(parameter, moved, 1e-5)


@given(
    warmup=st.floats(0.0, 1.0),
    final=st.floats(0.0, 1.0),
    progress=st.floats(0.0, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_cosine_rises_in_a_line_and_falls_in_half_a_cosine(
    warmup: float, final: float, progress: float
) -> None:
    factor = Cosine(warmup=warmup, final=final).factor(progress)
    if progress < warmup:
        assert factor == pytest.approx(progress / warmup)
    elif warmup < 0.999:
        share = (progress - warmup) / (1 - warmup)
        assert factor == pytest.approx(final + (1 - final) * math.cos(math.pi * share / 2) ** 2)
    assert 0.0 <= factor <= 1.0


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5])
def test_cosine_is_one_after_the_warm_up_and_final_at_the_end(warmup: float) -> None:
    schedule = Cosine(warmup=warmup, final=0.2)
    assert schedule.factor(warmup) == 1.0
    assert schedule.factor(1.0) == pytest.approx(0.2)
    falling = [schedule.factor(warmup + (1 - warmup) * i / 20) for i in range(21)]
    assert falling == sorted(falling, reverse=True)


def test_a_warm_up_to_the_end_never_falls() -> None:
    assert [Cosine(warmup=1.0).factor(p) for p in (0.0, 0.25, 1.0)] == [0.0, 0.25, 1.0]


def test_constant_is_one_throughout() -> None:
    assert {Constant().factor(p) for p in (0.0, 0.3, 1.0)} == {1.0}


def test_a_config_names_its_variant_by_kind() -> None:
    assert TypeAdapter(Optimizer).validate_python({"kind": "sgd"}) == Sgd()
    assert TypeAdapter(Schedule).validate_python({"kind": "constant"}) == Constant()
    assert variants(Optimizer) == (AdamW, Sgd)
    assert variants(Schedule) == (Cosine, Constant)


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        (AdamW, {"learning_rate": 0.0}),
        (AdamW, {"betas": (0.9, 1.0)}),
        (AdamW, {"weight_decay": -1e-3}),
        (Sgd, {"momentum": 1.0}),
        (Cosine, {"warmup": 1.5}),
        (Training, {"steps": -1}),
        (Training, {"ema_decay": 1.0}),
    ],
)
def test_numbers_that_cannot_train_are_refused(spec: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        spec(**values)
