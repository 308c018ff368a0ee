from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bend_ray.generation.diffusion import Ddpm, FlowMatching, Process
from bend_ray.generation.models import MlpDenoiser, PrincipalMlp
from bend_ray.generation.networks import ConditionedDenoiser
from bend_ray.generation.training import Batch, Denoising, Reconstruction

PROCESSES: list[Process] = [Ddpm(), Ddpm(prediction="eps"), FlowMatching()]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Oracle(ConditionedDenoiser):
    """The denoiser that knows what the noise was."""

    def __init__(self, process: Process, x0_BZ: Tensor, eps_BZ: Tensor) -> None:
        super().__init__()
        self.process, self.x0_BZ, self.eps_BZ = process, x0_BZ, eps_BZ
        self.heard: tuple[Tensor, Tensor, Tensor]

    def context(self, t_B: Tensor, condition_B: Tensor) -> tuple[Tensor, ...]:
        return t_B, condition_B

    def denoise(self, x_BZ: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        self.heard = (x_BZ, *context)
        return self.process.target(self.x0_BZ, self.eps_BZ, context[0])


class Doubling(nn.Module):
    """A perfect autoencoder whose latents are twice the features."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def encode(self, x_BF: Tensor) -> Tensor:
        return self.factor * x_BF

    def decode(self, z_BZ: Tensor) -> Tensor:
        return z_BZ / 2


def denoising_batch(objective: Denoising, size: int = 12, latent_size: int = 4) -> Batch:
    batch = objective.draw((size, latent_size), generator())
    batch["features"] = torch.randn(size, latent_size, generator=generator(1))
    batch["condition"] = torch.arange(size) % 3
    return batch


@pytest.mark.parametrize("process", PROCESSES)
def test_a_perfect_denoiser_has_no_loss(process: Process) -> None:
    batch = denoising_batch(Denoising(MlpDenoiser(hidden=8).build(4, 3), process))
    oracle = Oracle(process, batch["features"], batch["eps"])
    assert Denoising(oracle, process)(batch).item() == 0
    x_BZ, t_B, condition_B = oracle.heard
    a_B1, b_B1 = process.coefficients(batch["t"])
    torch.testing.assert_close(x_BZ, a_B1 * batch["features"] + b_B1 * batch["eps"])
    assert torch.equal(t_B, batch["t"])
    assert torch.equal(condition_B, batch["condition"])


@pytest.mark.parametrize("process", PROCESSES)
def test_a_silent_denoiser_s_loss_is_the_variance_that_a_unit_gaussian_leaves(
    process: Process,
) -> None:
    objective = Denoising(MlpDenoiser(hidden=8).build(4, 3), process)
    batch = denoising_batch(objective, size=20_000)
    a_B1, b_B1 = process.coefficients(batch["t"])
    # Of a linear target u x0 + w eps, seen through a x0 + b eps: (u b - w a)^2 / (a^2 + b^2).
    one, none = torch.ones_like(a_B1), torch.zeros_like(a_B1)
    u_B1 = process.target(one, none, batch["t"])
    w_B1 = process.target(none, one, batch["t"])
    left_B1 = (u_B1 * b_B1 - w_B1 * a_B1).square() / (a_B1.square() + b_B1.square())
    assert objective(batch).item() == pytest.approx(left_B1.mean().item(), rel=0.03)


def test_the_velocity_of_unit_latents_has_unit_loss_until_it_is_learnt() -> None:
    objective = Denoising(MlpDenoiser(hidden=8).build(4, 3), Ddpm())
    assert objective(denoising_batch(objective, size=5000)).item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    "objective",
    [
        Denoising(MlpDenoiser(hidden=8).build(4, 3), Ddpm()),
        Denoising(MlpDenoiser(hidden=8).build(4, 3), FlowMatching()),
        Reconstruction(PrincipalMlp(hidden=8).build(4), 120, 0.05, 0.1),
    ],
)
def test_draws_are_reproducible_and_leave_the_global_generator_alone(
    objective: Denoising | Reconstruction,
) -> None:
    before = torch.get_rng_state()
    first, again, other = (objective.draw((6, 4), generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.keys() == again.keys() == other.keys()
    for name, drawn in first.items():
        assert len(drawn) == 6
        assert torch.equal(drawn, again[name])
        assert not torch.equal(drawn, other[name])


@pytest.mark.parametrize("world", [2, 3, 5])
def test_workers_parts_of_a_batch_lose_together_what_one_worker_loses(world: int) -> None:
    denoiser = MlpDenoiser(hidden=8).build(4, 3)
    nn.init.normal_(denoiser.project_out.weight, generator=generator())
    objective = Denoising(denoiser, Ddpm())
    batch = denoising_batch(objective, size=13)
    total = torch.zeros(())
    for rank in range(world):
        part = {name: column[rank::world] for name, column in batch.items()}
        total += objective(part) * len(part["features"]) / 13
    torch.testing.assert_close(total, objective(batch))


def test_reconstruction_without_noise_is_the_mean_squared_error() -> None:
    autoencoder = PrincipalMlp(latent_size=3, hidden=8).build(5)
    objective = Reconstruction(autoencoder, 3, input_noise=0.0, latent_noise=0.0)
    x_BF = torch.randn(9, 5, generator=generator())
    batch = {"features": x_BF, **objective.draw((9, 5), generator())}
    error = autoencoder.decode(autoencoder.encode(x_BF)) - x_BF
    torch.testing.assert_close(objective(batch), error.square().mean())


def test_a_perfect_autoencoder_has_no_loss_without_noise() -> None:
    objective = Reconstruction(Doubling(), 5, input_noise=0.0, latent_noise=0.0)
    batch = {
        "features": torch.randn(9, 5, generator=generator()),
        **objective.draw((9, 5), generator()),
    }
    assert objective(batch).item() == 0


def test_input_noise_is_in_the_features_own_unit() -> None:
    objective = Reconstruction(Doubling(), 5, input_noise=0.3, latent_noise=0.0)
    batch = {"features": torch.randn(9, 5), **objective.draw((9, 5), generator())}
    expected = (0.3 * batch["input_noise"]).square().mean()
    torch.testing.assert_close(objective(batch), expected)


def test_latent_noise_is_in_the_latents_standard_deviations() -> None:
    objective = Reconstruction(Doubling(), 5, input_noise=0.0, latent_noise=0.2)
    x_BF = torch.randn(9, 5, generator=generator()) * torch.tensor([0.1, 1.0, 5.0, 0.0, 2.0])
    batch = {"features": x_BF, **objective.draw((9, 5), generator())}
    std_Z = (2 * x_BF).std(dim=0, correction=0)
    expected = (0.2 * std_Z * batch["latent_noise"] / 2).square().mean()
    torch.testing.assert_close(objective(batch), expected)


def test_the_noise_follows_the_latents_deviation_without_pulling_on_it() -> None:
    coder = Doubling()
    objective = Reconstruction(coder, 5, input_noise=0.0, latent_noise=0.2)
    x_BF = torch.randn(9, 5, generator=generator())
    batch = {"features": x_BF, **objective.draw((9, 5), generator())}
    objective(batch).backward()
    # d/df of ((f x + noise) / 2 - x)^2 at f = 2, with the noise held fixed.
    noise_BF = 0.2 * (2 * x_BF).std(dim=0, correction=0) * batch["latent_noise"]
    torch.testing.assert_close(coder.factor.grad, (noise_BF / 2 * x_BF).mean())


def test_what_is_kept_is_the_network_without_its_loss() -> None:
    denoiser = MlpDenoiser(hidden=8).build(4, 3)
    autoencoder = PrincipalMlp(hidden=8).build(4)
    assert Denoising(denoiser, Ddpm()).kept is denoiser
    assert Reconstruction(autoencoder, 120, 0.0, 0.0).kept is autoencoder
