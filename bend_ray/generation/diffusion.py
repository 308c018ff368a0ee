"""Diffusion: how a latent becomes noise, and back again.

A process mixes data ``x0`` and unit noise ``eps`` as ``x_t = a(t) x0 + b(t) eps`` with time in
[0, 1], so one objective trains all. To add one: one class, and its name in the union.

A sampler goes from noise to data, in the papers' names and symbols. Its ``times`` fall from noise
to data, and are the only ones at which it asks. ``predict(x, t)`` is the denoiser with its
conditions bound, at a time that all rows share; ``noise()`` draws a fresh
``(N, Z)`` unit Gaussian in which every row has a stream of its own, so that a model does not depend
on which others are drawn with it. To add a sampler: one spec with the times at which it asks, and
its name in the union.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from bend_ray.optim import Fraction
from bend_ray.process.lazy import Tensor, torch
from bend_ray.spec import Spec


class Ddpm(Spec):
    """Denoising diffusion with linear betas (Ho et al. 2020, arXiv 2006.11239).

    ``prediction="v"`` predicts ``a eps - b x0`` (Salimans & Ho 2022): for a unit Gaussian it is
    zero, so what the network learns is only how the latents differ from one.
    """

    kind: Literal["ddpm"] = "ddpm"
    timesteps: PositiveInt = 1000
    """Steps of the discrete chain."""
    beta_start: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-4
    """Noise variance of the first step."""
    beta_end: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02
    """Noise variance of the last step."""
    prediction: Literal["v", "eps"] = "v"
    """What the denoiser predicts: velocity or noise."""

    def alpha_bars(self) -> Tensor:
        """Share of the data's variance left after each step, ``(T,)`` in float64."""
        return _alpha_bars(self.beta_start, self.beta_end, self.timesteps)

    def draw_times(self, num: int, generator: torch.Generator) -> Tensor:
        """Times ``(num,)`` in [0, 1), uniform over the steps."""
        steps = torch.randint(self.timesteps, (num,), generator=generator)
        return steps / self.timesteps

    def coefficients(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """``a(t)`` and ``b(t)``, each ``(B, 1)``."""
        steps = (t_B * self.timesteps).round().long()
        alpha_bar_B1 = self.alpha_bars().to(t_B.device)[steps, None]
        # Rounded last: at the first steps 1 - alpha_bar keeps four digits in float32.
        return alpha_bar_B1.sqrt().float(), (1.0 - alpha_bar_B1).sqrt().float()

    def target(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """What the denoiser should say, ``(B, Z)``."""
        if self.prediction == "eps":
            return eps
        a, b = self.coefficients(t_B)
        return a * eps - b * x0

    def split(self, x_t: Tensor, predicted: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
        """The denoiser's prediction as its guess of ``(x0, eps)``, by the time's coefficients."""
        if self.prediction == "eps":
            return (x_t - b * predicted) / a, predicted
        return a * x_t - b * predicted, b * x_t + a * predicted


@lru_cache(maxsize=8)
def _alpha_bars(beta_start: float, beta_end: float, timesteps: int) -> Tensor:
    # Asked for at every step of training and sampling; nobody writes to it.
    betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    return (1.0 - betas).cumprod(0)


class FlowMatching(Spec):
    """Straight lines from data to noise (Lipman et al. 2023; rectified flow, Liu et al. 2023)."""

    kind: Literal["flow"] = "flow"

    def draw_times(self, num: int, generator: torch.Generator) -> Tensor:
        """Times ``(num,)`` in [0, 1)."""
        return torch.rand(num, generator=generator)

    def coefficients(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """``1 - t`` and ``t``, each ``(B, 1)``."""
        return 1.0 - t_B[:, None], t_B[:, None]

    def target(self, x0: Tensor, eps: Tensor, t_B: Tensor) -> Tensor:
        """The velocity from data to noise, ``(B, Z)``."""
        return eps - x0


Process = Annotated[Ddpm | FlowMatching, Field(discriminator="kind")]


def gaussian_prediction(process: Process, x_t: Tensor, t_B: Tensor) -> Tensor:
    """What the exact denoiser of a unit Gaussian predicts, ``(B, Z)``: linear in the noisy latent.

    For it ``E[x0 | x_t] = a x_t / (a^2 + b^2)``. A network that is added to it and starts at zero
    is a denoiser under the preconditioning of Karras et al. 2022 (arXiv 2206.00364, equation 7).
    """
    a, b = process.coefficients(t_B)
    share = x_t / (a.square() + b.square())
    return process.target(a * share, b * share, t_B)


Predict = Callable[["Tensor", float], "Tensor"]
Noise = Callable[[], "Tensor"]


def ddim(
    predict: Predict, process: Ddpm, noise: Noise, times: Sequence[float], eta: float
) -> Tensor:
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


def _chain(process: Ddpm, steps: int) -> list[float]:
    """So many times of the chain, equally spaced from its last to its first."""
    chain_S = torch.linspace(process.timesteps - 1, 0, min(steps, process.timesteps)).round()
    return [step / process.timesteps for step in chain_S.tolist()]


class Ddim(Spec):
    """DDIM: as good as the whole chain in a twentieth of its steps."""

    kind: Literal["ddim"] = "ddim"
    process: ClassVar[type[Spec]] = Ddpm
    steps: PositiveInt = 50
    """Evaluations of the denoiser a model."""
    eta: Fraction = 0.0
    """Fresh noise a step: 0 none, 1 as much as the ancestral chain."""

    def times(self, process: Ddpm) -> list[float]:
        """Times at which the denoiser is asked, each once, in order: equally spaced."""
        return _chain(process, self.steps)

    def sample(self, predict: Predict, process: Ddpm, noise: Noise) -> Tensor:
        """Latents ``(N, Z)``."""
        return ddim(predict, process, noise, self.times(process), self.eta)


class Ancestral(Spec):
    """The whole DDPM chain, as the papers sample."""

    kind: Literal["ancestral"] = "ancestral"
    process: ClassVar[type[Spec]] = Ddpm

    def times(self, process: Ddpm) -> list[float]:
        """Times at which the denoiser is asked, each once, in order."""
        return _chain(process, process.timesteps)

    def sample(self, predict: Predict, process: Ddpm, noise: Noise) -> Tensor:
        """Latents ``(N, Z)``."""
        return ddim(predict, process, noise, self.times(process), eta=1.0)


class Euler(Spec):
    """Euler's method along a flow, to t = 0."""

    kind: Literal["euler"] = "euler"
    process: ClassVar[type[Spec]] = FlowMatching
    steps: PositiveInt = 50
    """Evaluations of the denoiser a model."""

    def times(self, process: FlowMatching) -> list[float]:
        """Times at which the denoiser is asked, each once, in order."""
        return torch.linspace(1.0, 0.0, self.steps + 1).tolist()[:-1]

    def sample(self, predict: Predict, process: FlowMatching, noise: Noise) -> Tensor:
        """Latents ``(N, Z)``."""
        x = noise()
        for t, t_next in pairwise([*self.times(process), 0.0]):
            x = x + (t_next - t) * predict(x, t)
        return x


class Heun(Spec):
    """Heun's second-order method along a flow: two evaluations a step, the last at t = 0."""

    kind: Literal["heun"] = "heun"
    process: ClassVar[type[Spec]] = FlowMatching
    steps: PositiveInt = 25
    """Steps, of two evaluations each."""

    def times(self, process: FlowMatching) -> list[float]:
        """Times at which the denoiser is asked, each once, in order."""
        return torch.linspace(1.0, 0.0, self.steps + 1).tolist()

    def sample(self, predict: Predict, process: FlowMatching, noise: Noise) -> Tensor:
        """Latents ``(N, Z)``."""
        x = noise()
        for t, t_next in pairwise(self.times(process)):
            velocity = predict(x, t)
            guess = x + (t_next - t) * velocity
            x = x + (t_next - t) * 0.5 * (velocity + predict(guess, t_next))
        return x


Sampler = Annotated[Ddim | Ancestral | Euler | Heun, Field(discriminator="kind")]
