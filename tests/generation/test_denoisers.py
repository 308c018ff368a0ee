from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from bend_ray.generation.diffusion import Ddpm
from bend_ray.generation.models import ConvDenoiser, Denoiser, MlpDenoiser
from bend_ray.generation.training import Denoising
from bend_ray.optim import AdamW

SMALL = [MlpDenoiser(hidden=64, blocks=2), ConvDenoiser(channels=(16, 16), kernel=3)]


@pytest.mark.slow
@pytest.mark.parametrize("spec", [*SMALL, MlpDenoiser(), ConvDenoiser()])
@pytest.mark.parametrize("latent_size", [5, 48, 120])
def test_the_built_module_answers_in_latents(spec: Denoiser, latent_size: int) -> None:
    module = spec.build(latent_size, 3)
    said = module(torch.zeros(2, latent_size), torch.rand(2), torch.tensor([0, 2]))
    assert said.shape == (2, latent_size)


@pytest.mark.parametrize("spec", SMALL)
def test_building_draws_from_torch_s_generator_alone(spec: Denoiser) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(spec.build(6, 2).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.trains
@pytest.mark.slow
@pytest.mark.parametrize("spec", SMALL)
def test_a_tiny_set_of_noises_can_be_learnt_by_heart(spec: Denoiser) -> None:
    torch.manual_seed(0)
    objective = Denoising(spec.build(6, 2), Ddpm())
    generator = torch.Generator().manual_seed(0)
    batch = {
        "features": torch.randn(4, 6, generator=generator),
        "condition": torch.tensor([0, 1, 0, 1]),
        **objective.draw((4, 6), generator),
    }
    optimizer = AdamW(learning_rate=0.01, weight_decay=0.0).build(objective.parameters())
    first = objective(batch).item()
    for _ in range(120):
        loss = objective(batch)
        loss.backward()
        optimizer.step(1.0)
    assert first > 0.5
    assert loss.item() < 0.02


@pytest.mark.parametrize("spec", SMALL)
def test_a_condition_that_does_not_exist_is_refused(spec: Denoiser) -> None:
    module = spec.build(6, 2)
    with pytest.raises(IndexError):
        module(torch.zeros(1, 6), torch.zeros(1), torch.tensor([2]))


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"kind": "conv1d", "kernel": 6}, "kernel"),
        ({"kind": "conv1d", "channels": []}, "channels"),
        ({"kind": "mlp", "hidden": 0}, "hidden"),
        ({"kind": "mlp", "blocks": 0}, "blocks"),
        ({"kind": "mlp", "channels": [4]}, "channels"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        TypeAdapter(Denoiser).validate_python(wrong)
