"""Networks of one's own in a common order of units: trained here, and by somebody else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import MakeConfig, make
from torch import Tensor, nn

from bend_ray.artifacts.shards import read_population
from bend_ray.artifacts.store import Store
from bend_ray.config.graph import identified
from bend_ray.networks.architectures import ImportedArchitecture
from bend_ray.parameters.symmetry import permute
from bend_ray.populations.members import load_roots
from bend_ray.populations.networks import Classifiers

NPZ = "dataset={{kind: arrays, train: {0}}}"


class Both(nn.Module):
    """Two inputs by name, logits beside other things."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.left, self.words = nn.Linear(4, 6), nn.Embedding(9, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, num_classes)

    def forward(self, x: Tensor, ids: Tensor) -> SimpleNamespace:
        hidden = torch.relu(self.left(x) + self.words(ids).mean(1))
        return SimpleNamespace(logits=self.head(self.norm(hidden)), hidden=hidden)


def both(tmp_path: Path, tiny: MakeConfig, protocol: str) -> Classifiers:
    rng = np.random.default_rng(0)
    x, ids = rng.normal(size=(200, 4)).astype(np.float32), rng.integers(0, 9, (200, 3))
    np.savez(tmp_path / "data.npz", x=x, ids=ids, labels=(x[:, 0] > 0).astype(np.int64))
    config = tiny(
        NPZ.format(tmp_path / "data.npz"),
        f"seeds.protocol={protocol}",
        "seeds.recipe.batch_size=50",
    )
    seeds = config.seeds.model_copy(update={"architecture": ImportedArchitecture.of(Both)})
    config = config.model_copy(update={"seeds": seeds})
    return Classifiers(config, config.dataset.load(), "cpu")


def test_checkpoints_of_a_network_of_ones_own_are_aligned(
    tmp_path: Path, tiny: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    files = tmp_path / "{trunk}-*.safetensors"
    classifiers = both(tmp_path, tiny, f"{{kind: checkpoints, files: '{files}'}}")
    module, layout = classifiers.build(), classifiers.whole
    groups = classifiers.symmetries.groups
    assert [group.num_units for group in groups] == [6]
    state = layout.unflatten(layout.flatten(module.state_dict()).detach())
    for trunk in range(2):
        for step in range(5):
            order = torch.from_numpy(np.random.default_rng(10 * trunk + step).permutation(6))[None]
            moved = permute(state, groups, (order,))
            file = tmp_path / f"{trunk}-{step}.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in moved.items()}, file)
    with caplog.at_level("INFO"):
        artifact = make(identified(classifiers.config), Store(str(tmp_path)), until="seeds").seeds
    theta_KP = torch.from_numpy(read_population(artifact).theta_KP)
    assert len(theta_KP) == 10
    assert torch.equal(theta_KP, theta_KP[0].expand(10, -1))
    assert "aligned by groups of units: 1; left alone: head.bias" in caplog.text


@pytest.mark.trains
def test_a_population_of_a_network_of_ones_own_is_aligned_as_it_is_trained(
    tmp_path: Path, tiny: MakeConfig
) -> None:
    thetas = {}
    for align in ("false", "true"):
        protocol = f"{{kind: independent, models: 9, bootstrap: false, align: {align}}}"
        classifiers = both(tmp_path, tiny, protocol)
        artifact = make(identified(classifiers.config), Store(str(tmp_path)), until="seeds").seeds
        thetas[align] = torch.from_numpy(read_population(artifact).theta_KP)
    root_W = load_roots(artifact)[0]
    apart, together = (thetas[align] - root_W for align in ("false", "true"))
    assert bool((together.norm(dim=1) < apart.norm(dim=1)).all())
    inputs = classifiers.dataset.validation
    answers = [classifiers.logits(theta_KP, inputs) for theta_KP in thetas.values()]
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-4)
