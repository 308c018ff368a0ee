"""Samplers: noise in, latents out. The functions carry the papers' names and symbols.

``times`` fall from noise to data; a spec's own are the only ones its function asks at.
``predict(x, t)`` is the denoiser with its conditions bound, at a time that all rows share;
``noise()`` draws a fresh ``(N, Z)`` unit Gaussian in which every row has a stream of its own, so
that a model does not depend on which others are drawn with it. To add a sampler: one function, one
spec with the times at which it asks, and its name in the union.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from bend_ray.generation.diffusion import Ddpm, FlowMatching
from bend_ray.optim import Fraction
from bend_ray.process.lazy import torch
from bend_ray.spec import Spec

Predict = Callable[["torch.Tensor", float], "torch.Tensor"]
Noise = Callable[[], "torch.Tensor"]


def ddim(
    predict: Predict, process: Ddpm, noise: Noise, times: Sequence[float], eta: float
) -> torch.Tensor:
    """Denoising diffusion implicit sampling (Song et al. 2021, arXiv 2010.02502, equation 12).

    ``eta=0`` is deterministic given the first noise; ``eta=1`` with all times is ancestral
    sampling (Ho et al. 2020, algorithm 2, with the posterior variance).
    """
    chain = [round(t * process.timesteps) for t in times]
    alpha_bar = [*process.alpha_bars()[chain].tolist(), 1.0]
    a_S1, b_S1 = process.coefficients(torch.tensor(times))
    x = noise()
    for t, a, b, (now, before) in zip(
        times, a_S1.flatten().tolist(), b_S1.flatten().tolist(), pairwise(alpha_bar), strict=True
    ):
        x0, eps = process.split(x, predict(x, t), a, b)
        sigma = eta * ((1 - before) / (1 - now) * (1 - now / before)) ** 0.5
        x = before**0.5 * x0 + (1 - before - sigma**2) ** 0.5 * eps
        if sigma > 0:
            x = x + sigma * noise()
    return x


def euler(predict: Predict, noise: Noise, times: Sequence[float]) -> torch.Tensor:
    """Euler's method along the flow, to t = 0."""
    x = noise()
    for t, t_next in pairwise([*times, 0.0]):
        x = x + (t_next - t) * predict(x, t)
    return x


def heun(predict: Predict, noise: Noise, times: Sequence[float]) -> torch.Tensor:
    """Heun's second-order method along the flow: two evaluations a step, the last at t = 0."""
    x = noise()
    for t, t_next in pairwise(times):
        velocity = predict(x, t)
        guess = x + (t_next - t) * velocity
        x = x + (t_next - t) * 0.5 * (velocity + predict(guess, t_next))
    return x


def _chain(process: Ddpm, steps: int) -> list[float]:
    """So many times of the chain, equally spaced from its last to its first."""
    chain_S = torch.linspace(process.timesteps - 1, 0, min(steps, process.timesteps)).round()
    return [step / process.timesteps for step in chain_S.tolist()]


def _grid(steps: int) -> list[float]:
    """Times from noise to data, ``steps`` intervals."""
    return torch.linspace(1.0, 0.0, steps + 1).tolist()


class Ddim(Spec):
    """DDIM: as good as the whole chain in a twentieth of its steps."""

    kind: Literal["ddim"] = "ddim"
    process: ClassVar[type[Spec]] = Ddpm
    steps: PositiveInt = 50
    """Evaluations of the denoiser a model."""
    eta: Fraction = 0.0
    """Fresh noise a step: 0 none, 1 as much as the ancestral chain."""

    def times(self, process: Ddpm) -> list[float]:
        """Times at which the denoiser is asked, each once, in order."""
        return _chain(process, self.steps)

    def sample(self, predict: Predict, process: Ddpm, noise: Noise) -> torch.Tensor:
        """Latents ``(N, Z)``."""
        return ddim(predict, process, noise, self.times(process), self.eta)


class Ancestral(Spec):
    """The whole DDPM chain, as the papers sample."""

    kind: Literal["ancestral"] = "ancestral"
    process: ClassVar[type[Spec]] = Ddpm

    def times(self, process: Ddpm) -> list[float]:
        """Times at which the denoiser is asked, each once, in order."""
        return _chain(process, process.timesteps)

    def sample(self, predict: Predict, process: Ddpm, noise: Noise) -> torch.Tensor:
        """Latents ``(N, Z)``."""
        return ddim(predict, process, noise, self.times(process), eta=1.0)


class Euler(Spec):
    """Euler steps along a flow."""

    kind: Literal["euler"] = "euler"
    process: ClassVar[type[Spec]] = FlowMatching
    steps: PositiveInt = 50
    """Evaluations of the denoiser a model."""

    def times(self, process: FlowMatching) -> list[float]:
        """Times at which the denoiser is asked, each once, in order."""
        return _grid(self.steps)[:-1]

    def sample(self, predict: Predict, process: FlowMatching, noise: Noise) -> torch.Tensor:
        """Latents ``(N, Z)``."""
        return euler(predict, noise, self.times(process))


class Heun(Spec):
    """Heun steps along a flow."""

    kind: Literal["heun"] = "heun"
    process: ClassVar[type[Spec]] = FlowMatching
    steps: PositiveInt = 25
    """Steps, of two evaluations each."""

    def times(self, process: FlowMatching) -> list[float]:
        """Times at which the denoiser is asked, each once, in order."""
        return _grid(self.steps)

    def sample(self, predict: Predict, process: FlowMatching, noise: Noise) -> torch.Tensor:
        """Latents ``(N, Z)``."""
        return heun(predict, noise, self.times(process))


Sampler = Annotated[Ddim | Ancestral | Euler | Heun, Field(discriminator="kind")]
