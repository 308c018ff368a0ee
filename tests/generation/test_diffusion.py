from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from bend_ray.generation.diffusion import Ddpm, FlowMatching, Process, gaussian_prediction

PREDICTIONS = ("v", "eps")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_times(process: Ddpm) -> torch.Tensor:
    return torch.arange(process.timesteps) / process.timesteps


def test_alpha_bars_are_the_running_product_of_what_each_step_keeps() -> None:
    process = Ddpm(timesteps=7, beta_start=0.01, beta_end=0.3)
    kept, expected = 1.0, []
    for step in range(7):
        kept *= 1.0 - (0.01 + (0.3 - 0.01) * step / 6)
        expected.append(kept)
    torch.testing.assert_close(process.alpha_bars(), torch.tensor(expected, dtype=torch.float64))


def test_the_default_chain_ends_in_noise() -> None:
    alpha_bar = Ddpm().alpha_bars()
    assert len(alpha_bar) == 1000
    assert alpha_bar[0].item() == pytest.approx(1 - 1e-4)
    assert alpha_bar[-1].item() < 1e-4


@pytest.mark.parametrize("timesteps", [1, 3, 1000, 4001])
def test_the_variance_is_kept_at_every_step(timesteps: int) -> None:
    process = Ddpm(timesteps=timesteps)
    a, b = process.coefficients(all_times(process))
    assert a.shape == b.shape == (timesteps, 1)
    torch.testing.assert_close(a**2 + b**2, torch.ones(timesteps, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("timesteps", [3, 1000, 4001])
def test_each_time_finds_its_own_step(timesteps: int) -> None:
    process = Ddpm(timesteps=timesteps)
    a, b = process.coefficients(all_times(process))
    alpha_bar = process.alpha_bars()[:, None]
    torch.testing.assert_close(a.double(), alpha_bar.sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(b.double(), (1 - alpha_bar).sqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_splitting_the_target_gives_data_and_noise_back(prediction: str) -> None:
    process = Ddpm.model_validate({"prediction": prediction})
    t_B = all_times(process)
    x0, eps = torch.randn(2, 1000, 3, generator=generator())
    a, b = process.coefficients(t_B)
    x_t = a * x0 + b * eps
    found_x0, found_eps = process.split(x_t, process.target(x0, eps, t_B), a, b)
    torch.testing.assert_close(found_eps, eps, rtol=1e-5, atol=1e-5)
    # At the end of the chain a is 0.006: an eps-prediction's guess of the data divides by it.
    torch.testing.assert_close(a * found_x0, a * x0, rtol=1e-5, atol=1e-5)


def test_the_velocity_of_a_unit_gaussian_is_zero_on_average() -> None:
    process = Ddpm()
    x0, eps = torch.randn(2, 20_000, 1, generator=generator(), dtype=torch.float64)
    t_B = torch.full((20_000,), 0.3)
    a, b = process.coefficients(t_B)
    x_t, v = a * x0 + b * eps, process.target(x0, eps, t_B)
    slope = (x_t * v).sum() / x_t.square().sum()
    assert abs(slope.item()) < 0.03


def test_times_of_the_chain_are_its_steps_each_as_often() -> None:
    times = Ddpm(timesteps=4).draw_times(4000, generator())
    values, counts = times.unique(return_counts=True)
    assert values.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert counts.min() > 900


@pytest.mark.parametrize("process", [Ddpm(), FlowMatching()])
def test_times_are_reproducible_and_below_one(process: Process) -> None:
    times = process.draw_times(1000, generator(3))
    assert torch.equal(times, process.draw_times(1000, generator(3)))
    assert not torch.equal(times, process.draw_times(1000, generator(4)))
    assert times.shape == (1000,)
    assert 0 <= times.min() < times.max() < 1


def test_a_flow_is_the_straight_line_from_data_to_noise() -> None:
    process = FlowMatching()
    x0, eps = torch.randn(2, 5, 3, generator=generator())
    t_B = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    a, b = process.coefficients(t_B)
    torch.testing.assert_close(a + b, torch.ones(5, 1))
    x_t = a * x0 + b * eps
    velocity = process.target(x0, eps, t_B)
    torch.testing.assert_close(x_t[0], x0[0])
    torch.testing.assert_close(x_t[-1], eps[-1])
    torch.testing.assert_close(x_t - t_B[:, None] * velocity, x0)
    torch.testing.assert_close(x_t + (1 - t_B[:, None]) * velocity, eps)


def test_a_process_is_found_by_its_kind() -> None:
    adapter: TypeAdapter[Process] = TypeAdapter(Process)
    assert adapter.validate_python({"kind": "ddpm", "timesteps": 10}) == Ddpm(timesteps=10)
    assert adapter.validate_python({"kind": "flow"}) == FlowMatching()


@pytest.mark.parametrize(
    "wrong",
    [
        {"timesteps": 0},
        {"beta_start": 0.0},
        {"beta_end": 1.0},
        {"beta_end": math.nan},
        {"prediction": "x0"},
        {"steps": 10},
    ],
)
def test_a_chain_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Ddpm.model_validate(wrong)


@pytest.mark.parametrize("process", [Ddpm(), Ddpm(prediction="eps"), FlowMatching()])
@pytest.mark.parametrize("t", [0.02, 0.5, 0.97])
def test_the_exact_denoiser_of_a_gaussian_is_the_regression_on_the_noisy_latent(
    process: Process, t: float
) -> None:
    x0, eps = torch.randn(2, 200_000, 1, generator=generator()).double()
    t_B = torch.full((len(x0),), t)
    a, b = process.coefficients(t_B)
    x_t, target = a * x0 + b * eps, process.target(x0, eps, t_B)
    slope = (x_t * target).mean() / x_t.square().mean()
    told = gaussian_prediction(process, x_t, t_B)
    torch.testing.assert_close(told, slope * x_t, atol=0.03, rtol=0)


def test_the_velocity_of_a_unit_gaussian_is_nothing() -> None:
    x_t = torch.randn(5, 3, generator=generator())
    told = gaussian_prediction(Ddpm(), x_t, torch.linspace(0, 0.99, 5))
    torch.testing.assert_close(told, torch.zeros(5, 3))
