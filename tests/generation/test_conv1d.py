from __future__ import annotations

import pytest
import torch
from torch import nn

from bend_ray.generation.networks import Conv1dAutoencoder, UNet1d

CHANNELS = [(4,), (4, 6), (3, 5, 4), (2, 3, 4, 5, 6)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _reproducible_weights() -> None:
    torch.manual_seed(0)


def without_gradient(module: nn.Module) -> list[str]:
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("num_features", [3466, 7, 64, 1])
def test_an_autoencoder_maps_vectors_of_any_length(
    channels: tuple[int, ...], num_features: int
) -> None:
    module = Conv1dAutoencoder(num_features, 5, channels, kernel=3)
    z_BZ = module.encode(torch.randn(2, num_features, generator=generator()))
    assert z_BZ.shape == (2, 5)
    assert module.decode(z_BZ).shape == (2, num_features)


@pytest.mark.parametrize("kernel", [1, 3, 7, 9])
def test_an_autoencoder_takes_any_odd_kernel(kernel: int) -> None:
    module = Conv1dAutoencoder(21, 5, (3, 4), kernel)
    assert module.decode(module.encode(torch.zeros(2, 21))).shape == (2, 21)


def test_each_convolution_halves_the_signal() -> None:
    module = Conv1dAutoencoder(33, 5, (3, 4, 6), kernel=7)
    assert module.padded == 40
    assert module.down(torch.zeros(1, 1, 40)).shape == (1, 6, 5)
    assert module.up(torch.zeros(1, 6, 5)).shape == (1, 3, 20)


@pytest.mark.slow
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("latent_size", [5, 48, 120, 1])
def test_a_unet_answers_with_a_latent_of_any_size(
    channels: tuple[int, ...], latent_size: int
) -> None:
    module = UNet1d(latent_size, 3, channels, kernel=3)
    x_BZ = torch.randn(2, latent_size, generator=generator())
    assert module(x_BZ, torch.tensor([0.0, 0.9]), torch.tensor([0, 2])).shape == x_BZ.shape


@pytest.mark.parametrize("channels", CHANNELS)
def test_gradient_reaches_all_of_an_autoencoder(channels: tuple[int, ...]) -> None:
    module = Conv1dAutoencoder(70, 5, channels, kernel=3)
    x_BP = torch.randn(4, 70, generator=generator())
    (module.decode(module.encode(x_BP)) - x_BP).square().mean().backward()
    assert without_gradient(module) == []


@pytest.mark.parametrize("channels", CHANNELS)
def test_gradient_reaches_all_of_a_unet(channels: tuple[int, ...]) -> None:
    module = UNet1d(70, 3, channels, kernel=3)
    x_BZ = torch.randn(6, 70, generator=generator())
    condition_B = torch.tensor([0, 1, 2, 0, 1, 2])
    module(x_BZ, torch.rand(6, generator=generator(1)), condition_B).square().mean().backward()
    assert without_gradient(module) == []


def test_a_unet_listens_to_latent_time_and_condition() -> None:
    module = UNet1d(20, 3, (4, 6), kernel=3)
    x_BZ = torch.randn(3, 20, generator=generator())
    t_B, condition_B = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 1, 2])
    said = module(x_BZ, t_B, condition_B)
    for changed in (
        module(x_BZ + 1, t_B, condition_B),
        module(x_BZ, 1.05 - t_B, condition_B),
        module(x_BZ, t_B, (condition_B + 1) % 3),
    ):
        assert (changed - said).abs().amax(dim=1).min() > 1e-5


def test_padding_never_shows() -> None:
    """A vector of 13 is treated as the same vector with zeros up to 16."""
    module = Conv1dAutoencoder(13, 5, (3, 4, 4, 4), kernel=3)
    longer = Conv1dAutoencoder(16, 5, (3, 4, 4, 4), kernel=3)
    longer.load_state_dict(module.state_dict())
    x_BP = torch.randn(2, 13, generator=generator())
    z_BZ = module.encode(x_BP)
    torch.testing.assert_close(z_BZ, longer.encode(nn.functional.pad(x_BP, (0, 3))))
    torch.testing.assert_close(module.decode(z_BZ), longer.decode(z_BZ)[:, :13])
