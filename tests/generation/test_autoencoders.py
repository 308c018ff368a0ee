from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from bend_ray.generation.models import Autoencoder, Conv1d, PrincipalMlp
from bend_ray.generation.training import Reconstruction
from bend_ray.optim import AdamW
from bend_ray.spec import variants

SMALL = [
    PrincipalMlp(latent_size=6, hidden=32, input_noise=0.0, latent_noise=0.0),
    Conv1d(latent_size=6, channels=(8, 8), kernel=3, input_noise=0.0, latent_noise=0.0),
]


@pytest.mark.parametrize("spec", SMALL)
def test_the_built_module_has_the_latents_that_were_asked_for(spec: Autoencoder) -> None:
    module = spec.build(11)
    z_BZ = module.encode(torch.zeros(2, 11))
    assert z_BZ.shape == (2, 6)
    assert module.decode(z_BZ).shape == (2, 11)


@pytest.mark.parametrize("spec", SMALL)
def test_building_draws_from_torch_s_generator_alone(spec: Autoencoder) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(spec.build(11).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.trains
@pytest.mark.slow
@pytest.mark.parametrize("spec", SMALL)
def test_a_tiny_population_can_be_learnt_by_heart(spec: Autoencoder) -> None:
    torch.manual_seed(0)
    objective = Reconstruction(spec.build(12), spec.latent_size, 0.0, 0.0)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "features": torch.randn(4, 12, generator=generator),
        **objective.draw((4, 12), generator),
    }
    optimizer = AdamW(learning_rate=0.02, weight_decay=0.0).build(objective.parameters())
    first = objective(batch).item()
    for _ in range(150):
        loss = objective(batch)
        loss.backward()
        optimizer.step(1.0)
    assert first > 0.5
    assert loss.item() < 0.02


def test_what_an_autoencoder_is_given_is_no_setting() -> None:
    assert {spec.model_fields["kind"].default for spec in variants(Autoencoder)} == {
        "principal_mlp",
        "conv1d",
        "imported",
    }
    assert PrincipalMlp.features == "principal"
    assert Conv1d.features == "standardised"
    with pytest.raises(ValidationError, match="features"):
        PrincipalMlp.model_validate({"features": "standardised"})


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"kind": "conv1d", "kernel": 4}, "kernel"),
        ({"kind": "conv1d", "channels": []}, "channels"),
        ({"kind": "conv1d", "channels": [4, 0]}, "channels"),
        ({"kind": "principal_mlp", "latent_size": 0}, "latent_size"),
        ({"kind": "principal_mlp", "input_noise": -0.1}, "input_noise"),
        ({"kind": "principal_mlp", "kernel": 3}, "kernel"),
    ],
)
def test_sizes_that_mean_nothing_are_refused(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        TypeAdapter(Autoencoder).validate_python(wrong)
