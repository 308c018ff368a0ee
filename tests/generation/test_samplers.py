"""Samplers against closed forms.

For Gaussian data ``N(m, S^2)`` the best denoiser is known, and every sampler is then affine in
the noise it draws. Feeding unit vectors as noise gives the mean and the standard deviation of
its samples exactly, so that what is left is the error of the discretisation alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch

from bend_ray.generation.diffusion import (
    Ancestral,
    Ddim,
    Ddpm,
    Euler,
    FlowMatching,
    Heun,
    Predict,
    Process,
    Sampler,
    ddim,
)
from bend_ray.spec import variants

MEAN_Z = torch.tensor([0.0, 1.5, -2.0], dtype=torch.float64)
STD_Z = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
Draw = Callable[[Callable[[], torch.Tensor]], torch.Tensor]


def best_denoiser(process: Process) -> Predict:
    """What minimises the loss on ``N(MEAN_Z, STD_Z^2)``."""

    def predict(x: torch.Tensor, t: float) -> torch.Tensor:
        t_B = torch.full((len(x),), t)
        a, b = (c.double() for c in process.coefficients(t_B))
        surprise = (x - a * MEAN_Z) / (a**2 * STD_Z**2 + b**2)
        return process.target(MEAN_Z + a * STD_Z**2 * surprise, b * surprise, t_B)

    return predict


def moments(draw: Draw, num_noises: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the samples of a sampler that is affine in its noises."""
    drawn = 0

    def noise() -> torch.Tensor:
        nonlocal drawn
        unit = torch.zeros(num_noises + 1, len(MEAN_Z), dtype=torch.float64)
        unit[drawn] = 1.0
        drawn += 1
        return unit

    x = draw(noise)
    assert drawn == num_noises
    return x[-1], (x[:-1] - x[-1]).square().sum(dim=0).sqrt()


def stream(rows: int, seed: int = 0) -> Callable[[], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(rows, len(MEAN_Z), generator=generator, dtype=torch.float64)


def draw_ddim(process: Ddpm, steps: int, eta: float) -> Draw:
    predict = best_denoiser(process)
    return lambda noise: ddim(predict, process, noise, Ddim(steps=steps).times(process), eta)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["v", "eps"])
@pytest.mark.parametrize(
    ("steps", "eta", "tolerance"),
    [(50, 0.0, 0.06), (1000, 0.0, 0.005), (50, 1.0, 0.12), (1000, 1.0, 0.01)],
)
def test_ddim_draws_the_gaussian_it_was_trained_on(
    prediction: str, steps: int, eta: float, tolerance: float
) -> None:
    process = Ddpm.model_validate({"prediction": prediction})
    mean_Z, std_Z = moments(draw_ddim(process, steps, eta), steps if eta else 1)
    torch.testing.assert_close(mean_Z, MEAN_Z, rtol=0, atol=0.03)
    torch.testing.assert_close(std_Z, STD_Z, rtol=tolerance, atol=0)


def test_ddim_errs_by_half_with_twice_the_steps() -> None:
    errors = []
    for steps in (50, 100, 200):
        _, std_Z = moments(draw_ddim(Ddpm(), steps, 0.0), 1)
        errors.append((std_Z / STD_Z - 1).abs())
    for fewer, more in pairwise(errors):
        assert (fewer / more - 2).abs().max() < 0.3


def test_both_predictions_are_the_same_sampler() -> None:
    draws = [
        draw_ddim(process, 50, 0.5)(stream(4))
        for process in (Ddpm(prediction="v"), Ddpm(prediction="eps"))
    ]
    torch.testing.assert_close(draws[0], draws[1], rtol=1e-4, atol=1e-4)


def test_monte_carlo_agrees_with_the_exact_moments() -> None:
    draw = draw_ddim(Ddpm(), 20, 1.0)
    mean_Z, std_Z = moments(draw, 20)
    x_NZ = draw(stream(20_000))
    torch.testing.assert_close((x_NZ.mean(dim=0) - mean_Z) / std_Z, 0 * mean_Z, rtol=0, atol=0.03)
    torch.testing.assert_close(x_NZ.std(dim=0), std_Z, rtol=0.03, atol=0)


def test_ddim_without_eta_depends_on_the_first_noise_alone() -> None:
    process, sampler = Ddpm(), Ddim(steps=10, eta=0.0)
    first = stream(3)()
    noises = iter([first])
    once = ddim(
        best_denoiser(process), process, lambda: next(noises), Ddim(steps=10).times(process), 0.0
    )
    again = sampler.sample(best_denoiser(process), process, lambda: first)
    assert torch.equal(once, again)


def test_one_step_of_ddim_is_the_denoiser_s_guess() -> None:
    process = Ddpm()
    x, predict = stream(3)(), best_denoiser(process)
    a, b = (c.item() for c in process.coefficients(torch.tensor([0.999])))
    guess, _ = process.split(x, predict(x, 0.999), a, b)
    drawn = ddim(predict, process, lambda: x, [0.999], 0.0)
    torch.testing.assert_close(drawn, guess)


def ho_algorithm_2(predict_eps: Predict, process: Ddpm, noises: list[torch.Tensor]) -> torch.Tensor:
    """Ho et al. 2020 as printed, with the posterior variance (their second choice of sigma)."""
    betas = torch.linspace(
        process.beta_start, process.beta_end, process.timesteps, dtype=torch.float64
    )
    alpha_bar = (1 - betas).cumprod(0)
    x, *fresh = noises
    for t in reversed(range(process.timesteps)):
        eps = predict_eps(x, t / process.timesteps)
        x = (x - betas[t] / (1 - alpha_bar[t]).sqrt() * eps) / (1 - betas[t]).sqrt()
        if t:
            posterior_variance = betas[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
            x = x + posterior_variance.sqrt() * fresh[process.timesteps - 1 - t]
    return x


def test_ancestral_is_the_papers_chain_with_the_posterior_variance() -> None:
    process = Ddpm(timesteps=40, beta_start=1e-3, beta_end=0.3, prediction="eps")
    draw = stream(5)
    noises = [draw() for _ in range(40)]
    expected = ho_algorithm_2(best_denoiser(process), process, noises)
    fed = iter(noises)
    drawn = Ancestral().sample(best_denoiser(process), process, lambda: next(fed))
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-5)
    assert next(fed, None) is None


def test_each_ancestral_step_adds_the_posterior_variance() -> None:
    process = Ddpm(timesteps=3, beta_start=0.1, beta_end=0.5, prediction="eps")
    betas = [0.1, 0.3, 0.5]
    alpha_bar = [0.9, 0.9 * 0.7, 0.9 * 0.7 * 0.5]
    calls: list[torch.Tensor] = []
    noises = iter([torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, 1)])

    def says_nothing(x: torch.Tensor, t: float) -> torch.Tensor:
        calls.append(x)
        return torch.zeros_like(x)

    Ancestral().sample(says_nothing, process, lambda: next(noises))
    posterior_variance = betas[2] * (1 - alpha_bar[1]) / (1 - alpha_bar[2])
    assert calls[1].item() ** 2 == pytest.approx(posterior_variance, rel=1e-5)


def test_ancestral_is_ddim_with_all_steps_and_all_noise() -> None:
    process = Ddpm(timesteps=60)
    predict = best_denoiser(process)
    whole = Ancestral().sample(predict, process, stream(4))
    assert torch.equal(whole, Ddim(steps=60, eta=1.0).sample(predict, process, stream(4)))


def test_ddim_takes_no_more_steps_than_the_chain_has() -> None:
    process = Ddpm(timesteps=10)
    calls = 0

    def count(x: torch.Tensor, t: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(x)

    Ddim(steps=50).sample(count, process, stream(2))
    assert calls == 10


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (Euler(steps=50), 0.04),
        (Euler(steps=1000), 0.002),
        (Heun(steps=25), 0.001),
        (Heun(steps=500), 1e-5),
    ],
)
def test_flows_carry_noise_to_the_gaussian(sampler: Euler | Heun, tolerance: float) -> None:
    process = FlowMatching()
    draw = partial(sampler.sample, best_denoiser(process), process)
    mean_Z, std_Z = moments(draw, 1)
    torch.testing.assert_close(mean_Z, MEAN_Z, rtol=0, atol=1e-5)
    torch.testing.assert_close(std_Z, STD_Z, rtol=tolerance, atol=0)


@pytest.mark.parametrize(("sampler", "order"), [(Euler, 1), (Heun, 2)])
def test_doubling_the_steps_of_a_flow_shows_its_order(
    sampler: type[Euler | Heun], order: int
) -> None:
    errors, process = [], FlowMatching()
    for steps in (20, 40, 80):
        draw = partial(sampler(steps=steps).sample, best_denoiser(process), process)
        errors.append((moments(draw, 1)[1] / STD_Z - 1).abs())
    for fewer, more in pairwise(errors):
        # At least the order: where mean and noise are symmetric Heun gains one more.
        assert (fewer / more > 0.8 * 2**order).all()


def test_a_straight_flow_takes_one_step() -> None:
    target = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    start = stream(1)()

    def straight(x: torch.Tensor, t: float) -> torch.Tensor:
        return start - target

    for sampler in (Euler(steps=1), Heun(steps=1)):
        drawn = sampler.sample(straight, FlowMatching(), lambda: start)
        torch.testing.assert_close(drawn, target)


@pytest.mark.parametrize("sampler", [Ddim(eta=1.0), Ancestral(), Euler(), Heun()])
def test_denoisers_are_asked_at_times_they_were_trained_on(sampler: Sampler) -> None:
    process = sampler.process()
    asked: list[float] = []

    def listen(x: torch.Tensor, t: float) -> torch.Tensor:
        asked.append(t)
        return torch.zeros_like(x)

    drawn = sampler.sample(listen, process, stream(2))  # type: ignore[arg-type]
    assert drawn.shape == (2, 3)
    assert min(asked) >= 0
    assert list(dict.fromkeys(asked)) == sampler.times(process)  # type: ignore[arg-type]
    if isinstance(process, Ddpm):
        assert asked == sorted(set(asked), reverse=True)
        steps = torch.tensor(asked) * process.timesteps
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
        assert (asked[0], asked[-1]) == (pytest.approx(0.999), 0.0)
    else:
        assert asked[0] == 1.0


def test_every_sampler_names_the_process_it_walks_back() -> None:
    for sampler in variants(Sampler):
        assert sampler.process in variants(Process)  # type: ignore[attr-defined]
