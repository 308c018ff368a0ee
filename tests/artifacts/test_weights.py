from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bend_ray.artifacts.store import Artifact, Store
from bend_ray.artifacts.weights import load_weights, save_weights
from bend_ray.errors import CorruptArtifact, StoreError


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Store(str(tmp_path)).artifact("generator", 1, {})


def test_a_state_dict_comes_back(artifact: Artifact) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = {**model.state_dict(), "half": torch.randn(3, generator=generator).bfloat16()}
    save_weights(artifact, "weights.safetensors", state)
    found = load_weights(artifact, "weights.safetensors")
    assert found.keys() == state.keys()
    for key, tensor in state.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)


def test_tied_and_transposed_and_trained_tensors_are_copied(artifact: Artifact) -> None:
    weight = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    save_weights(artifact, "w.safetensors", {"a": weight, "b": weight, "c": weight.T})
    found = load_weights(artifact, "w.safetensors")
    assert torch.equal(found["b"], weight)
    assert torch.equal(found["c"], weight.T)
    found["a"].add_(1.0)
    assert torch.equal(found["b"], weight)


@pytest.mark.parametrize("content", [b"", b"garbage that is long enough", None])
def test_a_broken_file_is_corrupt(artifact: Artifact, content: bytes | None) -> None:
    save_weights(artifact, "w.safetensors", {"a": torch.ones(100)})
    path = Path(artifact.child("w.safetensors"))
    path.write_bytes(path.read_bytes()[:-4] if content is None else content)
    with pytest.raises(CorruptArtifact, match=r"w\.safetensors is corrupt: expected a safetensors"):
        load_weights(artifact, "w.safetensors")


def test_a_missing_file_is_said_to_be_missing(artifact: Artifact) -> None:
    with pytest.raises(StoreError, match=r"expected gone\.safetensors in"):
        load_weights(artifact, "gone.safetensors")
