"""Noise in, latents out: a trained denoiser with the standardisation of its latents.

Shape letters: K training models, N samples, C conditions, Z latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.generation.conditioning import ConditionedDenoiser
from bend_ray.generation.diffusion import Process
from bend_ray.generation.samplers import Sampler

STD_FLOOR = 1e-4
CONTEXT_ROWS = 4096
"""Rows whose times and conditions a denoiser is told at once."""


@dataclass(frozen=True)
class LatentScale:
    """What makes latents residuals of unit variance around their condition's mean.

    Between trunks latents lie far apart, within one close together: a denoiser of latents that
    are standardised over all trunks spends itself on telling trunks apart, and its samples lose
    or overshoot the members' spread. Around the trunks' means the untrained v-prediction already
    is the Gaussian of the members' residuals; what is learnt is how they differ from it.

    Attributes:
        mean_CZ: each condition's mean latent.
        std_Z: standard deviation of the residuals, pooled over conditions.
    """

    mean_CZ: Tensor
    std_Z: Tensor

    @classmethod
    def fit(cls, z_KZ: Tensor, condition_K: Tensor, num_conditions: int) -> LatentScale:
        """From the latents of the training models; every condition must have one."""
        count_C = condition_K.bincount(minlength=num_conditions)
        sums_CZ = torch.zeros(num_conditions, z_KZ.shape[1]).index_add_(0, condition_K, z_KZ)
        mean_CZ = sums_CZ / count_C.clamp_min(1)[:, None]
        degrees = max(1, len(z_KZ) - int((count_C > 0).sum()))
        variance_Z = (z_KZ - mean_CZ[condition_K]).square().sum(dim=0) / degrees
        return cls(mean_CZ, variance_Z.sqrt().clamp_min(STD_FLOOR))

    def apply(self, z_NZ: Tensor, condition_N: Tensor) -> Tensor:
        """Latents to unit residuals."""
        return (z_NZ - self.mean_CZ[condition_N]) / self.std_Z

    def invert(self, x_NZ: Tensor, condition_N: Tensor) -> Tensor:
        """Unit residuals to latents."""
        return x_NZ * self.std_Z + self.mean_CZ[condition_N]

    def state(self) -> dict[str, Tensor]:
        """Tensors that ``from_state`` takes."""
        return {"mean_CZ": self.mean_CZ, "std_Z": self.std_Z}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> LatentScale:
        """The scale saved by ``state``."""
        return cls(state["mean_CZ"], state["std_Z"])


def sample_latents(
    denoiser: ConditionedDenoiser,
    process: Process,
    sampler: Sampler,
    scale: LatentScale,
    condition_N: Tensor,
    generators: Sequence[torch.Generator],
    temperature: float = 1.0,
) -> Tensor:
    """Draw one latent a generator.

    Args:
        denoiser: trained with ``process``; put in evaluation mode here.
        process: how latents became noise.
        sampler: how to go back.
        scale: of the latents the denoiser was trained on.
        condition_N: condition id of each sample.
        generators: one a sample, so that a sample does not depend on its neighbours.
        temperature: multiplier of all noise; below one samples stay nearer to the mean.

    Returns:
        Latents ``(N, Z)``.
    """
    contexts = _Contexts(denoiser.eval(), sampler.times(process), condition_N)  # type: ignore[arg-type]

    def predict(x_NZ: Tensor, t: float) -> Tensor:
        return denoiser.denoise(x_NZ, contexts.at(t))

    def noise() -> Tensor:
        rows = [torch.randn(len(scale.std_Z), generator=generator) for generator in generators]
        return temperature * torch.stack(rows).to(scale.std_Z.device)

    with torch.inference_mode():
        # A sampler is paired with its process by the config's validation.
        unit_NZ = sampler.sample(predict, process, noise)  # type: ignore[arg-type]
    # A clone is an ordinary tensor again, which may be written to.
    return scale.invert(unit_NZ.clone(), condition_N)


class _Contexts:
    """What a denoiser is told at each time, computed for many times at once."""

    def __init__(
        self, denoiser: ConditionedDenoiser, times: list[float], condition_N: Tensor
    ) -> None:
        self._denoiser, self._times, self._condition_N = denoiser, times, condition_N
        self._known: dict[float, tuple[Tensor, ...]] = {}

    def at(self, t: float) -> tuple[Tensor, ...]:
        """The context of N rows at a time; those that follow are kept for later."""
        if t not in self._known:
            self._known = self._from(self._times.index(t))
        return self._known[t]

    def _from(self, first: int) -> dict[float, tuple[Tensor, ...]]:
        rows = len(self._condition_N)
        times = self._times[first : first + max(1, CONTEXT_ROWS // rows)]
        t_S = torch.tensor(times, device=self._condition_N.device)
        context = self._denoiser.context(
            t_S.repeat_interleave(rows), self._condition_N.repeat(len(times))
        )
        by_time = zip(*(torch.split(tensor, rows) for tensor in context), strict=True)
        return dict(zip(times, by_time, strict=True))
