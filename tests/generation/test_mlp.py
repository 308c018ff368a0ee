from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bend_ray.generation.networks import MlpAutoencoder, ModulatedBlock, ModulatedMlp, TimeEmbedding
from bend_ray.optim import Sgd


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


@pytest.mark.parametrize(("features", "latents"), [(5, 5), (5, 7), (7, 5)])
def test_an_autoencoder_starts_as_the_map_that_keeps_the_first_numbers(
    features: int, latents: int
) -> None:
    module = MlpAutoencoder(features, latents, hidden=6)
    x = 100 * torch.randn(4, features, generator=generator())
    kept = min(features, latents)
    back = module.decode(module.encode(x))
    assert torch.equal(back[:, :kept], x[:, :kept])
    assert not back[:, kept:].any()


@pytest.mark.parametrize("num_features", [3466, 7, 64])
@pytest.mark.parametrize("latent_size", [5, 48, 120])
def test_an_autoencoder_maps_there_and_back(num_features: int, latent_size: int) -> None:
    module = MlpAutoencoder(num_features, latent_size, hidden=16)
    z_BZ = module.encode(torch.randn(2, num_features, generator=generator()))
    assert z_BZ.shape == (2, latent_size)
    assert module.decode(z_BZ).shape == (2, num_features)


def test_gradient_reaches_all_of_an_autoencoder_once_it_has_moved() -> None:
    module = MlpAutoencoder(7, 5, hidden=6)
    x_BF = torch.randn(4, 7, generator=generator())
    optimizer = Sgd(learning_rate=0.1).build(module.parameters())
    for _ in range(3):
        (module.decode(module.encode(x_BF)) - x_BF).square().mean().backward()
        silent = without_gradient(module)
        if silent:
            optimizer.step(1.0)
    assert silent == []


def test_neighbouring_steps_of_a_thousand_are_told_apart() -> None:
    embedding = TimeEmbedding(16)
    embedded = embedding(torch.arange(1000) / 1000)
    assert embedded.shape == (1000, 16)
    assert (embedded[1:] - embedded[:-1]).norm(dim=1).min() > 0.05
    far_apart = torch.cdist(embedded, embedded) + 9 * torch.eye(1000)
    assert far_apart.min() > 0.01


def test_the_time_embedding_adds_no_tensor_to_the_weights() -> None:
    assert set(TimeEmbedding(4).state_dict()) == {"project.0.weight", "project.0.bias"}


def test_a_block_without_its_mlp_passes_its_input_on() -> None:
    block = ModulatedBlock(4)
    nn.init.zeros_(block.mlp[2].weight)
    nn.init.zeros_(block.mlp[2].bias)
    h_BH = torch.randn(3, 4, generator=generator())
    assert torch.equal(
        block(h_BH, *block.modulation(torch.randn(3, 4, generator=generator(1)))), h_BH
    )


@pytest.fixture(name="inputs")
def make_inputs() -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(6, 5, generator=generator()),
        torch.rand(6, generator=generator(1)),
        torch.tensor([0, 1, 2, 0, 1, 2]),
    )


def test_the_first_answer_of_a_denoiser_is_zero(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    assert torch.equal(ModulatedMlp(5, 3, hidden=8, blocks=2)(*inputs), torch.zeros(6, 5))


def test_gradient_reaches_all_of_a_denoiser_once_it_has_moved(
    inputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    module = ModulatedMlp(5, 3, hidden=8, blocks=2)
    target = torch.randn(6, 5, generator=generator(2))
    optimizer = Sgd(learning_rate=0.1).build(module.parameters())
    (module(*inputs) - target).square().mean().backward()
    first = [name for name, _ in module.named_parameters() if name not in without_gradient(module)]
    assert first == ["project_out.weight", "project_out.bias"]
    optimizer.step(1.0)
    (module(*inputs) - target).square().mean().backward()
    assert without_gradient(module) == []


def test_a_denoiser_listens_to_latent_time_and_condition(
    inputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    module = ModulatedMlp(5, 3, hidden=8, blocks=1)
    nn.init.normal_(module.project_out.weight)
    x_BZ, t_B, condition_B = inputs
    said = module(*inputs)
    for changed in (
        module(x_BZ + 1, t_B, condition_B),
        module(x_BZ, 1 - t_B, condition_B),
        module(x_BZ, t_B, (condition_B + 1) % 3),
    ):
        assert (changed - said).abs().amax(dim=1).min() > 1e-4
