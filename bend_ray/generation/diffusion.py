"""Diffusion processes: how a latent becomes noise, and what a denoiser predicts on the way back.

Both processes mix data ``x0`` and unit noise ``eps`` as ``x_t = a(t) x0 + b(t) eps`` with time in
[0, 1], so one objective trains both. To add a process: one class, and its name in the union.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from bend_ray.process.lazy import torch
from bend_ray.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor


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
