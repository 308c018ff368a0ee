"""Noise in, latents out: a trained denoiser with the Gaussian that its latents are measured in.

Shape letters: K training models, N samples, C conditions, Z latent, R most models of a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bend_ray.generation.diffusion import Process, Sampler, gaussian_prediction
from bend_ray.generation.networks import ConditionedDenoiser

STD_FLOOR = 1e-4
RANK_TOLERANCE = 1e-9
"""On variances: a direction with less of the largest is one of rounding."""
CONTEXT_ROWS = 4096
"""Rows whose times and conditions a denoiser is told at once."""

OWN_SHARES: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
"""Of a covariance, that of the condition's own members; the rest is pooled over conditions."""
EVEN_SHARES: tuple[float, ...] = (0.03, 0.3, 1.0)
"""Of the pooled part, the share that is the same in all directions."""
UNTOLD: tuple[tuple[float, ...], ...] = ((0.9,), (0.3,))
"""Both shares where no held-out model can choose them."""


@dataclass(frozen=True)
class LatentScale:
    """A Gaussian a condition, and its unit residuals x: latents are ``mean + A S (1 + V'gV) x``.

    Between trunks latents lie far apart, within one close together, along directions of its own.
    The exact denoiser of unit Gaussian residuals is known in closed form (a v-prediction of zero):
    what a network learns is only how latents differ from them.

    Attributes:
        mean_CZ: each condition's mean latent.
        axes_ZZ: A, orthonormal columns.
        std_Z: S, standard deviation that all conditions have along each.
        own_CRZ: V, orthonormal directions of each condition's own members, zero where unused.
        gain_CR: g, by how much more latents of the condition spread along each.
    """

    mean_CZ: Tensor
    axes_ZZ: Tensor
    std_Z: Tensor
    own_CRZ: Tensor
    gain_CR: Tensor

    @classmethod
    def diagonal(cls, z_KZ: Tensor, condition_K: Tensor, num_conditions: int) -> LatentScale:
        """Each number of a latent at unit variance, pooled over conditions: as in the papers."""
        mean_CZ, residual_KZ, degrees = _residuals(z_KZ, condition_K, num_conditions)
        std_Z = (residual_KZ.square().sum(dim=0) / degrees).sqrt().clamp_min(STD_FLOOR)
        none_C0Z = z_KZ.new_zeros(num_conditions, 0, len(std_Z))
        return cls(mean_CZ, torch.eye(len(std_Z)), std_Z, none_C0Z, none_C0Z.sum(dim=2))

    @classmethod
    def fit(
        cls,
        z_KZ: Tensor,
        condition_K: Tensor,
        num_conditions: int,
        held_out: tuple[Tensor, Tensor] | None = None,
    ) -> LatentScale:
        """The covariance is a mix: of a condition's own members, of all pooled, and of a round one.

        Of the mixes that are tried, that is taken under which held-out latents are most likely.
        Every condition must have a training model; ``held_out``: latents and conditions of models
        that nothing is learnt from.
        """
        mean_CZ, residual_KZ, degrees = _residuals(z_KZ.double(), condition_K, num_conditions)
        value_Z, axes_ZZ = torch.linalg.eigh(residual_KZ.T @ residual_KZ / degrees)
        if held_out is None or not len(held_out[0]):
            held_out, own_shares, even_shares = (z_KZ, condition_K), *UNTOLD
        else:
            own_shares, even_shares = OWN_SHARES, EVEN_SHARES
        tried = []
        for even in even_shares:
            std_Z = ((1 - even) * value_Z + even * value_Z.mean()).sqrt().clamp_min(STD_FLOOR)
            own_CRZ, value_CR = _own(residual_KZ @ axes_ZZ / std_Z, condition_K, num_conditions)
            for own in own_shares:
                gain_CR = (1 + own / (1 - own) * value_CR).sqrt() - 1
                found = (mean_CZ, axes_ZZ, (1 - own) ** 0.5 * std_Z, own_CRZ, gain_CR)
                tried.append(cls(*(tensor.float() for tensor in found)))
        return max(tried, key=lambda scale: scale.log_density(*held_out).sum().item())

    def apply(self, z_NZ: Tensor, condition_N: Tensor) -> Tensor:
        """Latents to unit residuals."""
        x_NZ = (z_NZ - self.mean_CZ[condition_N]) @ self.axes_ZZ / self.std_Z
        return self._stretched(x_NZ, condition_N, 1 / (1 + self.gain_CR) - 1)

    def invert(self, x_NZ: Tensor, condition_N: Tensor) -> Tensor:
        """Unit residuals to latents."""
        x_NZ = self._stretched(x_NZ, condition_N, self.gain_CR)
        return x_NZ * self.std_Z @ self.axes_ZZ.T + self.mean_CZ[condition_N]

    def log_density(self, z_NZ: Tensor, condition_N: Tensor) -> Tensor:
        """Of latents under the Gaussians, ``(N,)`` nats in float64, up to a constant."""
        volume_C = self.std_Z.double().log().sum() + self.gain_CR.double().log1p().sum(dim=1)
        square_N = self.apply(z_NZ, condition_N).double().square().sum(dim=1)
        return -square_N / 2 - volume_C[condition_N]

    def _stretched(self, x_NZ: Tensor, condition_N: Tensor, gain_CR: Tensor) -> Tensor:
        """``(1 + V' gain V) x``."""
        stretched_NZ = x_NZ.clone()
        for condition in sorted(set(condition_N.tolist())):
            rows, own_RZ = condition_N == condition, self.own_CRZ[condition]
            stretched_NZ[rows] += x_NZ[rows] @ own_RZ.T * gain_CR[condition] @ own_RZ
        return stretched_NZ


def _residuals(
    z_KZ: Tensor, condition_K: Tensor, num_conditions: int
) -> tuple[Tensor, Tensor, int]:
    """Each condition's mean ``(C, Z)``, latents around it ``(K, Z)``, and degrees of freedom."""
    count_C = condition_K.bincount(minlength=num_conditions)
    sums_CZ = z_KZ.new_zeros(num_conditions, z_KZ.shape[1]).index_add_(0, condition_K, z_KZ)
    mean_CZ = sums_CZ / count_C.clamp_min(1)[:, None]
    degrees = max(1, len(z_KZ) - int((count_C > 0).sum()))
    return mean_CZ, z_KZ - mean_CZ[condition_K], degrees


def _own(x_KZ: Tensor, condition_K: Tensor, num_conditions: int) -> tuple[Tensor, Tensor]:
    """Principal directions ``(C, R, Z)`` of each condition's residuals, their variances."""
    count_C = condition_K.bincount(minlength=num_conditions)
    rows_CRZ = x_KZ.new_zeros(num_conditions, int(count_C.max()), x_KZ.shape[1])
    for condition, count in enumerate(count_C.tolist()):
        # As another member is seen: the mean was not taken over it.
        share = (1 + 1 / max(1, count)) / max(1, count - 1)
        rows_CRZ[condition, :count] = share**0.5 * x_KZ[condition_K == condition]
    # As many directions as members, through their Gram matrix: there may be more numbers.
    value_CR, left_CRR = torch.linalg.eigh(rows_CRZ @ rows_CRZ.mT)
    value_CR = torch.where(value_CR > RANK_TOLERANCE * value_CR.amax(), value_CR, 0.0)
    inverse_CR = torch.where(value_CR > 0, value_CR.rsqrt(), 0.0)
    return inverse_CR[:, :, None] * (left_CRR.mT @ rows_CRZ), value_CR


def sample_latents(
    denoiser: ConditionedDenoiser,
    process: Process,
    sampler: Sampler,
    scale: LatentScale,
    condition_N: Tensor,
    generators: Sequence[torch.Generator],
    temperature: float = 1.0,
) -> Tensor:
    """Draw one latent a generator, ``(N, Z)``: a sample does not depend on its neighbours.

    The denoiser, trained with ``process`` on latents of ``scale``, is put in evaluation mode.
    ``condition_N`` are condition ids; ``temperature`` multiplies all noise: below one samples stay
    nearer to the mean.
    """
    told_at = _contexts(denoiser.eval(), sampler.times(process), condition_N)  # type: ignore[arg-type]

    def predict(x_NZ: Tensor, t: float) -> Tensor:
        learnt_NZ = denoiser.denoise(x_NZ, told_at(t))
        if not denoiser.learns_residual:
            return learnt_NZ
        return learnt_NZ + gaussian_prediction(process, x_NZ, x_NZ.new_tensor([t]))

    def noise() -> Tensor:
        size = scale.mean_CZ.shape[1]
        rows = [torch.randn(size, generator=generator) for generator in generators]
        return temperature * torch.stack(rows).to(scale.mean_CZ.device)

    with torch.inference_mode():
        # A sampler is paired with its process by the config's validation.
        unit_NZ = sampler.sample(predict, process, noise)  # type: ignore[arg-type]
    # A clone is an ordinary tensor again, which may be written to.
    return scale.invert(unit_NZ.clone(), condition_N)


def _contexts(
    denoiser: ConditionedDenoiser, times: list[float], condition_N: Tensor
) -> Callable[[float], tuple[Tensor, ...]]:
    """What N rows are told at a time; computed for many at once, and those that follow kept."""
    rows, known = len(condition_N), dict[float, tuple[Tensor, ...]]()

    def at(t: float) -> tuple[Tensor, ...]:
        if t not in known:
            known.clear()
            some = times[(first := times.index(t)) : first + max(1, CONTEXT_ROWS // rows)]
            t_S = torch.tensor(some, device=condition_N.device).repeat_interleave(rows)
            context = denoiser.context(t_S, condition_N.repeat(len(some)))
            by_time = zip(*(torch.split(tensor, rows) for tensor in context), strict=True)
            known.update(zip(some, by_time, strict=True))
        return known[t]

    return at
